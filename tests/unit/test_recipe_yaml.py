"""A recipe as mergekit's YAML, and back."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_recipes import full, recipe, weights

import workbench as wb
from workbench.errors import ConfigError
from workbench.merging.weights import freeze_weight

PUBLISHED_TIES = """
models:
  - model: org/base
  - model: org/one
    parameters: {density: [1, 0.7, 0.1], weight: 1.0, gamma: 0.02}
  - model: org/two
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1], gamma: 0.02}
merge_method: breadcrumbs_ties
base_model: org/base
parameters: {normalize: true, lambda: 1.1}
dtype: float16
"""


def test_a_published_configuration_with_its_base_among_the_models_is_read():
    read = wb.MergeRecipe.from_yaml(PUBLISHED_TIES)
    assert (read.base, read.parents, read.lambda_) == ("org/base", ("org/one", "org/two"), 1.1)
    assert (read.density, read.gamma) == (((1.0, 0.7, 0.1), 0.5), (0.02, 0.02))
    assert wb.MergeRecipe.from_yaml(read.to_yaml(absolute=False)) == read
    other = PUBLISHED_TIES.replace("weight: 1.0, gamma: 0.02", "weight: 1.0, gamma: 0.05")
    alone = other.replace("1], gamma: 0.02", "1]")
    assert wb.MergeRecipe.from_yaml(other).gamma == (0.05, 0.02)
    assert wb.MergeRecipe.from_yaml(alone).gamma == (0.05, 0.01)
    part = PUBLISHED_TIES.replace("density: 0.5", "density: [{filter: mlp, value: 0.5}]")
    assert wb.MergeRecipe.from_yaml(part).density[1] == freeze_weight({"mlp": 0.5, "*": 1.0}, "density")
    with pytest.raises(ConfigError, match=r"'int8_mask' among the parameters of breadcrumbs_ties has no place"):
        wb.MergeRecipe.from_yaml(PUBLISHED_TIES.replace("lambda: 1.1", "int8_mask: true"))


def test_the_vectors_of_nuslerp_are_two_switches_of_mergekit():
    whole = full("nuslerp", vectors=None)
    assert "nuslerp" not in (yaml.safe_load(whole.to_yaml(absolute=False)).get("parameters") or {})
    last = yaml.safe_load(whole.replace(vectors="last").to_yaml(absolute=False))
    assert last["parameters"] == {"nuslerp_flatten": False}
    flat = yaml.safe_dump(last | {"parameters": {"nuslerp_flatten": True, "nuslerp_row_wise": True}})
    assert wb.MergeRecipe.from_yaml(flat).vectors is None


def same_merge(one, other):
    assert (one.parents, one.method, one.normalise, one.dtype, one.num_layers) == (
        other.parents,
        other.method,
        other.normalise,
        other.dtype,
        other.num_layers,
    )
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj", "model.layers.2.self_attn"):
        for position in (0.0, 0.3, 0.5, 1.0):
            a, b = one.weights_at(name, position), other.weights_at(name, position)
            if one.method == "slerp":
                a, b = (a[1] / sum(a),), (b[1] / sum(b),)
            assert a == pytest.approx(b, abs=1e-9)


@settings(deadline=None)
@given(st.lists(weights, min_size=3, max_size=3), st.sampled_from([None, False]), st.sampled_from([None, 4]))
def test_yaml_round_trip_of_linear(three, normalise, num_layers):
    three[0] = {"nothing": 1, "*": 8.5}
    before = wb.MergeRecipe(parents=["a", "b", "c"], weights=three, normalise=normalise, num_layers=num_layers)
    assert wb.MergeRecipe.from_yaml(before.to_yaml(absolute=False)) == before


@settings(deadline=None)
@given(weights)
def test_yaml_round_trip_of_slerp(t):
    before = recipe(dtype="bfloat16").with_ratio(t)
    same_merge(wb.MergeRecipe.from_yaml(before.to_yaml(absolute=False)), before)


def test_yaml_of_slerp_names_its_first_parent_as_base_and_its_share_as_t():
    config = yaml.safe_load(recipe(weights=[1, 3]).to_yaml(absolute=False))
    assert (config["base_model"], config["parameters"]) == ("a", {"t": 0.75})
    curves = recipe(weights=[[1, 0], [0, 0.5, 1]])
    assert yaml.safe_load(curves.to_yaml(absolute=False))["parameters"] == {"t": [0, 0.5, 1]}
    mixed = recipe(weights=[{"mlp": [3, 0], "*": 1}, 1]).replace(weights=[{"mlp": 3, "*": 1}, 1])
    assert yaml.safe_load(mixed.to_yaml(absolute=False))["parameters"]["t"] == [
        {"filter": "mlp", "value": 0.25},
        {"value": 0.5},
    ]


def test_slerps_that_mergekit_cannot_express():
    with pytest.raises(ConfigError, match=r"sum to 1 at one depth and 2 at another; .* use with_ratio\(t\)"):
        recipe(weights=[[0, 1], 1]).to_yaml(absolute=False)
    with pytest.raises(ConfigError, match=r"filters \['mlp', '\*'\] and \['norm', '\*'\]; .* one list of filters"):
        recipe(weights=[{"mlp": 1, "*": 2}, {"norm": 1, "*": 2}]).to_yaml(absolute=False)


def test_yaml_writes_folders_as_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "models" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(wb.MergeRecipe(parents=["models/one", "org/two"]).to_yaml())
    assert [entry["model"] for entry in config["models"]] == [str(tmp_path / "models" / "one"), "org/two"]


PUBLISHED = """
slices:
  - sources:
      - model: org/one
        layer_range: [0, 32]
      - model: org/two
        layer_range: [0, 32]
merge_method: slerp
base_model: org/two
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 5e-1
dtype: bfloat16
"""


def test_the_customary_published_slerp_is_read():
    read = wb.MergeRecipe.from_yaml(PUBLISHED)
    assert (list(read.parents), read.num_layers, read.dtype) == (["org/two", "org/one"], 32, "bfloat16")
    assert read.weights_at("model.layers.8.self_attn.q_proj.weight", 0.25) == (0.5, 0.5)
    assert read.weights_at("model.layers.31.mlp.up_proj.weight", 1.0) == (1.0, 0.0)
    assert read.weights_at("lm_head.weight", 0.0) == (0.5, 0.5)
    same_merge(wb.MergeRecipe.from_yaml(read.to_yaml(absolute=False)), read)


def test_a_models_own_filters_go_before_the_common_setting():
    text = """
    merge_method: linear
    models:
      - model: a
        parameters: {weight: [{filter: mlp, value: 0.9}]}
      - model: b
    parameters: {weight: [{filter: mlp, value: 0.2}, {filter: norm, value: 3}, {value: 1}], normalize: false}
    """
    read = wb.MergeRecipe.from_yaml(text)
    assert [read.weights_at(name, 0) for name in ("x.mlp", "norm", "y")] == [(0.9, 0.2), (3, 3), (1, 1)]
    assert read.normalise is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (": :", r"The text is not YAML|a mergekit configuration has"),
        ("hello", r"The text is 'hello'; a mergekit configuration has merge_method"),
        ("merge_method: magic", r"merge_method: 'magic'; known methods are linear, slerp, nuslerp"),
        ("{merge_method: linear, tokenizer_source: union}", r"'tokenizer_source' at the top has no place in a recipe"),
        (
            "{merge_method: linear, parameters: {int8_mask: true}, models: [{model: a}]}",
            r"'int8_mask' among the parameters",
        ),
        ("{merge_method: linear}", r"needs either 'models' or 'slices'"),
        ("{merge_method: linear, models: [a]}", r"A model is written as 'a'; write it as `- model: name`"),
        ("{merge_method: linear, models: [{model: a}]}", r"No 'weight' for a; mergekit requires one"),
        ("{merge_method: linear, models: [{model: a, speed: 1}]}", r"'speed' in the entry of a model"),
        ("{merge_method: linear, models: [{model: a, parameters: {weight: much}}]}", r"weight: 'much' is no number"),
        ("{merge_method: linear, models: [{model: a, parameters: {weight: [{filter: x}]}}]}", r"it has a 'value'"),
        ("{merge_method: slerp, models: [{model: a}, {model: b}]}", r"slerp starts from its base_model"),
        (
            "{merge_method: linear, slices: [{sources: [{model: a, layer_range: [4, 8]}]}]}",
            r"layer ranges are \[\[4, 8\]\]; a recipe merges whole models",
        ),
        ("{merge_method: linear, slices: [{}, {}]}", r"2 slices; a recipe merges whole models"),
        ("{merge_method: linear, slices: [3]}", r"3 in the slice is no mapping"),
        ("{merge_method: linear, models: a}", r"models: 'a' is no list"),
        (
            "{merge_method: linear, models: [{model: a}], parameters: 3}",
            r"3 among the parameters of linear is no mapping",
        ),
        (
            "{merge_method: slerp, base_model: a, models: [{model: a, parameters: {t: 1}}, {model: b}]}",
            r"'t' among the parameters of a has no place in a recipe, which knows nothing there",
        ),
    ],
)
def test_yaml_that_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        wb.MergeRecipe.from_yaml(text)
