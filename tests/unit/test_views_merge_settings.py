"""Every rule in the widget: which sliders it shows, and that moving them moves the model as the rule says."""

import pytest
import torch
from test_views_merge_sliders import SECONDS, live_merge

from workbench.merging.live import LiveMerge
from workbench.merging.recipe import METHODS, MergeRecipe, options_of
from workbench.merging.weights import depth_positions
from workbench.ops.rules import merge_tensor
from workbench.views.merge_settings import SETTINGS
from workbench.views.merge_sliders import MergeSliders
from workbench.views.recipe_table import recipe_line

TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def widget():
    live = live_merge(method="task_arithmetic", ground="x/base")
    live.exact = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workbench.views.preview.stream", lambda *_, **__: iter(["hm"]))
        widget = MergeSliders(live, prompt="why?")
        yield widget
        widget.close()


def by_rule(live: LiveMerge, recipe: MergeRecipe) -> torch.Tensor:
    parts, base = live.tensors(recipe)[TENSOR]
    return merge_tensor(recipe.method, parts, base, recipe.settings_at(TENSOR, depth_positions(live.tensors())[TENSOR]))


@pytest.mark.parametrize("method", METHODS)
def test_every_rule_is_offered_and_follows_its_sliders(widget: MergeSliders, method: str) -> None:
    rule, live = METHODS[method], widget.live
    widget.method.value = method
    widget.weights.move([0.6, 0.4])
    for name, (_, start, *_) in SETTINGS.items():
        widget.settings.sliders[name].move(start)
    shown = {name for name, slider in widget.settings.sliders.items() if slider.layout.display == ""}
    assert shown == options_of(method) & set(SETTINGS)
    assert widget.weights.disabled is not rule.weighted
    assert widget.wait(SECONDS)
    before = by_rule(live, widget.recipe)
    assert "Ready" in widget._status.value
    for name in shown:
        slider = widget.settings.sliders[name]
        slider.move({"density": 0.4, "lambda_": 1.5}.get(name, slider.most / 4))
    if rule.weighted:
        widget.weights.move([0.3, 0.7])
    assert widget.wait(SECONDS)
    assert "Ready" in widget._status.value
    assert live.recipe == widget.recipe
    assert live.recipe.method == method
    merged = live.model.state_dict()[TENSOR]
    assert torch.equal(merged, by_rule(live, live.recipe))
    assert torch.equal(merged, before) is not bool(shown or rule.weighted)
    assert recipe_line(live.recipe) in widget._repr_mimebundle_()["text/html"]


def test_a_rule_of_one_parent_puts_the_second_into_the_first_and_others_have_both_again(widget: MergeSliders) -> None:
    widget.method.value = "nearswap"
    widget.settings.sliders["t"].move(0.004)
    assert (widget.recipe.parents, widget.recipe.base) == (("x/medical",), "x/general")
    assert recipe_line(widget.recipe) == "nearswap: medical into general, t 0.004"
    assert "reads no weights" in widget._table.value
    assert "merge_method: nearswap" in widget._yaml.text
    widget.method.value = "linear"
    assert widget.wait(SECONDS)
    assert (widget.live.recipe.parents, widget.live.recipe.base) == (("x/general", "x/medical"), None)
    assert set(widget.answers) == {"blend", "x/general", "x/medical"}


def test_without_a_base_the_rules_of_one_parent_are_offered_all_the_same() -> None:
    view = MergeSliders(live_merge(), prompt="why?", max_new_tokens=1)
    assert view.method.options == ("linear", "slerp", "nuslerp", "multislerp", "karcher", "nearswap", "arcee_fusion")
    view.close()


def test_a_recipe_in_one_line_has_the_settings_that_it_states() -> None:
    two = {"parents": ["x/a", "x/b"], "base": "x/c"}
    ties = MergeRecipe(**two, method="ties", weights=[1, 2], density=[0.5, [0.25, 1]], lambda_={"mlp": 1, "*": 0})
    assert recipe_line(ties) == "ties: a 1.00, b 2.00, density [0.5, [0.25, 1]], lambda by kind of module"
    assert recipe_line(MergeRecipe(**two, method="sce", select_topk=0.5)) == "sce: a, b, select_topk 0.5"
    assert recipe_line(ties.replace(density=0.5, lambda_=None)) == "ties: a 1.00, b 2.00, density 0.5"
