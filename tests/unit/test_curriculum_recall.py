"""Looking up at inference: edit distance against the plain table, and the nearest of each memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico_language import byte_tokenizer, pico

from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.recall import Recall, edit_distance
from workbench.records import Example

words = st.text("abc", max_size=12)


def table(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


@given(first=words, second=words)
def test_edit_distance_is_that_of_the_plain_table(first, second) -> None:
    assert edit_distance(first, second) == table(first, second)


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("kitten", "sitting", 3), ("", "abc", 3), ("a" * 200, "", 200)]
)
def test_known_distances(first, second, distance) -> None:
    assert edit_distance(first, second) == distance


def test_the_nearest_of_each_memory_goes_before_the_question() -> None:
    rows = [Example(id=q, skill="s", query=q, answer=f"{q}!") for q in ("cough", "fever", "headache")]
    short, long = ShortTermMemory(5), LongTermMemory(5)
    long.divide("s")
    for row in rows:
        short.add(row, "s", 1.0)
        long.offer(row, "s")
    recall = Recall(pico(), byte_tokenizer(chat=True), short_term=short, long_term=long)
    assert recall.nearest("fevers")[0].id == "fever"
    assert [e.id for e in recall.nearest("cough")] == ["cough"]  # nearest in both, shown once
    assert recall.prompt("cough") == "cough\ncough!\n\ncough"
    assert Recall(pico(), byte_tokenizer()).prompt("why?") == "why?"
