"""The picture of a search."""

import pandas as pd
import pytest

from workbench.errors import ConfigError
from workbench.merging.recipe import MergeRecipe
from workbench.views.search_plot import SearchPlot

RECIPE = MergeRecipe(parents=["general", "clinical"])


def found() -> pd.DataFrame:
    shares = [0.0, 1.0, 0.5, {"mlp": [0.9, 0.8], "<b>": 0.1, "*": 0.2}]
    steps = ["parent", "parent", "uniform", "search"]
    values = {"clinical": [0.1, 0.9, 0.5, 0.8], "instructions": [0.9, 0.1, 0.5, 0.85]}
    table = pd.DataFrame({"step": steps, **values, "recipe": [RECIPE.with_ratio(share).to_json() for share in shares]})
    for axis in values:
        table[f"{axis}_low"], table[f"{axis}_high"], table[f"{axis}_n"] = table[axis] - 0.05, table[axis] + 0.05, 40
    table["kept"], table["front"] = [0.1, 0.1, 0.5, 0.88], [True, True, False, True]
    return table


def test_every_recipe_is_a_mark_and_the_front_is_joined():
    figure = SearchPlot(found()).figure
    assert {trace.name: len(trace.x) for trace in figure.data} == {"parent": 2, "uniform": 1, "search": 1, "front": 3}
    (front,) = (trace for trace in figure.data if trace.name == "front")
    assert [*front.x] == [0.1, 0.85, 0.9]
    assert "n = 40" in figure.layout.title.subtitle.text


def test_the_table_holds_the_front_with_its_ratios_escaped():
    page = SearchPlot(found())._repr_mimebundle_()["text/html"]
    assert "0.80 (0.75 to 0.85)" in page
    assert "88%" in page
    assert "mlp [0.9, 0.8]; &lt;b&gt; 0.1; * 0.2" in page
    assert "<b>" not in page


def test_another_table_is_refused():
    with pytest.raises(ConfigError, match="pass what search_recipe returned"):
        SearchPlot(pd.DataFrame({"ratio": [0.1]}))
