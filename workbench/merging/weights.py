"""A parent's weight in a merge: a number, a curve over depth, or filters by tensor name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError

DEFAULT = "*"
"""The filter that matches every tensor name; the last of a weight's filters."""

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")

Curve = tuple[float, ...]


@dataclass(frozen=True)
class Filters:
    """Values by part of a tensor name; the first match counts, and the last entry, `"*"`, matches all.

    Args:
        entries: Pairs of filter and value (a number or a curve).
    """

    entries: tuple[tuple[str, float | Curve], ...]

    def value(self, name: str) -> float | Curve:
        """Return the value of the first filter that is part of a tensor's name."""
        return next(value for part, value in self.entries if part == DEFAULT or part in name)


Weight = float | Curve | Filters


def freeze_weight(value: Any, where: str) -> Weight:
    """Return a weight in its hashable form.

    Args:
        value: A number; a list or array of numbers, which is a curve from the first to the last layer; or a mapping
            from a part of a tensor name to one of these, tried in order, closed by `"*"` for all other tensors.
        where: What an error message calls the weight, e.g. `weights[0]`.

    Returns:
        A float, a tuple of floats, or `Filters`.

    Raises:
        ConfigError: The value is none of these, not finite or empty, or its filters lack the `"*"` at their end.
    """
    if isinstance(value, Filters):
        value = dict(value.entries)
    if isinstance(value, Mapping):
        return _freeze_filters(value, where)
    return _freeze_value(value, where)


def _freeze_filters(value: Mapping[Any, Any], where: str) -> Weight:
    names = list(value)
    if any(not isinstance(name, str) or not name for name in names):
        raise ConfigError(f"{where} has the filters {names}; each is a part of a tensor name, as text. Mend these.")
    if not names or names[-1] != DEFAULT:
        raise ConfigError(
            f'{where} has the filters {names}; the first that matches counts, and "*" for all other tensors comes '
            'last. Add "*": <weight> at the end.'
        )
    if names == [DEFAULT]:
        return _freeze_value(value[DEFAULT], where)
    return Filters(tuple((name, _freeze_value(item, f"{where}[{name!r}]")) for name, item in value.items()))


def _freeze_value(value: Any, where: str) -> float | Curve:
    value = _plain(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return _freeze_number(value, where)
    if not value:
        raise ConfigError(f"{where} is an empty list; a curve over depth needs at least one number. Add one.")
    return tuple(_freeze_number(item, f"{where}[{index}]") for index, item in enumerate(value))


def _plain(value: Any) -> Any:
    # Arrays, and single numbers, of numpy and torch.
    return value.tolist() if hasattr(value, "tolist") else value


def _freeze_number(value: Any, where: str) -> float:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(
            f"{where} is {value!r}; a weight is a finite number, a list of numbers (a curve over depth), or a dict "
            'of filters such as {"mlp": 0.2, "*": 0.5}. Give one of these.'
        )
    return float(value)


def thaw_weight(weight: Weight) -> Any:
    """Return a frozen weight as numbers, lists and dicts, which `freeze_weight` takes back."""
    if isinstance(weight, Filters):
        return {name: thaw_weight(value) for name, value in weight.entries}
    return list(weight) if isinstance(weight, tuple) else weight


def map_weight(function: Callable[[float], float], weight: Weight) -> Weight:
    """Return the weight whose every number is `function` of the given one's; a linear function keeps curves true."""
    if isinstance(weight, Filters):
        return Filters(tuple((name, _map_value(function, value)) for name, value in weight.entries))
    return _map_value(function, weight)


def _map_value(function: Callable[[float], float], value: float | Curve) -> float | Curve:
    return tuple(function(item) for item in value) if isinstance(value, tuple) else function(value)


def numbers_of(weight: Weight) -> list[float]:
    """Return every number that a weight is made of; what it says anywhere lies between the smallest and largest."""
    if isinstance(weight, Filters):
        return [number for _, value in weight.entries for number in numbers_of(value)]
    return list(weight) if isinstance(weight, tuple) else [weight]


def mean_of(values: Any) -> float:
    """Return the mean of every number of a weight, or of several weights."""
    parts = values if isinstance(values, tuple) else (values,)
    numbers = [number for part in parts for number in numbers_of(part)]
    return math.fsum(numbers) / len(numbers)


def weight_at(weight: Weight, name: str, position: float) -> float:
    """Return what a weight says about one tensor.

    Args:
        weight: A frozen weight.
        name: The tensor's name, against which filters are matched as substrings.
        position: The tensor's place in depth, 0 to 1; a curve is read there.
    """
    return curve_at(weight.value(name) if isinstance(weight, Filters) else weight, position)


def curve_at(curve: float | Curve, position: float) -> float:
    """Return a curve's value at a position between 0 and 1, linear between its evenly spaced points."""
    if not isinstance(curve, tuple):
        return curve
    place = position * (len(curve) - 1)
    left = int(place)
    right = min(left + 1, len(curve) - 1)
    part = place - left
    return (1.0 - part) * curve[left] + part * curve[right]


def depth_positions(names: Iterable[str]) -> dict[str, float]:
    """Return each tensor's place in depth, from its name.

    A tensor of layer i of n stands at i / (n-1), and at 1 where n = 1. Every other tensor (embeddings, final norm and
    lm_head) stands at 0. Stacks of layers with different prefixes are counted apart.

    Args:
        names: All tensor names of a model.

    Returns:
        Name to position, in the order given.

    Source: mergekit 0.1.5, the reading of gradients.
    """
    places = {name: _LAYER.search(name) for name in names}
    depths = _depths(places)
    positions = {}
    for name, place in places.items():
        last = depths[name[: place.start()]] - 1 if place else 0
        positions[name] = 0.0 if not place else int(place[1]) / last if last else 1.0
    return positions


def stack_depths(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each stack of a model, by the prefix of its tensors' names."""
    return _depths({name: _LAYER.search(name) for name in names})


def _depths(places: Mapping[str, re.Match[str] | None]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for name, place in places.items():
        if place:
            stack = name[: place.start()]
            depths[stack] = max(depths.get(stack, 0), int(place[1]) + 1)
    return depths
