"""A parent's weight in a merge: a number, a curve over depth, or filters by tensor name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.errors import ConfigError

Curve = tuple[float, ...]
Filters = tuple[tuple[str, float | Curve], ...]
Weight = float | Curve | Filters

DEFAULT = "*"
"""The filter that matches every tensor name; the last of a weight's filters."""

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def freeze_weight(value: Any, where: str) -> Weight:
    """Return a weight in its hashable form.

    Args:
        value: A number; a list of numbers, which is a curve from the first to the last layer; or a mapping (or pairs)
            from a part of a tensor name to one of these, tried in order, closed by `"*"` for all other tensors.
        where: What an error message calls the weight, e.g. `weights[0]`.

    Returns:
        A float, a tuple of floats, or a tuple of (filter, float or tuple of floats).

    Raises:
        ConfigError: The value is none of these, not finite or empty, or its filters lack the `"*"` at their end.
    """
    if isinstance(value, Mapping):
        return _freeze_filters(list(value.items()), where)
    if not isinstance(value, str) and isinstance(value, Sequence):
        if value and all(_is_pair(item) for item in value):
            return _freeze_filters([tuple(item) for item in value], where)
        return _freeze_curve(value, where)
    return _freeze_number(value, where)


def _is_pair(item: Any) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], str)


def _freeze_number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(
            f"{where} is {value!r}; a weight is a finite number, a list of numbers (a curve over depth), or a dict "
            'of filters such as {"mlp": 0.2, "*": 0.5}. Give one of these.'
        )
    return float(value)


def _freeze_curve(values: Sequence[Any], where: str) -> Curve:
    if not values:
        raise ConfigError(f"{where} is an empty list; a curve over depth needs at least one number. Add one.")
    return tuple(_freeze_number(value, f"{where}[{index}]") for index, value in enumerate(values))


def _freeze_filters(items: Sequence[tuple[Any, Any]], where: str) -> Filters:
    names = [name for name, _ in items]
    if any(not isinstance(name, str) or not name for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"{where} has the filters {names}; each is a different, non-empty part of a tensor name.")
    if not names or names[-1] != DEFAULT or DEFAULT in names[:-1]:
        raise ConfigError(
            f'{where} has the filters {names}; the first that matches counts, so the last one must be "*" for all '
            'other tensors. Add "*": <weight> at the end.'
        )
    return tuple((name, _freeze_leaf(value, f"{where}[{name!r}]")) for name, value in items)


def _freeze_leaf(value: Any, where: str) -> float | Curve:
    if not isinstance(value, str) and isinstance(value, Sequence):
        return _freeze_curve(value, where)
    return _freeze_number(value, where)


def is_filters(weight: Weight) -> bool:
    """Return whether a frozen weight consists of filters."""
    return isinstance(weight, tuple) and isinstance(weight[0], tuple)


def thaw_weight(weight: Weight) -> float | list[float] | dict[str, float | list[float]]:
    """Return a frozen weight as numbers, lists and dicts, which `freeze_weight` takes back."""
    if isinstance(weight, float):
        return weight
    if is_filters(weight):
        return {name: list(leaf) if isinstance(leaf, tuple) else leaf for name, leaf in weight}  # pyright: ignore
    return list(weight)  # pyright: ignore


def weight_at(weight: Weight, name: str, position: float) -> float:
    """Return what a weight says about one tensor.

    Args:
        weight: A frozen weight.
        name: The tensor's name, against which filters are matched as substrings.
        position: The tensor's place in depth, 0 to 1; a curve is read there, piecewise linear.
    """
    if isinstance(weight, float):
        return weight
    for item in weight:
        if isinstance(item, tuple):
            if item[0] == DEFAULT or item[0] in name:
                return curve_at(item[1], position)
        else:
            return curve_at(weight, position)  # pyright: ignore[reportArgumentType]
    raise AssertionError("filters end in '*'")


def curve_at(curve: float | Curve, position: float) -> float:
    """Return a curve's value at a position between 0 and 1, linear between its evenly spaced points."""
    if isinstance(curve, float):
        return curve
    place = position * (len(curve) - 1)
    left = min(int(place), len(curve) - 1)
    right = min(left + 1, len(curve) - 1)
    return curve[left] + (place - left) * (curve[right] - curve[left])


def depth_positions(names: Iterable[str]) -> dict[str, float]:
    """Return each tensor's place in depth, from its name.

    A tensor of layer i of n stands at i / (n-1), and at 1 where n = 1. Every other tensor (embeddings, final norm and
    lm_head) stands at 0. Stacks of layers with different prefixes are counted apart.

    Args:
        names: All tensor names of a model.

    Returns:
        Name to position, in the order given.

    Source: mergekit's reading of gradients.
    """
    places = {name: _LAYER.search(name) for name in names}
    depth: dict[str, int] = {}
    for name, place in places.items():
        if place:
            stack = name[: place.start()]
            depth[stack] = max(depth.get(stack, 0), int(place[1]))
    positions = {}
    for name, place in places.items():
        last = depth[name[: place.start()]] if place else 0
        positions[name] = 0.0 if not place else int(place[1]) / last if last else 1.0
    return positions
