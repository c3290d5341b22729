"""Pictures of a sweep: right numbers, right errors, and something to see without scripts."""

import pandas as pd
import pytest

from workbench.errors import ConfigError
from workbench.views.front import about_line, check_parents, curves, method_of, ratios_of, second_parent
from workbench.views.plots import ParetoPlot, RatioPlot, TaskPlot

ATTRS = {"recipe": {"parents": ["x/general", "x/medical"], "method": "slerp"}, "split": "validation", "seed": 3}


def front(**extra: list[float]) -> pd.DataFrame:
    scores = {"clinical": [0.2, 0.6, 0.9], "instructions": [1.0, 0.8, 0.1], "ner": [0.1, 0.5, 0.7], **extra}
    table = pd.DataFrame({"ratio": [0.0, 0.5, 1.0]})
    for name, values in scores.items():
        table[name] = values
        table[f"{name}_low"] = [value - 0.1 for value in values]
        table[f"{name}_high"] = [value + 0.05 for value in values]
        table[f"{name}_n"] = 120
    table.attrs = dict(ATTRS)
    return table


def test_rows_are_sorted_and_the_last_of_two_equal_ratios_counts() -> None:
    table = pd.concat([front().iloc[::-1], front().assign(clinical=0.3).iloc[[1]]])
    assert ratios_of(table) == [0.0, 0.5, 1.0]
    assert curves(table)[0].values == (0.2, 0.3, 0.9)


def test_a_table_knows_what_it_was_measured_on() -> None:
    assert second_parent(front()) == "medical"
    assert method_of(front()) == "slerp"
    about = about_line(front(), curves(front()))
    assert about == (
        "at each ratio clinical n = 120, instructions n = 120; bands and bars are 95 % intervals; "
        "method slerp; split validation; seed 3"
    )


def test_a_table_from_a_csv_file_says_what_its_columns_say() -> None:
    table = front().assign(split="test", seed=0)
    table.attrs = {}
    assert second_parent(table) == "the second parent"
    assert method_of(table) is None
    assert about_line(table, []).endswith("split test; seed 0")
    assert second_parent(table.assign(parents="x/general + x/medical")) == "medical"


def test_other_parents_are_refused() -> None:
    check_parents(front(), ("x/general", "x/medical"))
    with pytest.raises(ConfigError, match=r"measured on the parents \['x/general', 'x/medical'\].*leave front out"):
        check_parents(front(), ("x/medical", "x/general"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"t": [1]}), r"columns \['t'\]; a sweep has one named 'ratio'"),
        (front().head(1), r"ratios \[0.0\]; a curve needs at least two"),
        (front()[["ratio", "clinical"]], r"scores \[\]; two are needed"),
    ],
)
def test_a_table_that_is_no_sweep(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RatioPlot(table)


def test_an_unknown_score() -> None:
    with pytest.raises(ConfigError, match=r"no score 'ethics' with its interval; it has clinical, instructions, ner"):
        RatioPlot(front(), ["ethics"])


def test_wrong_numbers_of_scores() -> None:
    with pytest.raises(ConfigError, match="one score against another; name two"):
        ParetoPlot(front(), ["clinical"])
    many = front(d=[0, 0, 0], e=[0, 0, 0])
    with pytest.raises(ConfigError, match="5 scores asked for; one picture holds one to four"):
        RatioPlot(many, ["clinical", "instructions", "ner", "d", "e"])


def test_ratio_plot_draws_band_and_curve() -> None:
    figure = RatioPlot(front()).figure
    band, curve = figure.data[0], figure.data[1]
    assert list(curve.x) == [0, 0.5, 1]
    assert list(curve.y) == [0.2, 0.6, 0.9]
    assert list(band.y) == pytest.approx([0.25, 0.65, 0.95, 0.8, 0.5, 0.1])
    assert {figure.data[1].line.dash, figure.data[3].line.dash} == {"solid", "dash"}


def test_pareto_plot_puts_the_first_score_upwards() -> None:
    trace = ParetoPlot(front()).figure.data[0]
    assert list(trace.y) == [0.2, 0.6, 0.9]
    assert list(trace.x) == [1.0, 0.8, 0.1]
    assert list(trace.error_y.array) == pytest.approx([0.05] * 3)


def test_task_plot_shows_both_ends_and_the_nearest_blend() -> None:
    figure = TaskPlot(front(), 0.4).figure
    assert [trace.name for trace in figure.data] == [f"share of medical {r}" for r in ("0", "0.5", "1")]
    assert [list(trace.x) for trace in figure.data] == [[0.1], [0.5], [0.7]]
    assert list(figure.data[0].y) == ["ner"]


def test_task_plot_of_own_tasks_shows_every_score() -> None:
    own = front().rename(columns=lambda name: name.replace("ner", "mine"))
    assert list(TaskPlot(own).figure.data[0].y) == ["clinical", "instructions", "mine"]


@pytest.mark.parametrize("plot", [RatioPlot, ParetoPlot, TaskPlot])
def test_every_plot_has_a_table_and_suits_both_themes(plot: type) -> None:
    bundle = plot(front())._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/html", "text/plain"}
    assert "<table>" in bundle["text/html"]
    assert "How to read this" in bundle["text/html"]
    layout = bundle["application/vnd.plotly.v1+json"]["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0, 0, 0, 0)"
    assert "cdn" not in str(bundle).lower()
