"""Forgetting, transfer and diversity, against numbers worked by hand."""

import math

import pytest

from workbench.curriculum.measures import StageMatrix, distinct_n, jackknife, operations, self_bleu
from workbench.errors import ConfigError
from workbench.records import Output, Score, Scores


def scores(**values: list[float]) -> Scores:
    def mean(task: str) -> float:
        return sum(values[task]) / len(values[task])

    return Scores(
        tasks={t: Score(value=mean(t), low=0.0, high=1.0, n=len(v), metric="m", group="g") for t, v in values.items()},
        outputs={t: tuple(Output(id=f"{t}{i}", text="", value=x) for i, x in enumerate(v)) for t, v in values.items()},
    )


AFTER = {
    "base": scores(a=[0, 0, 0, 0], b=[0, 0, 0, 1], c=[0, 0, 0, 0]),
    "one": scores(a=[1, 1, 1, 1], b=[0, 0, 1, 1], c=[1, 0, 0, 0]),
    "two": scores(a=[1, 1, 0, 0], b=[1, 1, 1, 1], c=[1, 0, 0, 0]),
    "three": scores(a=[1, 0, 0, 0], b=[1, 1, 1, 0], c=[1, 1, 0, 0]),
}
TAUGHT = {"a": "one", "b": "two", "c": "three"}


def test_the_measures_by_hand() -> None:
    matrix = StageMatrix(after=AFTER, taught=TAUGHT)
    found = {name: value for name, (value, _, _) in matrix.summary().items()}
    assert matrix.tasks == ["a", "b", "c"]
    assert found["average_accuracy"] == pytest.approx((0.25 + 0.75 + 0.5) / 3)
    assert found["error_rate"] == pytest.approx(0.5)
    # Best before the last minus last: a 1 - 0.25, b 1 - 0.75, c 0.25 - 0.5.
    assert found["forgetting"] == pytest.approx((0.75 + 0.25 - 0.25) / 3)
    assert found["backward_transfer"] == pytest.approx((-0.75 - 0.25) / 2)
    # Before it was taught minus at first: b 0.5 - 0.25, c 0.25 - 0.
    assert found["forward_transfer"] == pytest.approx(0.25)


def test_intervals_hold_the_value_and_repeat() -> None:
    matrix = StageMatrix(after=AFTER, taught=TAUGHT)
    for value, low, high in matrix.summary().values():
        assert low <= value <= high
    assert matrix.summary() == matrix.summary()
    same = StageMatrix(after={"base": AFTER["one"], "x": AFTER["one"]}, taught={})
    assert same.summary()["forgetting"] == (0, 0, 0)
    assert all(map(math.isnan, same.summary()["backward_transfer"]))


def test_the_table_has_a_row_for_each_cell() -> None:
    rows = StageMatrix(after=AFTER, taught=TAUGHT).rows()
    assert len(rows) == 12
    assert rows[5] == {"after": "one", "task": "c", "value": 0.25, "low": 0.0, "high": 1.0, "n": 4}


@pytest.mark.parametrize(
    ("after", "taught", "message"),
    [
        ({"base": AFTER["base"]}, {}, "1 rows; give at least"),
        ({"base": AFTER["base"], "x": scores(a=[1])}, {}, "row 'x' has other tasks or examples"),
        (AFTER, {"a": "base"}, "taught names the stage 'base'"),
    ],
)
def test_bad_matrices(after, taught, message) -> None:
    with pytest.raises(ConfigError, match=message):
        StageMatrix(after=after, taught=taught)


def test_distinct_n_by_hand() -> None:
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["a"], 2) == 0


def test_self_bleu_by_hand() -> None:
    assert self_bleu(["a b c d e", "a b c d e"]) == pytest.approx(1)
    assert self_bleu(["a b c d", "e f g h"]) == 0
    # "a a b" against "a c": one word 1/3 ("a" is clipped to 1), then 1/3, 1/2, 1/1 by smoothing;
    # "a c" against "a a b": 1/2, 1/2, 1/1, 1/1.
    want = ((1 / 3 * 1 / 3 * 1 / 2) ** 0.25 + (1 / 2 * 1 / 2) ** 0.25) / 2
    assert self_bleu(["a a b", "a c"]) == pytest.approx(want)
    with pytest.raises(ConfigError, match="1 texts"):
        self_bleu(["a"])


def test_the_jackknife_holds_its_value() -> None:
    texts = [f"word{i % 7} other{i % 3} end" for i in range(60)]
    value, low, high = jackknife(distinct_n, texts)
    assert low < value < high
    assert value == distinct_n(texts)
    assert jackknife(lambda part: 1.0, texts) == (1, 1, 1)


def test_operations() -> None:
    costs = {"a": {"tokens": 10, "extra_tokens": 0, "extra_trained": 0}}
    costs["b"] = {"tokens": 10, "extra_tokens": 4, "extra_trained": 2}
    # (4 * 100 + 2 * 5) a token; extra: 2 tokens forward alone (200 each), 2 with the backward (410 each).
    assert operations(costs, parameters=100, trainable=5) == {"a": 4100, "b": 4100 + 2 * 610}
