"""Entities stated, invented and omitted, on hand-made texts and on the classroom's own truth."""

import pytest

from workbench.data import load_examples
from workbench.errors import ConfigError, DataError
from workbench.evaluation import faithfulness_report
from workbench.evaluation.faithfulness import entities, faithfulness, world_entities
from workbench.records import Example, records

TASKS = ("note_section", "full_note", "impression", "discharge_summary", "short_question")
VOCABULARY = {
    "heart attack": "heart attack",
    "MI": "heart attack",
    "Aspirin": "aspirin",
    "chest pain": "chest pain",
    "pain": "pain",
    "warfarin": "warfarin",
    "rash": "rash",
}


def example(answer: str, context: str = "") -> Example:
    return Example(id="e1", skill="s", query="Sum up.", context=context, answer=answer)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Example]]:
    return {task: records(load_examples(f"classroom/{task}")) for task in TASKS}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Chest  pain,\nthen ASPIRIN.", {"chest pain", "aspirin"}),
        ("chest pain and pain", {"chest pain", "pain"}),
        ("an MI", {"heart attack"}),
        ("mi casa, painful, aspirins", set()),
        ("no rash", {"rash"}),
        ("", set()),
    ],
)
def test_the_longest_whole_words_count(text, found):
    assert entities(text, VOCABULARY) == found


def test_one_output_by_hand():
    asked = example("MI, treated with aspirin, no rash", context="chest pain, a heart attack; aspirin given; no rash")
    one = faithfulness(asked, "A heart attack with chest pain. Warfarin.", VOCABULARY)
    assert (one.stated, one.invented, one.omitted) == (
        ("chest pain", "heart attack"),
        ("warfarin",),
        ("aspirin", "rash"),
    )
    assert one.wanted == 3


def test_the_report_by_hand():
    texts = ["aspirin", "warfarin and aspirin", " "]
    examples = [Example(id=str(i), skill="s", query="q", answer="aspirin for chest pain") for i in range(3)]
    report = faithfulness_report(examples, texts, VOCABULARY).set_index("measure")
    assert report.loc["stated", ["value", "count", "of"]].tolist() == pytest.approx([2 / 3, 2, 3])
    assert report.loc["invented", ["value", "count", "of"]].tolist() == pytest.approx([1 / 3, 1, 3])
    assert report.loc["omitted", ["value", "count", "of"]].tolist() == pytest.approx([4 / 6, 4, 6])
    assert report.loc["texts with an invention", ["value", "count", "of"]].tolist() == pytest.approx([1 / 3, 1, 3])
    assert set(report.n) == {3}
    assert set(report.empty_outputs) == {1}
    assert ((report.low <= report.value) & (report.value <= report.high)).all()
    silent = faithfulness_report(examples, ["", "", ""], VOCABULARY).set_index("measure")
    assert silent.loc["invented"].isna()[["value", "low", "high"]].all()
    assert silent.loc["omitted", "value"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_a_reference_of_the_classroom_is_faithful(task, rows):
    """Nothing that a reference mentions is missing from its source, and it says all that the world says it holds."""
    known = world_entities()
    for row in rows[task]:
        found = entities(row.answer, known)
        assert found <= entities(f"{row.context}\n{row.query}", known), row.answer
        # `fever` is also the end of `typhoid fever`, and then the longer one counts.
        told = {known[word] for word in row.details()["entities"]}
        assert {word for word in told if not any(word in longer for longer in found)} == set(), row.answer
        assert told & found
    report = faithfulness_report(rows[task], [row.answer for row in rows[task]]).set_index("measure")
    assert report["value"].tolist() == [1, 0, 0, 0]
    assert report.loc["invented", "of"] > len(rows[task])


def test_a_swapped_drug_is_found(rows):
    """The plan's treatment, replaced by another one, is invented and the right one is left out."""
    for row in rows["full_note"][::4]:
        right = row.details()["entities"][-2]
        wrong = next(name for name in ("warfarin", "permethrin cream") if name not in row.context)
        one = faithfulness(row, row.answer.replace(right, wrong))
        assert one.invented == (wrong,), row.answer
        assert world_entities()[right] in one.omitted, row.answer


def test_bad_input_is_one_clear_error():
    with pytest.raises(ConfigError, match="the vocabulary has 0 entities; it needs at least one"):
        faithfulness(example("a"), "a", {})
    with pytest.raises(ConfigError, match="none of them without text"):
        entities("a", {"": "nothing"})
    with pytest.raises(DataError, match="0 outputs for 1 examples"):
        faithfulness_report([example("a")], [])
