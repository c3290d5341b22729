"""The tuner: puts a bank of skills beside the layers that they adapt, and reads and sets their weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workbench.adapters._register import check_name
from workbench.adapters.lora_moe.router import Batch
from workbench.adapters.skill_router.bank import BankLayer, SkillBank
from workbench.adapters.skill_router.config import METHOD, PREFIX, SkillRouterConfig, check_shares, check_weights
from workbench.adapters.skill_router.layer import SkillRouterLayer
from workbench.errors import ConfigError, ModelError


class SkillRouterModel(BaseTuner):
    """What `get_peft_model` wraps a model into for a `SkillRouterConfig`; the model's methods are reached through it.

    Raises:
        ConfigError: An adapter's name is part of the method's own, or a skill adapts another layer than a linear one.
    """

    prefix = PREFIX
    tuner_layer_cls = SkillRouterLayer

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        """Read the skills, before any layer is wrapped; what was loaded from a folder has them in its own tensors."""
        assert isinstance(peft_config, SkillRouterConfig)
        self._parts: dict[str, BankLayer] = {}
        self._leaders: dict[str, SkillRouterLayer] = {}
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        check_name(name, METHOD)
        if peft_config.ranks is None:
            self._parts = dict(open_bank(peft_config.skills, self.model, peft_config.strict).layers)
            # A copy, so that the caller's configuration still says that the skills are to be read.
            peft_config = self.peft_config[name] = copy.deepcopy(peft_config)
            peft_config.ranks = {module: list(layer.ranks) for module, layer in self._parts.items()}
            peft_config.target_modules = set(peft_config.ranks)
        layers = skill_layers(self.model)
        self._batch = layers[0].batch if layers else Batch()
        if peft_config.gate == "input" and not self._batch.by_sequence:
            self.model.register_forward_pre_hook(self._batch, with_kwargs=True)
            self._batch.by_sequence = True
        return peft_config

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, SkillRouterConfig)
        assert peft_config.ranks is not None
        if current_key not in peft_config.ranks:
            return
        layer = target if isinstance(target, SkillRouterLayer) else SkillRouterLayer(target, self._batch)
        place = re.match(r"(.*?\.\d+)\.", current_key) if peft_config.per_layer else None
        leader = self._leaders.setdefault(place[1] if place else "", layer)
        bank = self._parts.pop(current_key, None) or _empty(target, peft_config.ranks[current_key])
        layer.update_layer(adapter_name, peft_config, bank, leader)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep the skills in float32 as they were read, or, without PEFT's autocast, in their layers' format."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in skill_layers(self.model) if not autocast_adapter_dtype else ():
            inner: Any = layer.get_base_layer()
            for part in (layer.skill_router_A, layer.skill_router_B):
                if adapter_name in part and inner.weight.is_floating_point():
                    part[adapter_name] = part[adapter_name].to(inner.weight.dtype)


def open_bank(folders: Mapping[str, str], model: nn.Module, strict: bool) -> SkillBank:
    """Open skills for a model, and refuse those that adapt something else than its linear layers."""
    bank = SkillBank.open(folders, model, strict=strict)
    for name in bank.layers:
        module = model.get_submodule(name)
        inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not isinstance(inner, nn.Linear | Conv1D):
            raise ConfigError(
                f"the skills adapt {name!r}, a {type(inner).__name__}; a bank stands beside linear layers only "
                "(nn.Linear, Conv1D). Train them with linear target_modules."
            )
    return bank


def skill_weights(model: nn.Module, adapter: str | None = None) -> dict[str, Any]:
    """Return the weight of each skill now.

    Args:
        model: With a static skill router.
        adapter: Its name; None is the active one.

    Returns:
        Skill to its weight; with `per_layer`, to a list with the weight in each decoder layer.

    Raises:
        ModelError: The model has no skill router of that name.
        ConfigError: Its weights follow the input.
    """
    name, layers = _deciding(model, adapter, "static")
    columns = torch.stack([layer.skill_router_gate[name]().detach() for layer in layers], dim=1).tolist()
    config = layers[0].settings[name]
    return {skill: row if config.per_layer else row[0] for skill, row in zip(config.skills, columns)}


def set_skill_weights(model: nn.Module, weights: Mapping[str, Any], adapter: str | None = None) -> None:
    """Set the weights of skills, in place and at once.

    Args:
        model: With a static skill router.
        weights: Skill to its weight, or with `per_layer` to a list of one for each decoder layer; skills that are left
            out keep theirs. A softmax takes weights of at least 0 whose sum is 1.
        adapter: The router's name; None is the active one.

    Raises:
        ModelError: The model has no skill router of that name.
        ConfigError: A skill is unknown, a weight is not finite, or a softmax cannot give the weights; the router's
            weights follow the input, or are merged.
    """
    name, layers = _deciding(model, adapter, "static")
    if any(name in layer.merged_adapters for layer in layers):
        raise ConfigError(f"the adapter {name!r} is merged into the weights; they must be apart. Unmerge it first.")
    config, rows = layers[0].settings[name], []
    for place, layer in enumerate(layers):
        given = {skill: _at(value, place, len(layers), skill) for skill, value in weights.items()}
        check_weights(given, list(config.skills), "weights")
        now = dict(zip(config.skills, layer.skill_router_gate[name]().tolist()))
        rows.append(list((now | given).values()))
        if config.constraint == "softmax":
            check_shares(rows[-1], "weights")
    for layer, row in zip(layers, rows):
        layer.skill_router_gate[name].assign(row)


def add_skill(model: nn.Module, name: str, folder: str | Path, adapter: str | None = None) -> None:
    """Put one more skill into a router, with weight 0, so that nothing changes until it is weighed.

    The other skills and their weights stay; do it before an optimiser takes the router's parameters, which are new
    ones afterwards. Under a softmax the weight is 1e-7, and an input gate gives it for every prompt.

    Args:
        model: With a skill router.
        name: Of the new skill.
        folder: Its LoRA, rsLoRA or AdaLoRA adapter, over the same base.
        adapter: The router's name; None is the active one.

    Raises:
        ModelError: The model has no skill router of that name, or the skill cannot be read.
        ConfigError: The name is taken, the router is merged, or the skill adapts other layers than the bank.
        MergeError: The skill does not fit the base.
    """
    router, leaders = _deciding(model, adapter)
    config, ranks = leaders[0].settings[router], leaders[0].settings[router].ranks or {}
    merged = any(router in layer.merged_adapters for layer in leaders)
    if name in config.skills or merged:
        reason = "is merged" if merged else "has that skill already"
        raise ConfigError(
            f"the skill {name!r} cannot be added: the router {router!r} {reason}. Choose another name, or unmerge."
        )
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    found = open_bank({name: str(folder)}, base, config.strict).layers
    odd = sorted(set(found) ^ set(ranks) if config.strict else set(found) - set(ranks))
    if odd:
        raise ConfigError(
            f"the skill {name!r} and the router {router!r} adapt different layers: {len(odd)} are in one of them only, "
            f"e.g. {odd[0]!r}. Train it with the same target_modules, or make a new router of all skills."
        )
    for module, count in ranks.items():
        layer = base.get_submodule(module)
        assert isinstance(layer, SkillRouterLayer)
        down, up = layer.skill_router_A[router], layer.skill_router_B[router]
        new = found.get(module) or BankLayer(A=down[:0], B=up[:, :0], ranks=(0,))
        count.append(new.ranks[0])
        down, up = torch.cat([down, new.A.to(down)]), torch.cat([up, new.B.to(up)], dim=1)
        layer.put_bank(router, BankLayer(A=down, B=up, ranks=tuple(count)))
    for layer in leaders:
        layer.skill_router_gate[router].grow()
    # What the weights were at first no longer fits their number, and says nothing of what they are now.
    config.initial_weights = None
    config.order = [*config.skills, name]
    config.skills[name] = str(folder)


def skill_losses(model: nn.Module) -> dict[str, Tensor]:
    """Return the regulariser of the routers in training as `l1`, the mean over their layers; empty without one."""
    found = [penalty for layer in skill_layers(model) for penalty in layer.penalties()]
    return {"l1": torch.stack([penalty.to(found[0].device) for penalty in found]).mean()} if found else {}


def _at(value: Any, place: int, count: int, skill: str) -> Any:
    if not isinstance(value, list | tuple):
        return value
    if len(value) != count:
        raise ConfigError(f"{skill!r} has {len(value)} weights; there must be one, or one for each of {count} layers.")
    return value[place]


def skill_layers(model: nn.Module) -> list[SkillRouterLayer]:
    """Return the layers of a model that hold skills, in its order."""
    return [module for module in model.modules() if isinstance(module, SkillRouterLayer)]


def _deciding(model: nn.Module, adapter: str | None, gate: str | None = None) -> tuple[str, list[SkillRouterLayer]]:
    """Return a router's name and the layers that hold its weights, or its gates."""
    layers = skill_layers(model)
    names = [adapter] if adapter else [name for layer in layers[:1] for name in layer.active_adapters]
    name = names[0] if names else ""
    found = [layer for layer in layers if name in layer.skill_router_gate]
    if not found:
        raise ModelError(
            f"the model has no skill router{f' named {name!r}' if name else ''}; get_peft_model(model, "
            "SkillRouterConfig(...)) makes one. Pass the model that it returned."
        )
    if gate and found[0].settings[name].gate != gate:
        raise ConfigError(
            f"the weights of {name!r} follow the input, so that there is one set for each prompt. See them with "
            "capture_routing, or make a router with gate='static'."
        )
    return name, found


def _empty(target: nn.Module, ranks: list[int]) -> BankLayer:
    """Return a part of a bank for tensors that are loaded later."""
    inner: Any = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    rows, columns = inner.weight.shape if isinstance(inner, Conv1D) else (inner.in_features, inner.out_features)
    return BankLayer(A=torch.zeros(sum(ranks), rows), B=torch.zeros(columns, sum(ranks)), ranks=tuple(ranks))
