"""A recipe as a mergekit configuration, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workbench.errors import ConfigError
from workbench.merging.recipe import METHODS, OWN, SHARED, MergeRecipe, options_of, ratio_weights
from workbench.merging.weights import DEFAULT, Curve, Filters, Weight, curve_at
from workbench.ops.rule_settings import RuleSettings
from workbench.paths import adapter_folder

_KEYS = {"merge_method", "models", "slices", "base_model", "parameters", "dtype"}
_NAMES = {
    "normalise": "normalize",
    "rescale": "rescale",
    "lambda_": "lambda",
    "t": "t",
    "select_topk": "select_topk",
}
"""Our settings of a whole merge, and what mergekit calls them."""
VECTORS = {"last": {"nuslerp_flatten": False}, "first": {"nuslerp_flatten": False, "nuslerp_row_wise": True}}
"""A recipe's `vectors`, and what mergekit is told for it."""

Input = tuple[str, Mapping[str, Any]]


def write_yaml(recipe: MergeRecipe, *, absolute: bool) -> str:
    """Return the mergekit configuration of a recipe; see `MergeRecipe.to_yaml`."""
    _check_expressible(recipe)
    place = _absolute if absolute else str
    names = [_reference(name, recipe.base, place) for name in recipe.parents]
    inputs: list[dict[str, Any]] = [{"model": name} for name in names]
    base = names[0] if recipe.method == "slerp" else recipe.base and place(recipe.base)
    config: dict[str, Any] = {"merge_method": recipe.method} | ({"base_model": base} if base else {})
    settings = ((ours, theirs, getattr(recipe, ours)) for ours, theirs in mergekit_names(recipe.method).items())
    shared = {theirs: _setting(value) for _, theirs, value in settings if value is not None}
    own: dict[str, Sequence[Weight]] = {}
    if recipe.method == "slerp":
        shared["t"] = _setting(share(*recipe.weights or ()))
    elif "weight" in _own(recipe.method):
        own["weight"] = recipe.weights or ()
    own |= {name: getattr(recipe, name) for name in OWN if getattr(recipe, name) is not None}
    shared |= VECTORS.get(recipe.vectors or "", {})
    for index, entry in enumerate(inputs if own else ()):
        entry["parameters"] = {key: _setting(values[index]) for key, values in own.items()}
    if recipe.num_layers is None:
        config["models"] = inputs
    else:
        # In a slice mergekit wants the base listed, too.
        listed = [{"model": base}, *inputs] if recipe.base else inputs
        config["slices"] = [{"sources": [{**entry, "layer_range": [0, recipe.num_layers]} for entry in listed]}]
    if shared:
        config["parameters"] = shared
    if recipe.dtype is not None:
        config["dtype"] = recipe.dtype
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _check_expressible(recipe: MergeRecipe) -> None:
    if recipe.semantics != "mergekit":
        raise ConfigError(
            f"semantics={recipe.semantics!r}; a mergekit configuration is merged by mergekit's rules. "
            "Use semantics='mergekit', or keep the recipe as JSON."
        )
    if recipe.method == "karcher" and len(set(recipe.weights or ())) > 1:
        raise ConfigError(
            "The weights differ, and mergekit's karcher weighs all models alike. Leave them out, or keep the recipe as "
            "JSON."
        )
    if recipe.seed:
        raise ConfigError(
            f"seed={recipe.seed}; a mergekit configuration holds none, and mergekit draws other masks. Write it with "
            "seed=0 and pass --random-seed to mergekit, or keep the recipe as JSON."
        )


def _own(method: str) -> set[str]:
    # mergekit's karcher weighs all alike, and its slerp has a place t.
    weight = {"weight"} if METHODS[method].weighted and method not in ("slerp", "karcher") else set[str]()
    return weight | (set(OWN) & options_of(method))


def mergekit_names(method: str) -> dict[str, str]:
    """Return the settings of a whole merge that a method reads, and what mergekit calls them, besides `vectors`."""
    names = {ours: theirs for ours, theirs in _NAMES.items() if ours in options_of(method)}
    return names | ({"normalise": "normalize_weights"} if method == "multislerp" else {})


def _reference(name: str, base: str | None, place: Callable[[str], str]) -> str:
    # mergekit's way of writing an adapter on its base.
    adapter = (adapter_folder(name) / "adapter_config.json").is_file()
    return f"{place(base)}+{place(name)}" if adapter and base else place(name)


def _absolute(name: str) -> str:
    from workbench.models import model_folder

    place = model_folder(name)
    return str(place.resolve()) if isinstance(place, Path) else place


def _setting(weight: Weight | bool) -> Any:
    if not isinstance(weight, Filters):
        return list(weight) if isinstance(weight, tuple) else weight
    *entries, (_, default) = weight.entries
    return [*({"filter": name, "value": _setting(value)} for name, value in entries), {"value": _setting(default)}]


def share(first: Weight, second: Weight) -> Weight:
    """Return t = w_2 / (w_1 + w_2) as one weight, which is what mergekit's slerp takes.

    Args:
        first: The first parent's weight.
        second: The second parent's weight.

    Raises:
        ConfigError: The two have different filters, or their sum changes over depth, so that t is no piecewise
            linear curve.
    """
    if not isinstance(first, Filters) and not isinstance(second, Filters):
        return _share_of_curves(first, second)
    names = [[name for name, _ in weight.entries] for weight in (first, second) if isinstance(weight, Filters)]
    if names[0] != names[-1]:
        raise ConfigError(
            f"The parents have the filters {names[0]} and {names[1]}; mergekit's slerp has one list of filters, for t. "
            "Give both parents the same filters in the same order, or use with_ratio(t)."
        )
    values = [dict(w.entries) if isinstance(w, Filters) else dict.fromkeys(names[0], w) for w in (first, second)]
    return Filters(tuple((name, _share_of_curves(values[0][name], values[1][name])) for name in names[0]))


def _share_of_curves(first: float | Curve, second: float | Curve) -> float | Curve:
    if not isinstance(first, tuple) and not isinstance(second, tuple):
        return second / (first + second)
    steps = math.lcm(*(max(len(curve) - 1, 1) for curve in (first, second) if isinstance(curve, tuple)))
    pairs = [(curve_at(first, step / steps), curve_at(second, step / steps)) for step in range(steps + 1)]
    sums = [a + b for a, b in pairs]
    if max(sums) - min(sums) > 1e-9 * max(map(abs, sums)):
        raise ConfigError(
            f"The two parents' weights sum to {min(sums):g} at one depth and {max(sums):g} at another; mergekit's "
            "slerp has one curve t = w_2 / (w_1 + w_2), which is then not piecewise linear. Give weights whose sum "
            "stays the same, or use with_ratio(t)."
        )
    return tuple(b / total for (_, b), total in zip(pairs, sums))


def read_yaml(text: str) -> dict[str, Any]:
    """Return the fields of a `MergeRecipe` from a mergekit configuration; see `MergeRecipe.from_yaml`."""
    config = _parse(text)
    method = config.get("merge_method")
    if method not in METHODS:
        raise ConfigError(f"merge_method: {method!r}; known methods are {', '.join(METHODS)}. Use one of these.")
    _only(config, _KEYS, "at the top")
    inputs, scopes, num_layers = _inputs(config)
    names = mergekit_names(method)
    own = _own(method)
    vectors = set(VECTORS["first"]) if method == "nuslerp" else set[str]()
    known = own | set(names.values()) | vectors | ({"t"} if method == "slerp" else set())
    for scope in scopes:
        _only(scope, known, f"among the parameters of {method}")
    for name, given in inputs:
        _only(given, own, f"among the parameters of {name}")
    inputs, base = _base_apart(inputs, config.get("base_model"), method)
    fields: dict[str, Any] = {
        "parents": [name for name, _ in inputs],
        "method": method,
        "base": base,
        "dtype": config.get("dtype"),
        "num_layers": num_layers,
    }
    for ours, theirs in names.items():
        fields[ours] = _shared(ours, theirs, scopes)
    for key in own & set(OWN):
        if any(key in scope for scope in (*scopes, *(given for _, given in inputs))):
            default = 1.0 if key == "density" else getattr(RuleSettings, key)
            fields[key] = [_resolve(key, [given, *scopes], name, default) for name, given in inputs]
    told = {key: scope[key] for scope in reversed(scopes) for key in vectors & scope.keys()}
    if not told.get("nuslerp_flatten", True):
        fields["vectors"] = "first" if told.get("nuslerp_row_wise") else "last"
    if method == "slerp":
        return fields | {"weights": ratio_weights(_resolve("t", scopes, "the merge"))}
    if "weight" in own:
        fields["weights"] = [_resolve("weight", [given, *scopes], name) for name, given in inputs]
    return fields


def _shared(ours: str, theirs: str, scopes: Sequence[Mapping[str, Any]]) -> Any:
    """Return one setting of the whole merge, or None where the configuration does not have it."""
    found = [scope[theirs] for scope in scopes if theirs in scope]
    if ours not in SHARED or not found:
        return found[0] if found else None
    return _resolve(theirs, scopes, "the merge", getattr(RuleSettings, ours))


def _parse(text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The text is not YAML ({error}). Pass a mergekit configuration.") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"The text is {text[:60]!r}; a mergekit configuration has merge_method and models. Pass such a text."
        )
    return config


def _only(mapping: Any, known: set[str], where: str) -> None:
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{mapping!r} {where} is no mapping. Write it as `key: value`.")
    for key in mapping:
        if key not in known:
            raise ConfigError(
                f"{key!r} {where} has no place in a recipe, which knows {', '.join(sorted(known)) or 'nothing'} "
                "there. Take it out, if the merge means the same without it."
            )


def _entries(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{what}: {value!r} is no list. Write one entry per line, each after `- `.")
    return value


def _inputs(config: Mapping[str, Any]) -> tuple[list[Input], list[Mapping[str, Any]], int | None]:
    shared: list[Mapping[str, Any]] = [config.get("parameters") or {}]
    if ("models" in config) == ("slices" in config):
        raise ConfigError("The configuration needs either 'models' or 'slices'. Give one of them.")
    if "models" in config:
        entries = _entries(config["models"], "models")
        return [_input(entry, {"model", "parameters"}) for entry in entries], shared, None
    slices = _entries(config["slices"], "slices")
    if len(slices) > 1:
        raise ConfigError(f"{len(slices)} slices; a recipe merges whole models, which are one slice. Use 'models'.")
    _only(slices[0], {"sources", "parameters"}, "in the slice")
    entries = _entries(slices[0].get("sources"), "sources")
    inputs = [_input(entry, {"model", "parameters", "layer_range"}) for entry in entries]
    depth = _whole_depth([entry.get("layer_range") for entry in entries])
    return inputs, [slices[0].get("parameters") or {}, *shared], depth


def _whole_depth(ranges: list[Any]) -> int:
    first = ranges[0]
    if not isinstance(first, list) or len(first) != 2 or first[0] != 0 or any(item != first for item in ranges):
        raise ConfigError(
            f"The layer ranges are {ranges}; a recipe merges whole models, whose range is [0, number of layers]. "
            "Use 'models' instead of 'slices'."
        )
    return first[1]


def _input(entry: Any, known: set[str]) -> Input:
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        raise ConfigError(f"A model is written as {entry!r}; write it as `- model: name`.")
    _only(entry, known, "in the entry of a model")
    return entry["model"], entry.get("parameters") or {}


def _base_apart(inputs: list[Input], base: Any, method: str) -> tuple[list[Input], str | None]:
    """Take the base out of the inputs, for slerp put it first, and read `base+adapter` as the adapter."""
    uses = METHODS[method].base
    if method == "slerp" and not isinstance(base, str):
        raise ConfigError(f"base_model: {base!r}; slerp starts from its base_model. Name one of the two models.")
    others = [entry for entry in inputs if entry[0] != base]
    if method == "slerp":
        return [*([entry for entry in inputs if entry[0] == base] or [(base, {})]), *others], None
    if uses == "unused":
        # Without a base of its own the method merges the base model like any other, if it is listed.
        return inputs, None
    adapters = [(name.removeprefix(f"{base}+"), given) for name, given in others]
    return adapters, base


def _resolve(key: str, scopes: Sequence[Mapping[str, Any]], owner: str, default: float | None = None) -> Any:
    # A scope whose filters match nothing hands the tensor on to the next scope, up to the first unconditional value.
    filters: dict[str, Any] = {}
    for setting in (scope[key] for scope in scopes if key in scope):
        for name, value in _conditions(setting):
            filters.setdefault(name, _numbers(value, key))
        if DEFAULT in filters:
            break
    if default is not None:
        filters.setdefault(DEFAULT, default)
    if not filters:
        raise ConfigError(f"No {key!r} for {owner}; mergekit requires one. Add it to the parameters.")
    return filters[DEFAULT] if list(filters) == [DEFAULT] else filters


def _conditions(setting: Any) -> list[tuple[str, Any]]:
    entries = [setting] if isinstance(setting, dict) else setting
    if not isinstance(entries, list) or not any(isinstance(entry, dict) for entry in entries):
        return [(DEFAULT, setting)]
    pairs: list[tuple[str, Any]] = []
    for entry in entries:
        if not isinstance(entry, dict) or "value" not in entry or set(entry) - {"value", "filter"}:
            raise ConfigError(
                f"A condition is written as {entry!r}; it has a 'value' and may have a 'filter'. Write it so."
            )
        pairs.append((str(entry.get("filter") or DEFAULT), entry["value"]))
        if pairs[-1][0] == DEFAULT:
            break
    return pairs


def _numbers(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_numbers(item, key) for item in value]
    try:
        # YAML 1.1 reads 1e-3 as text.
        return float(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"{key}: {value!r} is no number. Give a number or a list of numbers.") from error
