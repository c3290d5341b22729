"""Both memories: their sizes and quotas hold whatever comes, and nothing that is held out gets in."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.errors import ConfigError
from workbench.records import SPLITS, Example

ids = st.lists(st.integers(0, 30).map(str), max_size=80)


def example(id="a", split="train", skill="ner") -> Example:
    return Example(id=id, skill=skill, query=f"q{id}", answer=f"a{id}", split=split)


@given(size=st.integers(1, 9), seen=ids)
def test_the_ring_never_exceeds_its_size_and_holds_the_most_recent(size, seen) -> None:
    memory = ShortTermMemory(size)
    for id in seen:
        assert memory.add(example(id), "s", 1.0) >= 1
        assert len(memory) <= size
    recent = list(dict.fromkeys(reversed(seen)))[:size]
    assert [row["id"] for row in memory.rows()] == recent
    assert all(row["seen"] == seen.count(row["id"]) for row in memory.rows())


@given(size=st.integers(3, 12), offers=st.lists(st.tuples(ids, st.sampled_from("xyz")), max_size=6), seed=st.integers())
def test_the_reservoir_keeps_its_quotas_and_never_an_example_twice(size, offers, seed) -> None:
    memory = LongTermMemory(size, seed=seed)
    memory.divide("xyz")
    for names, stage in offers:
        for name in names:
            memory.offer(example(f"{stage}{name}"), stage)
    held = [row["id"] for row in memory.rows()]
    assert len(held) == len(set(held)) == len(memory) <= size
    for stage in "xyz":
        offered = {name for names, other in offers if other == stage for name in names}
        assert sum(id[0] == stage for id in held) == min(len(offered), size // 3)


@given(splits=st.lists(st.sampled_from([*SPLITS, "test_b", "Validation", "dev", "eval"]), min_size=1))
def test_no_held_out_example_ever_enters_a_memory(splits) -> None:
    short, long = ShortTermMemory(50), LongTermMemory(50)
    long.divide("s")
    for i, split in enumerate(splits):
        for add in (lambda e: short.add(e, "s", 0.0), lambda e: long.offer(e, "s")):
            if split == "train":
                add(example(str(i), split))
            else:
                with pytest.raises(ConfigError, match=rf"'{i}' is of split '{split}'.*split='train'"):
                    add(example(str(i), split))
    assert {e.split for e in short.examples() + long.examples()} <= {"train"}


def test_the_reservoir_is_fair() -> None:
    kept = [0] * 10
    for seed in range(600):
        memory = LongTermMemory(2, seed=seed)
        memory.divide(["s"])
        for i in range(10):
            memory.offer(example(str(i)), "s")
        for row in memory.rows():
            kept[int(row["id"])] += 1
    # Each of 600 runs keeps 2 of 10: 120 times each, with a standard deviation of 9.8.
    assert all(80 < count < 160 for count in kept), kept


def test_a_draw_follows_the_last_loss() -> None:
    memory = ShortTermMemory(4)
    memory.add(example("hard"), "s", 0.1)
    memory.add(example("hard"), "s", 3.0)
    memory.add(example("easy"), "s", 1.0)
    drawn = [e.id for e in memory.draw(4000, random.Random(0))]
    assert drawn.count("hard") == pytest.approx(3000, abs=120)
    assert ShortTermMemory(4).draw(3, random.Random(0)) == []
    memory.add(example("easy"), "s", 0.0)
    memory.add(example("hard"), "s", 0.0)
    assert len(memory.draw(3, random.Random(0))) == 3


@given(seen=ids, seed=st.integers(0, 5))
def test_a_saved_memory_goes_on_as_if_it_had_never_been_away(seen, seed) -> None:
    known = {str(i): example(str(i)) for i in range(31)}
    short, long = ShortTermMemory(5), LongTermMemory(6, seed=seed)
    again_short, again_long = ShortTermMemory(5), LongTermMemory(6, seed=seed)
    long.divide("s")
    again_long.divide("s")
    half = len(seen) // 2
    for id in seen[:half]:
        short.add(known[id], "s", int(id) / 7)
        long.offer(known[id], "s")
    again_short.load_state_dict(short.state_dict(), known)
    again_long.load_state_dict(long.state_dict(), known)
    for id in seen[half:]:
        for ring, store in ((short, long), (again_short, again_long)):
            ring.add(known[id], "s", int(id) / 7)
            store.offer(known[id], "s")
    assert short.rows() == again_short.rows()
    assert long.rows() == again_long.rows()
    assert long.state_dict() == again_long.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShortTermMemory(0), "size=0: it must be a whole number of at least 1"),
        (lambda: ShortTermMemory(True), "size=True"),
        (lambda: LongTermMemory(8, theta=0), "theta=0"),
        (lambda: LongTermMemory(8, quotas={"a": 0}), r"quotas\['a'\]=0"),
        (lambda: LongTermMemory(8, quotas={"a": 5, "b": 4}), "sum to 9; they must fit into size=8"),
        (lambda: LongTermMemory(2).divide("abc"), "has no place for stage 'a'"),
        (lambda: LongTermMemory(9, quotas={"a": 5}).divide("ab"), "has no place for stage 'b'"),
        (lambda: LongTermMemory(9).offer(example(), "s"), "stage 's' has no quota"),
    ],
)
def test_bad_input_is_refused(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
