"""Recipes for tests: a plain one, one with everything that its method reads, and any weight."""

from hypothesis import strategies as st

import workbench as wb
from workbench.merging.recipe import METHODS, options_of

numbers = st.floats(-3, 3, allow_nan=False)
values = numbers | st.lists(numbers, min_size=1, max_size=4)
filters = st.dictionaries(st.sampled_from(["mlp", "self_attn", "embed"]), values, max_size=3)
weights = values | st.builds(lambda entries, default: entries | {"*": default}, filters, values)


def recipe(**changes):
    return wb.MergeRecipe(**({"parents": ["a", "b"], "method": "slerp", "weights": [0.6, 0.4]} | changes))


FULL = {
    "density": [0.5, {"mlp": [0.2, 0.8], "*": 1}],
    "gamma": [0.02, {"mlp": [0.1, 0.2], "*": 0.5}],
    "epsilon": [0.1, 0.05],
    "vectors": "first",
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
