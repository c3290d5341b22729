"""The tensors of a model that is loaded, or that lies in a folder and is read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from workbench.errors import MergeError, ModelError

Source = torch.nn.Module | str | Path


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Names, shapes and contents of a model's tensors.

    Args:
        label: What messages call it.
        origin: The model, or its resolved folder. Two with the same origin are the same weights.
        shapes: Name to shape; of several names for one tensor (a tied lm_head) those that the source has.
        tied: Name to all names of that tensor, where there is more than one.
        transposed: Modules that keep their weight as `(in, out)`, as GPT-2's do.
        fetch: Returns a tensor by name, in the format it has there.
    """

    label: str
    origin: torch.nn.Module | Path
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, tuple[str, ...]]
    transposed: frozenset[str]
    fetch: Callable[[str], Tensor]

    @property
    def names(self) -> list[str]:
        """Every tensor once, under its first name."""
        return list(dict.fromkeys(self.first(name) for name in self.shapes))

    def first(self, name: str) -> str:
        """Return the first of a tensor's names that the source has, or the name itself where it has none."""
        return next((other for other in self.tied.get(name, ()) if other in self.shapes), name)

    def read(self, name: str) -> Tensor:
        """Return a tensor, which is not to be changed.

        Raises:
            ModelError: It holds integers, as quantised weights do.
        """
        tensor = self.fetch(name)
        if not tensor.is_floating_point():
            raise ModelError(
                f"Tensor {name!r} of {self.label!r} holds {tensor.dtype} numbers; updates are added to floating-point "
                "weights. Use the model unquantised, e.g. in bfloat16."
            )
        return tensor


def open_weights(source: Source) -> Weights:
    """Look at a model's tensors without copying or, for a folder, loading them.

    Args:
        source: A transformers model, whose weights are held, not copied; or a folder with config.json and safetensors.

    Raises:
        ModelError: The folder is missing, its architecture is unknown, or its weights are damaged.
    """
    if isinstance(source, torch.nn.Module):
        return _of_module(source)
    return _of_folder(Path(source).expanduser())


def check_same_tensors(first: Weights, second: Weights, remedy: str, *, free: Collection[str] = ()) -> None:
    """Compare the names and shapes of two models' tensors, of which tied ones count once.

    Args:
        first: One model.
        second: The other.
        remedy: What the message advises, without a full stop.
        free: Tensors whose shapes may differ.

    Raises:
        MergeError: One lacks a tensor, or a tensor has another shape; the message names both models.
    """
    mine, theirs = dict.fromkeys(first.names), dict.fromkeys(second.names)
    for name in mine | theirs:
        if name not in mine or name not in theirs:
            owner, lacks = (first, second) if name in mine else (second, first)
            raise MergeError(
                f"Tensor {name!r} of {owner.label!r} is missing in {lacks.label!r}; both need the same tensors. "
                f"{remedy}."
            )
        if name not in free and first.shapes[name] != second.shapes[name]:
            raise MergeError(
                f"Tensor {name!r} has shape {first.shapes[name]} in {first.label!r} and {second.shapes[name]} in "
                f"{second.label!r}; both need equal shapes, for embeddings the same vocabulary. {remedy}."
            )


def _of_module(model: Any) -> Weights:
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return Weights(
        label=getattr(model, "name_or_path", "") or type(model).__name__,
        origin=model,
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        tied=_ties(state),
        transposed=_transposed(model),
        fetch=partial(_of_state, state),
    )


def _of_state(state: Mapping[str, Tensor], name: str) -> Tensor:
    return state[name].detach()


def _of_folder(folder: Path) -> Weights:
    if not folder.is_dir():
        raise ModelError(
            f"{str(folder)!r} is not a folder here. Pass a folder with config.json and *.safetensors, or a model."
        )
    skeleton = _skeleton(folder)
    places: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    places[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or missing ({error}). Copy or download it again.") from error
    return Weights(
        label=str(folder),
        origin=folder.resolve(),
        shapes=shapes,
        tied=_ties(skeleton.state_dict(keep_vars=True)),
        transposed=_transposed(skeleton),
        fetch=partial(_of_file, places),
    )


def _of_file(places: Mapping[str, Path], name: str) -> Tensor:
    with safe_open(places[name], framework="pt") as file:
        return file.get_tensor(name)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    single = folder / "model.safetensors"
    if not single.is_file():
        raise ModelError(f"{str(folder)!r} has no model.safetensors. Pass a model folder with safetensors weights.")
    return [single]


def _skeleton(folder: Path) -> torch.nn.Module:
    """Build the architecture without weights: it knows what is tied and which layers keep their weight transposed."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The config.json of {str(folder)!r} gives no causal language model that the installed transformers knows "
            f"({str(error).splitlines()[0][:200]}). Pass a model folder of a known architecture."
        ) from error


def _ties(state: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    return {name: tuple(group) for group in groups.values() if len(group) > 1 for name in group}


def _transposed(model: torch.nn.Module) -> frozenset[str]:
    return frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))
