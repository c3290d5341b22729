"""Adapters over one base at work in one batch, each row with its own; and one of them at a time, where that must be."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from workbench.adapters.skill_router.bank import SkillBank
from workbench.errors import ConfigError

Factors = dict[str, tuple[Tensor, Tensor]]
"""Module name to B `(out, r)` and A `(r, in)`, with B A what an adapter adds to the module's weight."""


class MixedAdapters:
    """A base and its adapters, of which each row of a batch has one, or none.

    All A of a layer stand in one matrix, all B in another; between them each row's numbers are multiplied by 1 where
    they belong to its adapter and by 0 elsewhere. So a layer costs two thin products, however many adapters there are.
    It holds for adapters that add a product of two thin matrices to linear layers (LoRA, rsLoRA, AdaLoRA), `mixing`
    tells; others are put to work one at a time.

    Args:
        model: The transformers model that reads token ids; PEFT may have put its layers into it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.folders: dict[str, Factors] = {}
        self.layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        self._stacks: list[tuple[nn.Module, Tensor, Tensor, tuple[str, ...]]] = []
        if any(getattr(layer, "merged", False) for layer in self.layers):
            raise ConfigError("adapters are merged into this model's weights; call model.unmerge_adapter() first")

    def add_folder(self, name: str, folder: str | Path) -> None:
        """Take a saved adapter of the base.

        Raises:
            ConfigError: It is more than low-rank updates of linear layers.
            ModelError: It cannot be read, or is no weight update.
            MergeError: It does not fit the base.
        """
        bank = SkillBank.open({name: folder}, self.model, strict=False)
        self.folders[name] = {module: (layer.B, layer.A) for module, layer in bank.layers.items()}

    @property
    def mixing(self) -> bool:
        """Whether all adapters can be at work in one batch."""
        return all(_is_low_rank(layer) for layer in self.layers)

    def release(self) -> None:
        """Free the matrices; they are put together again when next needed, from the adapters as they are then."""
        self._stacks = []

    @contextmanager
    def rows(self, names: Sequence[Sequence[str]]) -> Iterator[None]:
        """Within the block, row i of a batch has the adapters names[i]: one, none, or several that add up."""
        self._stacks = self._stacks or self._stacked()
        gates: dict[int, Tensor] = {}
        handles = []
        with self.only(()):
            try:
                for module, down, up, owners in self._stacks:
                    if id(owners) not in gates:
                        table = [[float(owner in own) for owner in owners] for own in names]
                        gates[id(owners)] = down.new_tensor(table)[:, None]
                    handles.append(module.register_forward_hook(partial(_add, down, up, gates[id(owners)])))
                yield
            finally:
                for handle in handles:
                    handle.remove()

    @contextmanager
    def only(self, names: Sequence[str]) -> Iterator[None]:
        """Within the block, these adapters alone are at work, or none; what is trainable stays so."""
        before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in self.layers]
        try:
            for layer in self.layers:
                layer._disable_adapters = not names
                layer._active_adapter = list(names) or layer._active_adapter
            yield
        finally:
            for layer, active, disabled in before:
                layer._active_adapter, layer._disable_adapters = active, disabled

    def _stacked(self) -> list[tuple[nn.Module, Tensor, Tensor, tuple[str, ...]]]:
        parts: dict[str, list[tuple[Any, Tensor, Tensor]]] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, LoraLayer):
                parts[name] = [(adapter, *_factors(module, adapter)) for adapter in module.lora_A]
        wrapped = {name.replace(".base_layer", ""): name for name in parts}
        for adapter, factors in self.folders.items():
            for place, (up, down) in factors.items():
                parts.setdefault(wrapped.get(place, place), []).append((adapter, up, down))
        stacks, kinds = [], dict[Any, Any]()
        for name, found in parts.items():
            module: Any = self.model.get_submodule(name)
            module = module.get_base_layer() if isinstance(module, LoraLayer) else module
            weight = module.weight
            dtype = weight.dtype if weight.is_floating_point() else found[0][2].dtype
            down = torch.cat([down.to(weight.device, dtype) for _, _, down in found])
            up = torch.cat([up.to(weight.device, dtype) for _, up, _ in found], 1)
            owners = tuple(adapter for adapter, _, down in found for _ in range(len(down)))
            # Layers alike in this share one object, by which they share a gate.
            stacks.append((module, down, up, kinds.setdefault((owners, down.dtype, down.device), owners)))
        return stacks


def adapted_copy(base: Any, folder: str | Path) -> Any:
    """Return a copy of a transformers model with a saved adapter of any kind in its layers.

    transformers' own `load_adapter` leaves DoRA's magnitudes as they were initialised, so PEFT opens it.
    """
    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).get_base_model().eval()


class SequenceRoutes:
    """What routers of whole sequences hold for one batch, where several batches are decoded in turns.

    Args:
        model: A model with LoRA mixtures or skill routers; without them this does nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: list[Any] = [module for module in model.modules() if hasattr(module, "keep_sequences")]
        self.held: list[dict[str, Any]] = [{} for _ in self.layers]

    def take(self) -> None:
        """Remember what the layers hold."""
        self.held = [dict(layer.routes) for layer in self.layers]

    def put(self) -> None:
        """Let the layers hold what is remembered."""
        for layer, held in zip(self.layers, self.held):
            layer.routes.clear()
            layer.routes.update(held)

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only."""
        self.put()
        for layer in self.layers:
            layer.keep_sequences(rows)
        self.take()

    def join(self, other: SequenceRoutes) -> None:
        """Take another batch's sequences behind one's own."""
        pairs = zip(self.held, other.held)
        self.held = [{name: _joined(mine[name], theirs[name]) for name in mine} for mine, theirs in pairs]


def _joined(mine: Any, theirs: Any) -> Any:
    if isinstance(mine, Tensor):
        return torch.cat([mine, theirs])
    return type(mine)(**{part: _joined(value, getattr(theirs, part)) for part, value in vars(mine).items()})


def _add(down: Tensor, up: Tensor, gate: Tensor, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    hidden = linear(args[0].to(down.dtype), down) * gate
    if output.dtype == up.dtype:
        return torch.addmm(output.flatten(0, -2), hidden.flatten(0, -2), up.t()).view(output.shape)
    return output + linear(hidden, up).to(output.dtype)


def _is_low_rank(layer: Any) -> bool:
    plain = isinstance(layer, LoraLinear) and not layer.lora_variant and not any(layer.lora_bias.values())
    linear_inside = isinstance(layer, BaseTunerLayer) and isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
    return linear_inside and (plain or isinstance(layer, AdaLoraLayer))


def _factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor]:
    down, up, scale = layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]
    if isinstance(layer, AdaLoraLayer):
        return up.detach() * (scale / (layer.ranknum[adapter].detach() + 1e-5)), (down * layer.lora_E[adapter]).detach()
    return up.weight.detach() * scale, down.weight.detach()
