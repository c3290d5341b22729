"""The curve editor without a browser: curves, table, YAML and live merge follow each other."""

import pytest
from pico_language import pico

from workbench.errors import ConfigError
from workbench.merging.live import LiveMerge
from workbench.merging.parents import weight_tensors
from workbench.merging.recipe import MergeRecipe
from workbench.views.curve_editor import CurveEditor, effective, groups_of, heat_map

SECONDS = 60
PARENTS = ["x/general", "x/medical", "x/third"]


def live_merge(weights=(0.6, 0.4), **settings) -> LiveMerge:
    recipe = MergeRecipe(parents=PARENTS[: len(weights)], weights=list(weights), **settings)
    return LiveMerge(recipe, models=[pico(seed=seed) for seed in range(len(weights))])


@pytest.fixture
def make():
    made: list[CurveEditor] = []

    def build(*args, **settings) -> CurveEditor:
        made.append(CurveEditor(*args, **settings))
        return made[-1]

    yield build
    for widget in made:
        widget.close()


def test_a_drawn_curve_becomes_recipe_table_yaml_and_weights(make) -> None:
    live = live_merge()
    editor = make(live=live, points=3)
    assert editor.canvas.curves == [[0.4, 0.4, 0.4]]
    assert editor.canvas.caption == "Share of medical"
    editor.canvas.move([[0.0, 0.5, 1.0]])
    assert editor.wait(SECONDS)
    assert live.recipe is editor.recipe
    assert live.recipe.weights == ((1.0, 0.5, 0.0), (0.0, 0.5, 1.0))
    assert "1.0" in editor.yaml.value
    assert ">1.00</td>" in editor.heat.value
    assert MergeRecipe.from_yaml(editor.yaml.value) == live.recipe


def test_a_curve_for_each_kind_of_module(make) -> None:
    live = live_merge()
    editor = make(live=live, points=2)
    editor.by_group.value = True
    assert editor.canvas.labels == ["norms", "attention", "MLP", "embeddings"]
    assert editor.canvas.curves == [[0.4, 0.4], [0.4, 0.4], [0.4, 0.4], [0.4]]
    editor.canvas.move([[0.1, 0.1], [0.0, 1.0], [0.2, 0.3], [0.7]])
    assert editor.wait(SECONDS)
    share = {name: numbers[1] for name, numbers in live.coefficients().items()}
    assert share["model.layers.1.self_attn.q_proj.weight"] == 1.0
    assert share["model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.3)
    assert share["model.layers.1.input_layernorm.weight"] == share["model.norm.weight"] == pytest.approx(0.1)
    assert share["lm_head.weight"] == share["model.embed_tokens.weight"] == pytest.approx(0.7)
    again = make(live=live, points=2)
    assert again.by_group.value
    assert again.canvas.curves == [pytest.approx(curve) for curve in editor.canvas.curves]


def test_the_other_parent_is_the_rest(make) -> None:
    editor = make(live=live_merge(), points=2)
    editor.parent.value = 0
    assert editor.canvas.curves == [[0.6, 0.6]]
    editor.canvas.move([[0.9, 0.7]])
    assert editor.recipe.weights == ((0.9, 0.7), (0.1, 0.3))


def test_three_parents_have_a_weight_each(make) -> None:
    editor = make(live=live_merge([0.2, 0.3, 0.5]), points=2)
    assert editor.canvas.caption == "Weight of third"
    editor.canvas.move([[0.0, 1.5]])
    assert editor.recipe.weights == (0.2, 0.3, (0.0, 1.5))
    editor.parent.value = 1
    assert editor.canvas.curves == [[0.3, 0.3]]
    assert editor.recipe.weights == (0.2, 0.3, (0.0, 1.5))


def test_yaml_moves_the_curves_and_its_errors_are_told(make) -> None:
    live = live_merge()
    editor = make(live=live, points=2)
    typed = live.recipe.replace(method="slerp").with_ratio({"mlp": [0.0, 1.0], "*": 0.5}).to_yaml(absolute=False)
    editor.yaml.value = typed
    assert editor.wait(SECONDS)
    assert live.recipe.method == "slerp"
    assert editor.by_group.value
    assert editor.canvas.curves == [[0.5, 0.5], [0.5, 0.5], [0.0, 1.0], [0.5]]
    for wrong, message in {
        "merge_method: [": "not YAML",
        typed.replace("x/medical", "x/other"): "editor is open for",
        typed.replace("slerp", "<b>"): "&lt;b&gt;",
    }.items():
        editor.yaml.value = wrong
        assert 'role="alert"' in editor._status.value
        assert message in editor._status.value
        assert editor.recipe == live.recipe
    editor.canvas.move([[0.5, 0.5]] * 3 + [[0.5]])
    assert 'role="status"' in editor._status.value


def test_a_recipe_that_breaks_a_rule_is_told_and_undone(make) -> None:
    editor = make(live=live_merge([0.0, 0.0, 0.5]), points=2)
    before = editor.recipe
    editor.canvas.move([[0.5, 0.0]])
    assert "sum to 0" in editor._status.value
    assert editor.recipe is before
    assert editor.live.recipe == before


def test_without_a_live_merge(make) -> None:
    recipe = MergeRecipe(parents=PARENTS[:2], method="slerp", weights=[1, 3])
    editor = make(recipe, model=pico())
    assert editor.canvas.curves == [[0.75, 0.75]]
    assert "Share of medical in every tensor" in editor.heat.value
    editor.canvas.move([[0.0, 1.0]])
    assert editor.recipe.weights == ((1.0, 0.0), (0.0, 1.0))


def test_what_the_numbers_of_the_table_are() -> None:
    live = live_merge()
    names = weight_tensors(live.model)
    slerp = live.recipe.replace(method="slerp")
    kind, numbers = effective(slerp, names, live)
    assert kind == "Coefficient"
    assert sum(numbers["model.layers.0.mlp.up_proj.weight"]) > 1.1
    assert effective(slerp, names)[1]["model.norm.weight"] == pytest.approx((0.6, 0.4))
    assert effective(live.recipe.replace(normalise=False), names)[0] == "Weight"


def test_the_table_shows_layers_kinds_and_what_is_tied() -> None:
    names = {
        "model.embed.weight": ["model.embed.weight", "lm_head.weight"],
        "model.layers.0.attn.q.weight": ["model.layers.0.attn.q.weight"],
        "model.layers.0.attn.q.bias": ["model.layers.0.attn.q.bias"],
        "model.layers.1.<b>.weight": [],
    }
    table = heat_map(dict(zip(names, (0.25, 0.5, -0.125, 1.5))), names, "what <i>")
    for part in ("layer 2", "q.bias", "0.25", "-0.12", "1.50", "read by lm_head.weight too", "&lt;b&gt;", "&lt;i&gt;"):
        assert part in table
    assert "<b>" not in table


def test_kinds_of_module() -> None:
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_norm.weight", "model.layers.0.other.weight"]
    assert groups_of(names) == {
        "norms": (["norm"], names[1]),
        "embeddings": (["embed"], names[0]),
        "all other tensors": ([], names[2]),
    }


def test_a_saved_notebook_shows_table_and_yaml(make) -> None:
    text = make(live=live_merge())._repr_mimebundle_()["text/html"]
    assert "merge_method: linear" in text
    assert "layer 2" in text
    assert "How to read this" in text


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="recipe=None"):
        CurveEditor()
    with pytest.raises(ConfigError, match="points=17"):
        CurveEditor(live=live_merge(), points=17)
