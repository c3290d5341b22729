"""The one description of a merge; it holds no tensor and opens no file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from workbench.errors import ConfigError
from workbench.merging.weights import Weight, freeze_weight, map_weight, numbers_of, thaw_weight, weight_at
from workbench.ops.rule_settings import RULES, Rule, RuleSettings, check_rule

METHODS = RULES
"""Every merge method by name, with what it asks for."""

DTYPES = ("float32", "bfloat16", "float16")

OWN = ("density", "gamma", "epsilon")
"""The settings that each parent may have a value of its own of, from 0 to 1."""

SHARED = {
    "lambda_": (-math.inf, math.inf),
    "t": (0, math.inf),
    "select_topk": (0, 1),
}
"""The settings with one value for all parents, each with its range."""

_OPTIONS = ("base", *OWN, *SHARED, "vectors", "normalise", "rescale", "seed")


def options_of(method: str) -> frozenset[str]:
    """Return the optional fields of a recipe that a method reads; the others must be left out."""
    options = RULES[method].options - {"threshold"}
    # The place on the path is the second parent's share, so that all methods have the same sliders.
    options -= {"t"} if method in ("slerp", "nuslerp") else set()
    return options if RULES[method].base == "unused" else options | {"base"}


@dataclass(frozen=True, kw_only=True)
class MergeRecipe:
    """Describe a merge: who the parents are, by which rule they are merged, and with which weights.

    A weight is a number; a list of numbers, which is a curve over depth (evenly spaced from the first to the last
    layer, linear in between; embeddings, final norm and lm_head read its first number, the layer of a one-layer model
    its last); or a dict from a part of a tensor name to one of these, where the first match counts and `"*"` at the
    end stands for all other tensors. A tensor that several names share (a tied lm_head) goes by its first name.

    The methods and the fields that they read are in `ops.rule_settings.RULES`, their formulas in `ops.rules`. `linear`
    is sum_i w_i W_i / sum_i w_i; `slerp` goes along the great circle from the first parent to the second, to
    t = w_2 / (w_1 + w_2); `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`, `della`, `della_linear`,
    `breadcrumbs` and `breadcrumbs_ties` add up what the parents add to `base`; `nuslerp`, `multislerp`, `karcher`,
    `model_stock`, `sce`, `nearswap` and `arcee_fusion` are there too.

    Args:
        parents: Names of models: classroom names, folders or hub ids; kept as a tuple. Where there is a base, folders
            of adapters that PEFT saved can stand beside or instead of whole models.
        method: One of the above.
        weights: One weight per parent, kept in a hashable form; None weighs all alike.
        base: The model that task vectors are measured from; no parent.
        density: The share of each task vector's entries that is kept, 0 to 1: a number or a dict of filters for all
            parents, or a list with one for each, of the forms of a weight. None keeps all.
        gamma: `breadcrumbs`, `breadcrumbs_ties`: the share of the largest entries that is dropped; None is 0.01. Of the
            forms of `density`.
        epsilon: `della`, `della_linear`: how far the keep-probability moves with the magnitude; None is 0.15. Of the
            forms of `density`.
        lambda_: Factor of the merged task vector; None is 1.
        t: `nearswap`: the difference up to which an entry is swapped; it must be given there.
        select_topk: `sce`: the share of entries of largest variance that is merged; None is 1. `lambda_`, `t` and
            this are of the forms of a weight.
        vectors: `nuslerp`: `"last"` moves every vector along a tensor's last dimension on an arc of its own, `"first"`
            every one along the first; None moves the tensor as one vector.
        normalise: Divide by the sum of the weights; None is the method's habit.
        rescale: Make up for dropped entries by a factor; None is the method's habit.
        seed: Seed of the random masks of `dare_*` and `della*`.
        semantics: `"mergekit"`, `"paper"` or `"peft"`: whose rule counts where the three differ, see `ops.rules`.
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
    density: Any = None
    gamma: Any = None
    epsilon: Any = None
    lambda_: Any = None
    t: Any = None
    select_topk: Any = None
    vectors: str | None = None
    normalise: bool | None = None
    rescale: bool | None = None
    seed: int = 0
    semantics: str = "mergekit"
    dtype: str | None = None
    num_layers: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "parents", _freeze_parents(self.parents))
        self._check_method()
        object.__setattr__(self, "weights", _freeze_weights(self.weights, len(self.parents)))
        for name in ("normalise", "rescale"):
            if (value := getattr(self, name)) is not None and not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}; it is True, False, or None for the method's habit.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r}; a merge works in one of {', '.join(DTYPES)}. Give one of these.")
        if self.num_layers is not None and (type(self.num_layers) is not int or self.num_layers < 1):
            raise ConfigError(f"num_layers={self.num_layers!r}; it is the parents' number of layers, at least 1.")
        self._freeze_settings()
        self._check_weights()
        check_rule(self.method, self._plain_settings(), parents=len(self.parents), base=self.base is not None)

    def _check_method(self) -> None:
        if self.method not in RULES:
            raise ConfigError(f"method={self.method!r}; known methods are {', '.join(RULES)}. Use one of these.")
        for name in _OPTIONS:
            if getattr(self, name) != _DEFAULTS[name] and name not in options_of(self.method):
                raise ConfigError(f"{name}={getattr(self, name)!r}; {self.method} has no use for it. Leave it out.")
        if self.base in self.parents:
            raise ConfigError(
                f"base={self.base!r} is one of the parents, so that its task vector is 0. Take it out of the parents."
            )
        rule = self.rule
        if len(self.parents) < rule.fewest or (rule.most and len(self.parents) > rule.most):
            wanted = f"exactly {rule.most}" if rule.most == rule.fewest else f"at least {rule.fewest}"
            raise ConfigError(
                f"{len(self.parents)} parents {list(self.parents)}; {self.method} merges {wanted}"
                f"{' besides its base' if rule.base == 'required' else ''}. Change the list, or use method='linear', "
                "which takes any number."
            )

    def _freeze_settings(self) -> None:
        for name in OWN:
            if (value := getattr(self, name)) is not None:
                one = not isinstance(value, str) and isinstance(value, Sequence)
                values = value if one else [value] * len(self.parents)
                frozen = _freeze_weights(values, len(self.parents), name)
                object.__setattr__(self, name, frozen)
                for index, weight in enumerate(frozen):
                    _check_range(f"{name}[{index}]", weight, 0, 1)
        for name, (low, high) in SHARED.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, freeze_weight(value, name))
                _check_range(name, getattr(self, name), low, high)

    def _check_weights(self) -> None:
        if not self.rule.weighted:
            if len(set(self._weights)) > 1 or not isinstance(self._weights[0], float):
                raise ConfigError(
                    f"weights={[thaw_weight(weight) for weight in self._weights]}; {self.method} reads no weights. "
                    "Leave them out."
                )
            return
        numbers = [weight for weight in self._weights if isinstance(weight, float)]
        if self.method in ("slerp", "nuslerp") and len(numbers) == 2 and abs(sum(numbers)) <= 1e-6 * abs(numbers[0]):
            raise ConfigError(
                f"weights={numbers} sum to {sum(numbers):g}; {self.method} divides by that sum. "
                "Give weights whose sum is not 0."
            )

    def _plain_settings(self) -> RuleSettings:
        """The settings that are plain numbers, with the rule's defaults for curves and filters, to check them once."""
        numbers = all(isinstance(weight, float) for weight in self._weights)
        settings = dict(self._flags)
        for name in SHARED:
            if isinstance(value := getattr(self, name), float):
                settings[name] = value
        if self.method == "nearswap" and self.t is not None:
            settings.setdefault("t", 1.0)
        for name in OWN:
            if (values := getattr(self, name)) and all(isinstance(value, float) for value in values):
                settings[name] = values
        weights: Any = self._weights if numbers else (1.0,) * len(self.parents)
        return RuleSettings(weights=weights, **settings)

    @property
    def rule(self) -> Rule:
        """What the method is made of."""
        return RULES[self.method]

    @property
    def _flags(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("normalise", "rescale", "seed", "semantics", "vectors")}

    @property
    def entrywise(self) -> bool:
        """Whether no tensor has one number for each parent, since its entries or vectors are weighed by themselves."""
        return self.rule.entrywise or self.vectors is not None

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

    def settings_at(self, name: str, position: float, *, threshold: Sequence[float] | None = None) -> RuleSettings:
        """Return what the rule is told at one tensor; every executor asks here.

        Args:
            name: The tensor's name.
            position: Its place in depth, as `depth_positions` gives it.
            threshold: As in `RuleSettings`, for TIES over the whole model.

        Raises:
            ConfigError: The settings break a rule at this tensor.
        """
        told = dict(self._flags)
        for key in SHARED:
            if (value := getattr(self, key)) is not None:
                told[key] = weight_at(value, name, position)
        for key in OWN:
            if (values := getattr(self, key)) is not None:
                told[key] = [weight_at(value, name, position) for value in values]
        return RuleSettings(weights=self.weights_at(name, position), threshold=threshold, name=name, **told)

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

    def with_method(self, method: str, **changes: Any) -> MergeRecipe:
        """Return the recipe under another method, without the settings that this one has no use for.

        Args:
            method: The method; one that reads no weights weighs all parents alike.
            **changes: Other fields to change with it.

        Raises:
            ConfigError: The result breaks a rule, e.g. lacks the base that the method needs.
        """
        if method not in RULES:
            return self.replace(method=method)
        dropped = {name: _DEFAULTS[name] for name in _OPTIONS if name not in options_of(method)}
        if not RULES[method].weighted:
            dropped["weights"] = None
        return self.replace(**(dropped | {"method": method} | changes))

    def to_json(self) -> str:
        """Return the recipe as JSON text, without the fields that were left out."""
        values = {name: getattr(self, name) for name, default in _DEFAULTS.items() if getattr(self, name) != default}
        for name in ("weights", *OWN):
            if values.get(name) is not None:
                values[name] = [thaw_weight(weight) for weight in values[name]]
        values |= {name: thaw_weight(values[name]) for name in SHARED if name in values}
        return json.dumps({"parents": list(self.parents), "method": self.method} | values, ensure_ascii=False)

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
                two parents have different filters; a seed; semantics other than its own).
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


_DEFAULTS = {field.name: field.default for field in fields(MergeRecipe) if field.name != "parents"}


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


def _freeze_weights(weights: Any, count: int, field: str = "weights") -> tuple[Weight, ...]:
    if weights is None:
        return (1.0 / count,) * count
    if isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != count:
        raise ConfigError(
            f"{field}={weights!r} for {count} parents; they are a list with one {field.removesuffix('s')} per parent, "
            "in the order of the parents. Give one for each; a curve is a list within that list."
        )
    return tuple(freeze_weight(weight, f"{field}[{index}]") for index, weight in enumerate(weights))


def _check_range(where: str, weight: Weight, low: float, high: float) -> None:
    for number in numbers_of(weight):
        if not low <= number <= high:
            bounds = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise ConfigError(f"{where} has the value {number:g}; it is {bounds}. Give one in that range.")
