"""A weight update as a value: read from an adapter or a checkpoint, weighted, summed and applied without drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from workbench.deltas.adapter import change, read_adapter
from workbench.deltas.terms import Dense, Factors, Term, concatenated, total, wide
from workbench.deltas.weights import Source, Weights, check_same_tensors, open_weights
from workbench.errors import ConfigError, MergeError, ModelError
from workbench.paths import adapter_folder


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Delta:
    """What is added to a base: delta = theta - theta_base, tensor by tensor.

    Low-rank updates stay factored until a tensor is asked for; what needs the base's weights reads them again then.
    The base is held, not copied: leave its weights alone, and give the same model or folder to all deltas that are
    to be combined.

    Made by `Delta.from_adapter`, `Delta.between` and `combine`.
    """

    label: str
    base: Weights
    terms: Mapping[str, tuple[Term, ...]]

    @classmethod
    def from_adapter(cls, folder: str | Path, *, base: Source) -> Delta:
        """Read a LoRA, rsLoRA, DoRA or AdaLoRA adapter that PEFT has saved; `read_adapter` has the formulas.

        Args:
            folder: With adapter_config.json and adapter_model.safetensors; or `classroom/skills/<skill>`.
            base: The bare transformers model that it was trained on, or that model's folder.

        Raises:
            ModelError: The adapter or the base cannot be read, or the adapter is no weight update.
            MergeError: The adapter does not fit the base, or changes one of two tied tensors.
        """
        folder = adapter_folder(folder)
        if not folder.is_dir():
            raise ModelError(f"{str(folder)!r} is not a folder here. Pass the folder of an adapter that PEFT saved.")
        weights = open_weights(base)
        return cls(label=str(folder), base=weights, terms=read_adapter(folder, weights))

    @classmethod
    def between(cls, tuned: Source, base: Source) -> Delta:
        """Return what a whole checkpoint adds to a base, theta_tuned - theta_base.

        Args:
            tuned: A transformers model, held and not copied, or a model's folder, read tensor by tensor when asked.
            base: The same for the base.

        Raises:
            ModelError: A folder cannot be read.
            MergeError: The two have different tensors or shapes.
        """
        after, before = open_weights(tuned), open_weights(base)
        check_same_tensors(after, before, "Choose the base that the checkpoint was trained from")
        return cls(
            label=after.label,
            base=before,
            terms={name: (_difference(after, before, name),) for name in before.names},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are changed, by their names in the base."""
        return tuple(self.terms)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a changed tensor.

        Raises:
            MergeError: The delta does not change this tensor.
        """
        self._terms(name)
        return self.base.shapes[name]

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return `(B, A)` with B @ A = delta, scale included, or None where the update is not low-rank.

        Returns:
            B `(rows, R)` and A `(R, columns)` in float32 or wider; R is the sum of the ranks of all that was combined.

        Raises:
            MergeError: The delta does not change this tensor.
        """
        terms = self._terms(name)
        low_rank = [term for term in terms if isinstance(term, Factors)]
        return concatenated(low_rank) if len(low_rank) == len(terms) else None

    def tensor(self, name: str, *, device: str | torch.device | None = None) -> Tensor:
        """Return the update of one tensor, formed now.

        Args:
            name: One of `names`.
            device: Where it shall be; None is where the adapter, or the checkpoint's base, is.

        Returns:
            The base tensor's shape, in float32, or float64 where a part has it.

        Raises:
            MergeError: The delta does not change this tensor, or the result is not finite.
        """
        result = total(self._terms(name), None if device is None else torch.device(device))
        if not torch.isfinite(result).all():
            raise MergeError(
                f"What {self.label!r} adds to tensor {name!r} holds NaN or infinity; merging needs finite numbers. "
                "One of the models is broken there: use an earlier checkpoint."
            )
        return result

    def merged(self, name: str, weight: float = 1.0) -> Tensor:
        """Return base + weight * delta for one tensor, rounded once to the base's format, on the base's device.

        Args:
            name: One of `names`.
            weight: Any finite number; a negative one takes the update away from the base.

        Raises:
            MergeError: The delta does not change this tensor, or the result is not finite.
            ConfigError: The weight is not finite.
        """
        _check_weight(weight)
        before = self.base.read(name) if name in self.terms else self._missing(name)
        result = (wide(before) + self.tensor(name, device=before.device) * weight).to(before.dtype)
        if not torch.isfinite(result).all():
            source = "the base" if not torch.isfinite(before).all() else f"the sum in {before.dtype}"
            raise MergeError(
                f"Tensor {name!r} with {weight:g} times {self.label!r} holds NaN or infinity, from {source}. Use a "
                "smaller weight, or a base that is whole."
            )
        return result

    def apply_to(self, target: torch.nn.Module | Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Set the changed tensors of a copy of the base to base + weight * delta, in place.

        Each call starts from the base, so that nothing drifts and weight 0 is the base bit for bit. Other tensors are
        left as they are. When a tensor turns out not to be finite, those before it are already written.

        Args:
            target: A model or state dict of the base's shape, not the base itself.
            weight: As in `merged`.

        Raises:
            MergeError: The target lacks a tensor, has another shape, or is the base; or a result is not finite.
            ConfigError: The weight is not finite.
        """
        _check_weight(weight)
        state = target.state_dict() if isinstance(target, torch.nn.Module) else target
        for name in self.names:
            self._check_target(name, state)
        with torch.no_grad():
            for name in self.names:
                state[name].copy_(self.merged(name, weight))

    def __repr__(self) -> str:
        low_rank = [factors for factors in self.terms.values() if all(isinstance(term, Factors) for term in factors)]
        return (
            f"Delta({self.label!r} on {self.base.label!r}: {len(self.terms)} tensors, {len(low_rank)} of them low-rank)"
        )

    def _terms(self, name: str) -> tuple[Term, ...]:
        return self.terms[name] if name in self.terms else self._missing(name)

    def _missing(self, name: str):
        raise MergeError(
            f"{self.label!r} does not change tensor {name!r}; it changes {len(self.terms)}, e.g. "
            f"{', '.join(map(repr, self.names[:2]))}. Choose one of delta.names."
        )

    def _check_target(self, name: str, state: Mapping[str, Tensor]) -> None:
        shape = tuple(state[name].shape) if name in state else None
        if shape != self.base.shapes[name]:
            seen = f"has shape {shape}" if shape is not None else "is missing"
            raise MergeError(
                f"Tensor {name!r} {seen} in the target, it has shape {self.base.shapes[name]} in {self.base.label!r}. "
                "Apply to a copy of the base."
            )
        held = isinstance(self.base.origin, torch.nn.Module)
        if held and self.base.fetch(name).data_ptr() == state[name].data_ptr():
            raise MergeError(
                f"The target is the base itself (tensor {name!r}), from which every move is computed anew. Apply to "
                "copy.deepcopy(base), or open the delta with the base's folder."
            )


def combine(deltas: Sequence[Delta], weights: Sequence[float]) -> Delta:
    """Return sum_i w_i delta_i, exact in update space: factors are put side by side, nothing is approximated.

    A tensor that only some of the deltas change is changed by those. With weight 0 a delta keeps its names, so that
    `apply_to` also takes back what an earlier weight had written.

    Args:
        deltas: At least one, all of the same base model or folder.
        weights: One finite number for each, of any sign and sum.

    Raises:
        ConfigError: No delta, another number of weights, or a weight that is not finite.
        MergeError: The deltas have different bases.
    """
    if not deltas or len(deltas) != len(weights):
        raise ConfigError(
            f"{len(weights)} weights for {len(deltas)} deltas. Pass at least one delta, and one weight each."
        )
    for delta in deltas:
        if delta.base.origin is not deltas[0].base.origin and delta.base.origin != deltas[0].base.origin:
            raise MergeError(
                f"{deltas[0].label!r} is on the base {deltas[0].base.label!r}, {delta.label!r} on "
                f"{delta.base.label!r}; updates add up only on one base. Open all with the same model or folder."
            )
    terms: dict[str, tuple[Term, ...]] = {}
    for delta, weight in zip(deltas, weights):
        _check_weight(weight)
        for name, parts in delta.terms.items():
            scaled = tuple(replace(part, scale=part.scale * weight) for part in parts)
            terms[name] = (*terms.get(name, ()), *scaled)
    label = " + ".join(f"{weight:g} * {delta.label}" for delta, weight in zip(deltas, weights))
    return Delta(label=label, base=deltas[0].base, terms=terms)


def _difference(after: Weights, before: Weights, name: str) -> Term:
    return Dense(read=partial(change, partial(after.read, name), before, name))


def _check_weight(weight: float) -> None:
    if not math.isfinite(weight):
        raise ConfigError(f"The weight {weight!r} is not finite. Pass a plain number; 0 leaves the base as it is.")
