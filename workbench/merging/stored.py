"""The parents of a merge where they lie: folders of safetensors, read tensor by tensor and never loaded whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from workbench.deltas.delta import Delta
from workbench.deltas.weights import Weights, check_same_tensors, open_weights
from workbench.errors import MergeError, ModelError
from workbench.merging.parents import check_settings
from workbench.models import model_folder, open_folder
from workbench.paths import read_json_object

_MERGEABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A parent on the disk.

    Args:
        name: As the recipe calls it.
        folder: With the configuration and the tokenizer; for an adapter that of its base.
        config: The transformers configuration.
        weights: Its tensors; for an adapter those of its base.
        files: What the weights are read from.
        delta: What an adapter adds.
    """

    name: str
    folder: Path
    config: Any
    weights: Weights
    files: tuple[Path, ...]
    delta: Delta | None = None

    def plain(self, name: str) -> Tensor:
        """Return a tensor as it is stored, mapped from its file: pages are read as they are touched.

        Raises:
            ModelError: The file is gone or damaged.
        """
        try:
            return self.weights.fetch(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"Tensor {name!r} of {self.name!r} can no longer be read ({error}). Leave the parents in place until "
                "the merge is written; what is finished is kept, so call again with the same arguments."
            ) from error

    def read(self, name: str, dtype: torch.dtype, part: slice | None = None) -> Tensor:
        """Return a tensor in a format; one that an adapter changes in float32, lest its update be rounded away.

        Args:
            name: The tensor's name.
            dtype: The format.
            part: Which of its elements, as a flat tensor; None is the whole.

        Raises:
            ModelError: The file is gone or damaged.
        """
        tensor = self.plain(name)
        if self.delta is not None and name in self.delta.terms:
            tensor = self.delta.tensor(name).add_(tensor.to(dtype))
            return tensor if part is None else tensor.view(-1)[part]
        return (tensor if part is None else tensor.reshape(-1)[part]).to(dtype)


def open_stored(name: str, base: str | None = None) -> Stored:
    """Look at a parent: a model, or the folder of an adapter that PEFT has saved.

    Args:
        name: A model's name as in `load_model`, or an adapter's folder.
        base: The model that an adapter changes; None takes the one that the adapter names.

    Raises:
        ModelError: It cannot be read, or is quantised.
        MergeError: An adapter does not fit its base, or a tied tensor is stored twice with different numbers.
    """
    place = model_folder(name)
    if isinstance(place, Path) and (place / "adapter_config.json").is_file() and not (place / "config.json").is_file():
        return _open_adapter(name, place, base)
    folder, config = open_folder(name)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{name!r} is quantised, and its stored numbers are codes that cannot be averaged. Use the model as it was "
            "before, e.g. in bfloat16."
        )
    weights = replace(open_weights(folder), label=name)
    _check_ties(weights)
    return Stored(name=name, folder=folder, config=config, weights=weights, files=tuple(folder.glob("*.safetensors")))


def _open_adapter(name: str, folder: Path, base: str | None) -> Stored:
    base = base or read_json_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{name!r} is an adapter that names no base model. Give the recipe its base: base='...'.")
    under = open_stored(str(base))
    delta = Delta.from_adapter(folder, base=under.folder)
    return replace(under, name=name, files=(*under.files, *folder.glob("*.safetensors")), delta=delta)


def _check_ties(weights: Weights) -> None:
    for group in dict.fromkeys(weights.tied.values()):
        stored = [name for name in group if name in weights.shapes]
        if any(not torch.equal(weights.fetch(stored[0]), weights.fetch(other)) for other in stored[1:]):
            raise MergeError(
                f"The configuration of {weights.label!r} ties {stored[0]!r} and {stored[1]!r}, but it holds different "
                "numbers for them. Set tie_word_embeddings to false in its config.json, and in the other parents'."
            )


def check_stored(parents: Mapping[str, Stored], *, dtype: torch.dtype | None, free: frozenset[str]) -> None:
    """Compare each parent with the first: architecture, tensors, number formats and the settings of the computation.

    Args:
        parents: By name.
        dtype: The format that all are read in; None wants them to have one.
        free: Tensors whose shapes may differ, as the vocabularies are aligned.

    Raises:
        MergeError: Two parents do not fit; the message names the tensor with both shapes, or the setting with both
            values.
    """
    (first_name, first), *others = parents.items()
    for name, parent in others:
        if parent.config.model_type != first.config.model_type:
            raise MergeError(
                f"{first_name!r} is a {first.config.model_type!r} model, {name!r} a {parent.config.model_type!r} "
                "model; merging needs parents of one architecture. Choose models of one family."
            )
        _check_tensors(first, parent, dtype, free)
        check_settings(first_name, first.config, name, parent.config)


def _check_tensors(first: Stored, other: Stored, dtype: torch.dtype | None, free: frozenset[str]) -> None:
    mine, theirs = (replace(stored.weights, label=stored.name) for stored in (first, other))
    remedy = "Choose models of one family and size (vocabulary='union' or 'base' aligns vocabularies)"
    check_same_tensors(mine, theirs, remedy, free=free)
    for name in mine.names:
        formats = first.plain(name).dtype, other.plain(name).dtype
        if formats[0] != formats[1] and (dtype is None or not all(f.is_floating_point for f in formats)):
            raise MergeError(
                f"Tensor {name!r} is {formats[0]} in {first.name!r} and {formats[1]} in {other.name!r}; merging needs "
                "one number format. Give the recipe a dtype, e.g. dtype='bfloat16'."
            )


def merged_dtype(stored: Stored, name: str, dtype: torch.dtype | None) -> torch.dtype:
    """Return the format that a tensor is merged in: `dtype`, or its own where that is None or it holds integers.

    Raises:
        ModelError: It is of a floating-point format for storage only, such as float8.
    """
    own = stored.plain(name).dtype
    if own.is_floating_point and own not in _MERGEABLE:
        raise ModelError(
            f"Tensor {name!r} of {stored.name!r} is {own}, which is stored with scales and cannot be averaged. Use the "
            "model as it was before, e.g. in bfloat16."
        )
    return dtype if dtype is not None and own.is_floating_point else own
