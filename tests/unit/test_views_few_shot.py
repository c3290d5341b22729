"""The picture of the few-shot protocol."""

import math
import re

import pandas as pd
import pytest

from workbench.errors import ConfigError
from workbench.views.few_shot_plot import FewShotPlot


def table(parents=("merged", "<b>")) -> pd.DataFrame:
    rows = [
        {"parent": parent, "k": k, "n": n, "composite": value, "composite_low": value - gap,
         "composite_high": value + 2 * gap, "instruction": 0.9, "instruction_low": 0.85, "instruction_high": 0.95}
        for parent in parents
        for k, n, value, gap in ((0, 1, 0.1, math.nan), (16, 5, 0.3, 0.05), (64, 5, 0.5, 0.01))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_each_parent_is_a_line_of_its_own_dash_and_mark_in_a_panel_for_each_score():
    figure = FewShotPlot(table()).figure
    first = [trace for trace in figure.data if trace.yaxis == "y"]
    second = [trace for trace in figure.data if trace.yaxis == "y2"]
    assert [trace.name for trace in first] == ["merged", "&lt;b&gt;"] == [trace.name for trace in second]
    assert len({trace.line.dash for trace in first}) == len({trace.marker.symbol for trace in first}) == 2
    assert [trace.showlegend for trace in (*first, *second)] == [True, True, False, False]
    assert [*first[0].y] == [0.1, 0.3, 0.5]
    assert [*second[0].y] == [0.9, 0.9, 0.9]
    assert figure.layout.yaxis2.title.text == "instruction (0 to 1)"
    assert "n = 5 seeds" in figure.layout.title.subtitle.text


def test_no_shots_have_a_place_and_no_bar():
    trace = FewShotPlot(table()).figure.data[0]
    assert [*trace.x] == pytest.approx([0, math.log2(17), math.log2(65)])
    assert [*trace.error_y.array] == pytest.approx([0, 0.1, 0.02])
    assert [*trace.error_y.arrayminus] == pytest.approx([0, 0.05, 0.01])
    assert [*FewShotPlot(table()).figure.layout.xaxis2.ticktext] == ["0", "16", "64"]


def test_the_table_holds_every_number_and_escapes_names():
    page = FewShotPlot(table())._repr_mimebundle_()["text/html"]
    assert (
        "<th>&lt;b&gt;</th><td>16</td><td>5</td><td>0.300 (0.250 to 0.400)</td><td>0.900 (0.850 to 0.950)</td>" in page
    )
    assert "<td>0</td><td>1</td><td>0.100</td>" in page
    assert "<b>" not in page
    assert "How to read this" in page


def test_one_score_is_one_panel():
    figure = FewShotPlot(table(), ["instruction"]).figure
    assert {trace.yaxis for trace in figure.data} == {"y"}
    assert [*figure.data[0].y] == [0.9, 0.9, 0.9]


def test_other_tables_and_too_many_lines_are_refused():
    with pytest.raises(ConfigError, match="pass what shots_table returned"):
        FewShotPlot(pd.DataFrame({"ratio": [0.1]}))
    with pytest.raises(ConfigError, match=r"scores=\['rouge_l'\] are asked for"):
        FewShotPlot(table(), ["rouge_l"])
    with pytest.raises(ConfigError, match="5 parents and 2 scores; a picture holds up to 4 and 2"):
        FewShotPlot(table(parents="abcde"))


def test_a_page_without_scripts_shows_the_lines_over_their_shots():
    plot = FewShotPlot(table())
    assert plot.picture.count("<polyline") == 4
    texts = re.findall(r">([^<>]+)</text>", plot.picture)
    assert texts.count("16") == texts.count("64") == 2
    assert "&lt;b&gt;" in plot.picture
    assert '<img alt="Scores against the number of shots" width="600"' in plot._repr_mimebundle_()["text/html"]
