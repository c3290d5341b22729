"""The recipe: what it takes, what it refuses, and that it survives JSON and mergekit's YAML."""

import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import ConfigError
from workbench.merging.recipe import METHODS, options_of
from workbench.merging.weights import curve_at, depth_positions, freeze_weight, thaw_weight, weight_at

numbers = st.floats(-3, 3, allow_nan=False)
values = numbers | st.lists(numbers, min_size=1, max_size=4)
filters = st.dictionaries(st.sampled_from(["mlp", "self_attn", "embed"]), values, max_size=3)
weights = values | st.builds(lambda entries, default: entries | {"*": default}, filters, values)


def recipe(**changes):
    return wb.MergeRecipe(**({"parents": ["a", "b"], "method": "slerp", "weights": [0.6, 0.4]} | changes))


def test_equal_recipes_are_one_key():
    same = recipe(parents=("a", "b"), weights=(0.6, 0.4))
    assert {recipe(): 1}[same] == 1
    assert recipe().replace(weights=[0.3, 0.7]) == recipe().with_ratio(0.7)
    assert hash(recipe(weights=[{"mlp": [0, 1], "*": 1}, 0.5])) == hash(recipe(weights=[{"mlp": [0, 1], "*": 1}, 0.5]))


def test_a_recipe_cannot_be_changed():
    with pytest.raises(AttributeError):
        recipe().method = "linear"


def test_without_weights_all_parents_weigh_the_same():
    assert wb.MergeRecipe(parents=["a", "b", "c", "d"]).weights == (0.25,) * 4


def test_ratio_is_the_second_parents_share():
    assert recipe(weights=[3, 1]).ratio == 0.25
    assert recipe(weights=[[0, 1], 1]).ratio is None
    assert wb.MergeRecipe(parents=["a", "b", "c"]).ratio is None
    curve = recipe().with_ratio({"mlp": [0, 1], "*": 0.25})
    assert curve.weights_at("model.layers.1.mlp.up_proj.weight", 0.75) == (0.25, 0.75)
    assert curve.weights_at("model.norm.weight", 0.0) == (0.75, 0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parents": "a"}, r"parents='a'; they are a list of model names\. Put the name into a list"),
        ({"parents": ["a", "a"]}, r"parents=\['a', 'a'\]; they are a list of different model names"),
        ({"parents": []}, r"parents=\[\]"),
        (
            {"method": "magic"},
            r"method='magic'; known methods are linear, slerp, nuslerp, .*arcee_fusion\. Use one of these",
        ),
        ({"parents": ["a", "b", "c"]}, r"3 parents .*; slerp merges exactly 2\. Change the list, or use"),
        ({"weights": [1, 2, 3]}, r"weights=\[1, 2, 3\] for 2 parents; they are a list with one weight per parent"),
        ({"weights": 0.5}, r"weights=0\.5 for 2 parents"),
        ({"weights": {"a": 1, "b": 2}}, r"one weight per parent"),
        ({"weights": [1, "much"]}, r"weights\[1\] is 'much'; a weight is a finite number"),
        ({"weights": [1, True]}, r"weights\[1\] is True"),
        ({"weights": [1, float("nan")]}, r"weights\[1\] is nan"),
        ({"weights": [[], 1]}, r"weights\[0\] is an empty list; a curve .* Add one"),
        ({"weights": [[1, None], 1]}, r"weights\[0\]\[1\] is None"),
        ({"weights": [{"mlp": 1}, 1]}, r"weights\[0\] has the filters \['mlp'\].* Add \"\*\": <weight> at the end"),
        ({"weights": [{"*": 1, "mlp": 1}, 1]}, r"for all other tensors comes last"),
        ({"weights": [{3: 1, "*": 1}, 1]}, r"part of a tensor name, as text"),
        ({"weights": [{"mlp": "x", "*": 1}, 1]}, r"weights\[0\]\['mlp'\] is 'x'"),
        (
            {"weights": [1, -1]},
            r"weights=\[1\.0, -1\.0\] sum to 0; slerp divides by that sum\. Give weights .* not 0\.$",
        ),
        ({"weights": [1, -1], "method": "linear"}, r"not 0, or set normalise=False"),
        ({"normalise": True}, r"normalise=True; slerp has no use for it\. Leave it out"),
        ({"normalise": 1, "method": "linear"}, r"normalise=1; it is True, False, or None"),
        ({"base": "a"}, r"base='a'; slerp has no use for it"),
        ({"dtype": "int8"}, r"dtype='int8'; a merge works in one of float32, bfloat16, float16"),
        ({"num_layers": 0}, r"num_layers=0; it is the parents' number of layers, at least 1"),
        ({"method": "ties", "base": None}, r"ties has no base; it merges what parents add to one\. Give the model"),
        (
            {"method": "ties", "base": "a"},
            r"base='a' is one of the parents, so that its task vector is 0\. Take it out",
        ),
        ({"density": 0.5}, r"density=0\.5; slerp has no use for it\. Leave it out"),
        ({"seed": 3}, r"seed=3; slerp has no use for it"),
        ({"method": "ties", "base": "c", "density": 1.5}, r"density\[0\] has the value 1\.5; it is from 0 to 1"),
        ({"method": "ties", "base": "c", "density": [0.5, [0.1, -1]]}, r"density\[1\] has the value -1; it is from 0"),
        (
            {"method": "ties", "base": "c", "density": [0.5]},
            r"density=\[0\.5\] for 2 parents; .* one density per parent",
        ),
        ({"method": "ties", "base": "c", "density": "half"}, r"density\[0\] is 'half'"),
        ({"method": "ties", "base": "c", "gamma": 0.1}, r"gamma=0\.1; ties has no use for it"),
        ({"method": "ties", "base": "c", "rescale": 1}, r"rescale=1; it is True, False, or None"),
        ({"method": "ties", "base": "c", "lambda_": "all"}, r"lambda_ is 'all'"),
        ({"method": "ties", "base": "c", "semantics": "mine"}, r"semantics='mine'; it is one of paper, mergekit, peft"),
        ({"method": "breadcrumbs", "base": "c", "semantics": "peft"}, r"semantics='peft' with breadcrumbs; PEFT has"),
        ({"method": "breadcrumbs", "base": "c", "gamma": {"mlp": 2, "*": 0}}, r"gamma has the value 2; it is from 0"),
        ({"method": "dare_ties", "base": "c", "seed": 0.5}, r"seed=0\.5; it is a whole number"),
        ({"method": "della", "base": "c", "density": 0.9}, r"density=0\.9 with epsilon=0\.15: .* Lower epsilon"),
        ({"method": "sce", "base": "c", "select_topk": [0, 2]}, r"select_topk has the value 2; it is from 0 to 1"),
        ({"method": "sce", "base": "c"}, r"weights=\[0\.6, 0\.4\]; sce reads no weights\. Leave them out"),
        (
            {"method": "model_stock", "base": "c", "parents": ["a"], "weights": None},
            r"merges at least 2 besides its base",
        ),
        ({"method": "nearswap", "base": "c", "parents": ["a"], "weights": None}, r"nearswap with t=None"),
        (
            {"method": "nearswap", "base": "c", "parents": ["a"], "weights": None, "t": -1},
            r"t has the value -1; it is at",
        ),
        ({"method": "nearswap", "base": "c", "weights": None}, r"2 parents .*; nearswap merges exactly 1 besides"),
    ],
)
def test_what_a_recipe_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_an_unknown_field_is_refused():
    with pytest.raises(ConfigError, match=r"no field 'wieghts'; its fields are parents, method, weights"):
        recipe().replace(wieghts=[1, 2])
    with pytest.raises(ConfigError, match=r"3 parents; it needs two"):
        wb.MergeRecipe(parents=["a", "b", "c"]).with_ratio(0.5)


def test_a_subtracted_parent_is_allowed():
    assert recipe(method="linear", weights=[1, -1], normalise=False).weights == (1.0, -1.0)


@settings(deadline=None)
@given(weights)
def test_a_weight_freezes_once(weight):
    frozen = freeze_weight(weight, "w")
    assert freeze_weight(frozen, "w") == freeze_weight(thaw_weight(frozen), "w") == frozen
    hash(frozen)


def test_arrays_are_curves():
    assert freeze_weight(torch.linspace(0, 1, 3), "w") == freeze_weight(np.linspace(0, 1, 3), "w") == (0, 0.5, 1)
    assert freeze_weight([np.float32(0.5), 1], "w") == (0.5, 1)
    assert freeze_weight(np.float32(0.5), "w") == 0.5


def test_curves_and_filters_are_read_as_documented():
    assert [curve_at((0.0, 1.0, 0.0), x) for x in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert curve_at((0.3,), 0.7) == 0.3
    weight = freeze_weight({"mlp.up": 1, "mlp": [2, 4], "*": 5}, "w")
    assert [weight_at(weight, name, 0.5) for name in ("x.mlp.up_proj", "x.mlp.down_proj", "x.norm")] == [1, 3, 5]


def test_places_in_depth():
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.experts.7.w" for i in range(11)), "lm_head.weight"]
    places = depth_positions(names)
    assert [places[name] for name in names] == [0, *(i / 10 for i in range(11)), 0]
    assert depth_positions(["h.0.w", "norm.w"]) == {"h.0.w": 1, "norm.w": 0}
    two_stacks = depth_positions(["vision.0.w", "vision.1.w", "text.0.w", "text.1.w", "text.2.w"])
    assert list(two_stacks.values()) == [0, 1, 0, 0.5, 1]


@settings(deadline=None)
@given(weights, weights, st.sampled_from([None, True, False]), st.sampled_from([None, "bfloat16"]))
def test_json_round_trip(first, second, normalise, dtype):
    positive = {"nothing": 1, "*": 8.5}
    parents = ["a", "b", "c"]
    before = recipe(
        parents=parents,
        method="linear",
        weights=[positive, first, second],
        normalise=normalise,
        dtype=dtype,
        num_layers=3,
    )
    assert wb.MergeRecipe.from_json(before.to_json()) == before


FULL = {
    "density": [0.5, {"mlp": [0.2, 0.8], "*": 1}],
    "gamma": 0.02,
    "epsilon": 0.1,
    "lambda_": {"norm": 0, "*": [1, 0.5]},
    "t": [0.1, 0.2],
    "select_topk": 0.7,
    "normalise": True,
    "rescale": False,
    "base": "c",
}


def full(method, **changes):
    """A recipe that uses all that its method reads."""
    fields = {name: FULL[name] for name in options_of(method) & set(FULL)}
    count = METHODS[method].most or 2
    if "density" in fields:
        fields["density"] = FULL["density"] if not method.startswith("della") else [0.5, 0.25]
    weights = [[0.25, 0.5], 2.0][:count] if METHODS[method].weighted and method not in ("slerp", "karcher") else None
    return wb.MergeRecipe(parents=["a", "b"][:count], method=method, weights=weights, **(fields | changes))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_survives_json_and_yaml(method):
    before = full(method, dtype="bfloat16", num_layers=3)
    assert wb.MergeRecipe.from_json(before.to_json()) == before
    assert wb.MergeRecipe.from_yaml(before.to_yaml(absolute=False)) == before
    assert {before: 1}[wb.MergeRecipe.from_json(before.to_json())] == 1


def test_seed_semantics_and_weights_of_karcher_stay_in_json_for_mergekit_has_no_place_for_them():
    for recipe_, message in [
        (full("dare_ties", seed=3), r"seed=3; .* holds none, and mergekit draws other masks\. Write it with seed=0"),
        (full("ties", semantics="paper"), r"semantics='paper'; a mergekit configuration is merged by mergekit's rules"),
        (
            full("karcher").replace(weights=[1, 2]),
            r"The weights differ, and mergekit's karcher weighs all models alike",
        ),
    ]:
        assert wb.MergeRecipe.from_json(recipe_.to_json()) == recipe_
        with pytest.raises(ConfigError, match=message):
            recipe_.to_yaml(absolute=False)


def test_settings_are_read_at_a_tensor():
    told = full("ties").settings_at("model.layers.1.mlp.up_proj.weight", 0.5)
    assert (told.weights, told.density, told.lambda_, told.name) == ((0.375, 2.0), (0.5, 0.5), 0.75, told.name)
    assert (told.normalise, told.rescale, told.gamma) == (True, False, 0.01)
    assert full("breadcrumbs").settings_at("x", 0).gamma == 0.02
    assert full("ties", density=0.25).density == (0.25, 0.25)


def test_another_method_drops_what_it_has_no_use_for():
    ties = full("ties")
    assert ties.with_method("linear") == wb.MergeRecipe(parents=["a", "b"], weights=[[0.25, 0.5], 2], normalise=True)
    assert ties.with_method("dare_ties", seed=2).density == ties.density
    assert ties.with_method("model_stock").weights == (0.5, 0.5)
    with pytest.raises(ConfigError, match="ties has no base"):
        recipe().with_method("ties")
    with pytest.raises(ConfigError, match="method='magic'"):
        recipe().with_method("magic")


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
    assert (read.base, read.parents, read.gamma, read.lambda_) == ("org/base", ("org/one", "org/two"), 0.02, 1.1)
    assert read.density == ((1.0, 0.7, 0.1), 0.5)
    assert wb.MergeRecipe.from_yaml(read.to_yaml(absolute=False)) == read
    other = PUBLISHED_TIES.replace("weight: 1.0, gamma: 0.02", "weight: 1.0, gamma: 0.05")
    with pytest.raises(ConfigError, match=r"'gamma' differs between the models \(0\.05 and 0\.02\); .* one for all"):
        wb.MergeRecipe.from_yaml(other)
    part = PUBLISHED_TIES.replace("density: 0.5", "density: [{filter: mlp, value: 0.5}]")
    assert wb.MergeRecipe.from_yaml(part).density[1] == freeze_weight({"mlp": 0.5, "*": 1.0}, "density")
    with pytest.raises(ConfigError, match=r"'int8_mask' among the parameters of breadcrumbs_ties has no place"):
        wb.MergeRecipe.from_yaml(PUBLISHED_TIES.replace("lambda: 1.1", "int8_mask: true"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"The recipe is not JSON"),
        ("[]", r"it is a JSON object with 'parents'"),
        (json.dumps({"parents": ["a"], "speed": 3}), r"no field 'speed'"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        wb.MergeRecipe.from_json(text)


def same_merge(
    one, other, places=("model.embed_tokens.weight", "model.layers.1.mlp.up_proj", "model.layers.2.self_attn")
):
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
