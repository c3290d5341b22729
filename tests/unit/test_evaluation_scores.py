"""The record of scores: macro averages, tables, and nothing unescaped in HTML."""

import math

import pytest

from workbench.records import Output, Score, Scores


def made(value, low, high, n=10, group="clinical") -> Score:
    return Score(value=value, low=low, high=high, n=n, metric="exact_match", group=group)


SCORES = Scores(
    tasks={
        "qa": made(0.8, 0.5, 0.9),
        "ner": made(0.4, 0.0, 0.7, n=30),
        "<b>mine</b>": made(1.0, 0.7, 1.0, group="<i>own</i>"),
    },
    settings={"suite": "<script>"},
    outputs={"qa": (Output(id="e1", text="secret <img>", value=1.0),)},
)


def test_a_group_is_the_mean_of_its_tasks_with_recovered_variances():
    mean = SCORES.mean("clinical")
    assert (mean.value, mean.n, mean.metric) == (pytest.approx(0.6), 40, "macro")
    assert mean.low == pytest.approx(0.6 - math.hypot(0.3, 0.4) / 2)
    assert mean.high == pytest.approx(0.6 + math.hypot(0.1, 0.3) / 2)


def test_a_group_of_one_task_keeps_its_interval():
    mean = SCORES.mean("<i>own</i>")
    assert (mean.value, mean.low, mean.high) == pytest.approx((1.0, 0.7, 1.0))


def test_an_unknown_group_names_the_groups():
    with pytest.raises(ValueError, match=r"group 'exam' has no task here; the groups are clinical, "):
        SCORES.mean("exam")


def test_the_frame_has_tasks_then_groups():
    frame = SCORES.to_frame()
    assert [*frame.columns] == ["task", "group", "metric", "value", "low", "high", "n"]
    assert [*frame["task"]] == ["qa", "ner", "<b>mine</b>", "mean of clinical", "mean of <i>own</i>"]


def test_html_escapes_every_name_and_shows_no_outputs():
    shown = SCORES._repr_html_()
    assert "&lt;b&gt;mine&lt;/b&gt;" in shown
    assert not any(raw in shown for raw in ("<b>", "<i>", "<script>", "<img>", "secret"))
    assert "0.500 to 0.900" in shown
