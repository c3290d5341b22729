"""The one description of a merge; it holds no tensor and opens no file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from workbench.errors import ConfigError
from workbench.merging.weights import Weight, freeze_weight, map_weight, thaw_weight, weight_at

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a merge method asks of its recipe.

    Args:
        fewest: Fewest parents.
        most: Most parents; None where there is no upper end.
        options: The optional recipe fields that the method reads; the others must stay None.
    """

    fewest: int
    most: int | None = None
    options: frozenset[str] = frozenset()


METHODS = {
    "linear": Method(fewest=1, options=frozenset({"normalise"})),
    "slerp": Method(fewest=2, most=2),
}
_METHOD_OPTIONS = ("base", "normalise")


@dataclass(frozen=True, kw_only=True)
class MergeRecipe:
    """Describe a merge: who the parents are, by which rule they are merged, and with which weights.

    A weight is a number; a list of numbers, which is a curve over depth (evenly spaced from the first to the last
    layer, linear in between; embeddings, final norm and lm_head read its first number, the layer of a one-layer model
    its last); or a dict from a part of a tensor name to one of these, where the first match counts and `"*"` at the
    end stands for all other tensors. A tensor that several names share (a tied lm_head) goes by its first name.

    Args:
        parents: Names of models: classroom names, folders or hub ids; kept as a tuple.
        method: `"linear"`: sum_i w_i W_i / sum_i w_i, any number of parents. `"slerp"`: along the great circle from
            the first parent to the second, to t = w_2 / (w_1 + w_2); exactly two parents.
        weights: One weight per parent, kept in a hashable form; None weighs all alike.
        base: The model that task vectors are measured from; neither `linear` nor `slerp` has one.
        normalise: Divide by the sum of the weights; None is the method's habit (`linear`: True).
        dtype: Number format of the parents and of the result, e.g. `"bfloat16"`; None leaves it to whoever loads.
        num_layers: The depth that the recipe was written for, where it says so; None fits any.

    Raises:
        ConfigError: A field breaks one of these rules.

    Source: mergekit 0.1.5 for the reading of curves and filters.
    """

    parents: Sequence[str]
    method: str = "linear"
    weights: Sequence[Any] | None = None
    base: str | None = None
    normalise: bool | None = None
    dtype: str | None = None
    num_layers: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "parents", _freeze_parents(self.parents))
        self._check_method()
        object.__setattr__(self, "weights", _freeze_weights(self.weights, len(self.parents)))
        if self.normalise is not None and not isinstance(self.normalise, bool):
            raise ConfigError(f"normalise={self.normalise!r}; it is True, False, or None for the method's habit.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r}; a merge works in one of {', '.join(DTYPES)}. Give one of these.")
        if self.num_layers is not None and (type(self.num_layers) is not int or self.num_layers < 1):
            raise ConfigError(f"num_layers={self.num_layers!r}; it is the parents' number of layers, at least 1.")
        self._check_sum()

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method={self.method!r}; known methods are {', '.join(METHODS)}. Use one of these.")
        method = METHODS[self.method]
        if len(self.parents) < method.fewest or (method.most and len(self.parents) > method.most):
            wanted = f"exactly {method.most}" if method.most == method.fewest else f"at least {method.fewest}"
            raise ConfigError(
                f"{len(self.parents)} parents {list(self.parents)}; {self.method} merges {wanted}. "
                "Change the list, or use method='linear', which takes any number."
            )
        for name in _METHOD_OPTIONS:
            if getattr(self, name) is not None and name not in method.options:
                raise ConfigError(f"{name}={getattr(self, name)!r}; {self.method} has no use for it. Leave it out.")

    def _check_sum(self) -> None:
        numbers = [weight for weight in self._weights if isinstance(weight, float)]
        if self.normalise is False or len(numbers) < len(self.parents):
            return
        if abs(sum(numbers)) <= 1e-6 * sum(map(abs, numbers)):
            remedy = ", or set normalise=False" if "normalise" in METHODS[self.method].options else ""
            raise ConfigError(
                f"weights={numbers} sum to {sum(numbers):g}; {self.method} divides by that sum. "
                f"Give weights whose sum is not 0{remedy}."
            )

    @property
    def _weights(self) -> tuple[Weight, ...]:
        return tuple(self.weights or ())

    @property
    def ratio(self) -> float | None:
        """The second of two parents' share, w_2 / (w_1 + w_2); None where that is not one number."""
        numbers = [weight for weight in self._weights if isinstance(weight, float)]
        if len(self.parents) != 2 or len(numbers) != 2 or not sum(numbers):
            return None
        return numbers[1] / sum(numbers)

    def weights_at(self, name: str, position: float) -> tuple[float, ...]:
        """Return the weight of each parent for one tensor.

        Args:
            name: The tensor's name.
            position: Its place in depth, as `depth_positions` gives it.
        """
        return tuple(weight_at(weight, name, position) for weight in self._weights)

    def replace(self, **changes: Any) -> MergeRecipe:
        """Return a recipe with some fields changed, checked anew.

        Raises:
            ConfigError: The result breaks a rule, or there is no field of that name.
        """
        _check_fields(changes)
        return replace(self, **changes)

    def with_ratio(self, t: float | Sequence[float] | Mapping[str, Any]) -> MergeRecipe:
        """Return the recipe of two parents with weights 1 - t and t.

        Args:
            t: The second parent's share: a number, a curve, or filters, as for a weight.

        Raises:
            ConfigError: There are not exactly two parents, or `t` is no weight.
        """
        if len(self.parents) != 2:
            raise ConfigError(
                f"with_ratio({t!r}) for {len(self.parents)} parents; it needs two. Use replace(weights=)."
            )
        return self.replace(weights=ratio_weights(t))

    def to_json(self) -> str:
        """Return the recipe as JSON text, without the fields that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {"parents": list(self.parents), "weights": [thaw_weight(weight) for weight in self._weights]}
        return json.dumps({name: value for name, value in values.items() if value is not None}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> MergeRecipe:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: The text is no JSON object, has an unknown field, or breaks a rule.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"The recipe is not JSON ({error}). Pass the text that to_json() returned.") from error
        if not isinstance(values, dict) or "parents" not in values:
            raise ConfigError(
                f"The recipe is {text[:60]!r}; it is a JSON object with 'parents'. Pass what to_json() returned."
            )
        _check_fields(values)
        return cls(**values)

    def to_yaml(self, *, absolute: bool = True) -> str:
        """Return the recipe as a mergekit configuration.

        Args:
            absolute: Write folders and classroom models as absolute paths. mergekit asks the model hub about a
                relative path of two parts, so False is only for reading.

        Raises:
            ConfigError: mergekit cannot express the recipe (a slerp whose weights' sum changes over depth, or whose
                two parents have different filters).
            ModelError: `absolute`, and a parent is neither a model here nor of the form of a hub id.
        """
        from workbench.merging.mergekit_yaml import write_yaml

        return write_yaml(self, absolute=absolute)

    @classmethod
    def from_yaml(cls, text: str) -> MergeRecipe:
        """Read a mergekit configuration of whole models.

        Raises:
            ConfigError: The text is no such configuration, or has a part that a recipe cannot hold; the message
                names it.
        """
        from workbench.merging.mergekit_yaml import read_yaml

        return cls(**read_yaml(text))


def ratio_weights(t: Any) -> tuple[Weight, Weight]:
    """Return the weights 1 - t and t of two parents; `t` is a number, a curve or filters."""
    second = freeze_weight(t, "t")
    # Rounded, so that 1 - 0.7 is written as 0.3.
    return map_weight(lambda value: round(1.0 - value, 15), second), second


def _check_fields(values: Mapping[str, Any]) -> None:
    names = [field.name for field in fields(MergeRecipe)]
    for name in values:
        if name not in names:
            raise ConfigError(f"A recipe has no field {name!r}; its fields are {', '.join(names)}. Use one of these.")


def _freeze_parents(parents: Any) -> tuple[str, ...]:
    if isinstance(parents, str) or not isinstance(parents, Sequence):
        raise ConfigError(f"parents={parents!r}; they are a list of model names. Put the name into a list.")
    names = tuple(str(name) for name in parents)
    if not names or len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"parents={list(names)}; they are a list of different model names. Name each once.")
    return names


def _freeze_weights(weights: Any, count: int) -> tuple[Weight, ...]:
    if weights is None:
        return (1.0 / count,) * count
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != count:
        raise ConfigError(
            f"weights={weights!r} for {count} parents; they are a list with one weight per parent, in the order of "
            "the parents. Give one for each; a curve is a list within that list."
        )
    return tuple(freeze_weight(weight, f"weights[{index}]") for index, weight in enumerate(weights))
