"""The recipe: what it takes, what it refuses, and that it survives JSON."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_recipes import full, recipe, weights

import workbench as wb
from workbench.errors import ConfigError
from workbench.merging.recipe import METHODS
from workbench.merging.weights import curve_at, depth_positions, freeze_weight, thaw_weight, weight_at


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
        (
            {"method": "breadcrumbs", "base": "c", "gamma": {"mlp": 2, "*": 0}},
            r"gamma\[0\] has the value 2; it is from 0",
        ),
        ({"method": "nuslerp", "vectors": "rows"}, r"vectors='rows'; it is 'first', 'last' or None"),
        ({"vectors": "last"}, r"vectors='last'; slerp has no use for it"),
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
    assert (told.normalise, told.rescale, told.gamma) == (True, False, (0.01, 0.01))
    assert full("breadcrumbs").settings_at("x", 0).gamma == (0.02, 0.5)
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
