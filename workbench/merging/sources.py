"""Whole models and adapters laid side by side, tensor by tensor, as the parents of a merge in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workbench.deltas import Delta
from workbench.errors import ConfigError, MergeError
from workbench.merging.parents import check_fit, place, weight_tensors
from workbench.merging.recipe import DTYPES
from workbench.merging.vocabulary import align_models
from workbench.models import load_model
from workbench.paths import adapter_folder

Parent = PreTrainedModel | Delta

Group = tuple[list[Tensor], Tensor | None]
"""One tensor of each parent, and of the base where there is one; pristine, to be read only."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """The pristine parents, and the base.

    Args:
        parents: Name to a whole model, or to an adapter's updates.
        base: The base's name and model, where there is one.
        tokenizer: The one of all of them.
    """

    parents: dict[str, Parent]
    base: tuple[str, PreTrainedModel] | None
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def first(self) -> PreTrainedModel:
        """The first whole model, whose settings the merge takes."""
        whole = [parent for parent in self.parents.values() if isinstance(parent, PreTrainedModel)]
        return whole[0] if whole else self.base[1]  # pyright: ignore[reportOptionalSubscript]

    def model(self, name: str) -> PreTrainedModel:
        """Return a parent as a model; that of an adapter is made now, a copy of the base."""
        parent = self.parents[name]
        if isinstance(parent, PreTrainedModel):
            return parent
        model = copy.deepcopy(self.first if self.base is None else self.base[1])
        parent.apply_to(model)
        return model

    @cached_property
    def columns(self) -> dict[str, dict[str, Tensor]]:
        """The floating-point tensors of each parent and of the base; adapters' are multiplied out, once, in float32.

        A tensor that an adapter does not change is the base's own.
        """
        before = {} if self.base is None else float_tensors(self.base[1])
        own = {
            name: float_tensors(parent) if isinstance(parent, PreTrainedModel) else _moved(parent, before)
            for name, parent in self.parents.items()
        }
        return own | ({} if self.base is None else {self.base[0]: before})

    def tensors(self, parents: Sequence[str], base: str | None) -> dict[str, Group]:
        """Return for every floating-point tensor what these parents have, and what the base has, if one is named."""
        origins = {} if base is None else self.columns[base]
        names = self.columns[next(iter(self.parents))]
        return {name: ([self.columns[parent][name] for parent in parents], origins.get(name)) for name in names}


def float_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the floating-point tensors of a model's checkpoint, each once, under its first name."""
    state = model.state_dict()
    return {name: state[name] for name in weight_tensors(model) if state[name].is_floating_point()}


def _moved(delta: Delta, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    moved = dict(before)
    for name in delta.names:
        if name not in before or delta.shape(name) != tuple(before[name].shape):
            raise MergeError(
                f"The adapter {delta.label!r} changes tensor {name!r} of shape {delta.shape(name)}, which the base "
                "does not have like that. Give the base that the adapter was trained on."
            )
        # Kept in float32: in the base's format a small update would be rounded away.
        moved[name] = delta.tensor(name, device=before[name].device).add_(before[name])
    return moved


def load_sources(
    names: Sequence[str], base: str | None, device: Any, dtype: Any, vocabulary: str | None = None
) -> Sources:
    """Load parents by name, adapters from the folders that PEFT saved, and the base.

    Args:
        names: The parents'.
        base: The base's name, where there is one.
        device: As in `load_model`.
        dtype: As in `load_model`.
        vocabulary: What to do where tokenizers differ; see `align_vocabularies`.

    Raises:
        ModelError: One cannot be loaded.
        MergeError: They do not fit each other.
        ConfigError: There is an adapter and no base.
    """
    folders = {name: adapter_folder(name) for name in names}
    adapters = [name for name in names if (folders[name] / "adapter_config.json").is_file()]
    loaded = {
        name: load_model(name, device=device, dtype=dtype)
        for name in (*names, *([base] if base else ()))
        if name not in adapters
    }
    _check_base(adapters, base)
    models = {name: model for name, (model, _) in loaded.items()}
    tokenizer = align_models(models, {name: own for name, (_, own) in loaded.items()}, vocabulary, base=base)
    check_fit(models)
    held: Any = (base, models.pop(base)) if base else None
    parents = {
        name: Delta.from_adapter(folders[name], base=held[1]) if name in adapters else models[name] for name in names
    }
    return Sources(parents=parents, base=held, tokenizer=tokenizer)


def adopt_sources(
    names: Sequence[str],
    models: Sequence[Parent],
    base: tuple[str, PreTrainedModel] | None,
    tokenizer: PreTrainedTokenizerBase | None,
    device: Any,
    dtype: Any,
) -> Sources:
    """Take parents that are loaded already; see `LiveMerge`.

    Raises:
        ConfigError: Their number is not that of the names, the dtype is unknown, or there is an adapter and no base.
        MergeError: They do not fit each other.
    """
    if len(models) != len(names):
        raise ConfigError(f"{len(models)} models for the {len(names)} parents {list(names)}. Pass one for each.")
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r}; a merge works in one of {', '.join(DTYPES)}. Give one of these.")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    device = None if device is None else torch.device(device)
    parents = {
        name: place(model, device, dtype) if isinstance(model, PreTrainedModel) else model
        for name, model in zip(names, models)
    }
    _check_base([name for name in names if isinstance(parents[name], Delta)], base and base[0])
    base = None if base is None else (base[0], place(base[1], device, dtype))
    whole = {name: parent for name, parent in parents.items() if isinstance(parent, PreTrainedModel)}
    check_fit(whole if base is None else whole | dict([base]))
    return Sources(parents=parents, base=base, tokenizer=tokenizer)


def _check_base(adapters: Sequence[str], base: str | None) -> None:
    if adapters and base is None:
        raise ConfigError(
            f"The parent {adapters[0]!r} is an adapter, which adds to a base, and the recipe has none. Give base=, and "
            "a method that reads it, such as task_arithmetic."
        )
