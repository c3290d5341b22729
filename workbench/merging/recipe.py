"""The one description of a merge; it holds no tensor and opens no file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from workbench.errors import ConfigError
from workbench.merging.weights import Weight, freeze_weight, is_filters, thaw_weight, weight_at

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Method:
    """What a merge method asks of its recipe.

    Args:
        parents: Fewest and most parents; None where there is no upper end.
        options: Names of the optional recipe fields that the method reads; all others must stay None.
    """

    parents: tuple[int, int | None]
    options: frozenset[str] = frozenset()


METHODS = {
    "linear": Method(parents=(1, None), options=frozenset({"normalise"})),
    "slerp": Method(parents=(2, 2)),
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
        parents: Names of models: classroom names, folders or hub ids.
        method: `"linear"`: sum_i w_i W_i / sum_i w_i, any number of parents. `"slerp"`: along the great circle from
            the first parent to the second, to t = w_2 / (w_1 + w_2); exactly two parents.
        weights: One weight per parent; None weighs all alike.
        base: The model that task vectors are measured from; neither `linear` nor `slerp` has one.
        normalise: Divide by the sum of the weights; None is the method's habit (`linear`: True).
        dtype: Number format of the parents and of the result, e.g. `"bfloat16"`; None leaves it to whoever loads.
        num_layers: The depth that the recipe was written for, where it says so; None fits any.

    Raises:
        ConfigError: A field breaks one of these rules.

    Source: mergekit 0.1.5 for the reading of curves and filters.
    """

    parents: tuple[str, ...]
    method: str = "linear"
    weights: tuple[Weight, ...] | None = None
    base: str | None = None
    normalise: bool | None = None
    dtype: str | None = None
    num_layers: int | None = None

    def __post_init__(self):
        _set(self, "parents", _freeze_parents(self.parents))
        self._check_method()
        _set(self, "weights", self._frozen_weights())
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
        fewest, most = METHODS[self.method].parents
        if len(self.parents) < fewest or (most is not None and len(self.parents) > most):
            wanted = f"exactly {most}" if fewest == most else f"at least {fewest}"
            raise ConfigError(
                f"{len(self.parents)} parents {list(self.parents)}; {self.method} merges {wanted}. "
                "Change the list, or use method='linear', which takes any number."
            )
        for name in _METHOD_OPTIONS:
            if getattr(self, name) is not None and name not in METHODS[self.method].options:
                raise ConfigError(f"{name}={getattr(self, name)!r}; {self.method} has no use for {name}. Leave it out.")

    def _frozen_weights(self) -> tuple[Weight, ...]:
        weights = self.weights
        if weights is None:
            return (1.0 / len(self.parents),) * len(self.parents)
        if (
            isinstance(weights, (str, Mapping))
            or not isinstance(weights, Sequence)
            or len(weights) != len(self.parents)
        ):
            raise ConfigError(
                f"weights={weights!r} for {len(self.parents)} parents; they are a list with one weight per parent, "
                "in the order of the parents. A curve is a list within that list."
            )
        return tuple(freeze_weight(weight, f"weights[{index}]") for index, weight in enumerate(weights))

    def _check_sum(self) -> None:
        if self.normalise is False or any(not isinstance(weight, float) for weight in self._weights):
            return
        total, size = sum(self._weights), sum(abs(w) for w in self._weights)  # pyright: ignore
        if abs(total) <= 1e-6 * size:
            remedy = ", or set normalise=False" if "normalise" in METHODS[self.method].options else ""
            raise ConfigError(
                f"weights={list(self._weights)} sum to {total:g}; {self.method} divides by that sum. "
                f"Give weights whose sum is not 0{remedy}."
            )

    @property
    def _weights(self) -> tuple[Weight, ...]:
        assert self.weights is not None
        return self.weights

    @property
    def ratio(self) -> float | None:
        """The second of two parents' share, w_2 / (w_1 + w_2); None for other numbers of parents, curves and filters."""
        first, *others = self._weights
        if len(others) != 1 or not isinstance(first, float) or not isinstance(others[0], float):
            return None
        return others[0] / (first + others[0]) if first + others[0] else None

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
        unknown = sorted(set(changes) - {field.name for field in fields(self)})
        if unknown:
            raise ConfigError(f"No field {unknown[0]!r} in a recipe; it has {', '.join(f.name for f in fields(self))}.")
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
        second = freeze_weight(t, "t")
        return self.replace(weights=(_one_minus(second), second))

    def to_json(self) -> str:
        """Return the recipe as JSON text, without the fields that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["weights"] = [thaw_weight(weight) for weight in self._weights]
        values["parents"] = list(self.parents)
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
            raise ConfigError(f"The recipe is {text[:60]!r}; it is a JSON object with at least 'parents'.")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"No field {unknown[0]!r} in a recipe; it has {', '.join(f.name for f in fields(cls))}.")
        return cls(**values)

    def to_yaml(self, *, absolute: bool = True) -> str:
        """Return the recipe as a mergekit configuration.

        Args:
            absolute: Write folders and classroom models as absolute paths. mergekit asks the model hub about a
                relative path of two parts, so False is only for reading.

        Raises:
            ConfigError: mergekit cannot express the recipe (a slerp whose weights' sum changes over depth, or whose
                two parents have different filters).
            ModelError: `absolute` and a parent is neither a model here nor of the form of a hub id.
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


def _set(recipe: MergeRecipe, name: str, value: Any) -> None:
    object.__setattr__(recipe, name, value)


def _freeze_parents(parents: Any) -> tuple[str, ...]:
    if isinstance(parents, str) or not isinstance(parents, Sequence):
        raise ConfigError(f"parents={parents!r}; they are a list of model names. Put the name into a list.")
    names = tuple(str(name) for name in parents)
    if not names or len(set(names)) < len(names) or "" in names:
        raise ConfigError(f"parents={list(names)}; they are a list of different, non-empty model names.")
    return names


def _one_minus(weight: Weight) -> Weight:
    if isinstance(weight, float):
        return 1.0 - weight
    if is_filters(weight):
        return tuple((name, _one_minus(leaf)) for name, leaf in weight)  # pyright: ignore
    return tuple(1.0 - value for value in weight)  # pyright: ignore
