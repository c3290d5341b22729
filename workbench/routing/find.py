"""Find the routers of a model, and read their different outputs as one record."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.xlora.classifier import XLoraClassifier
from torch import Tensor, nn

from workbench.errors import ModelError
from workbench.records import RouterOutput


def find_routers(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return each router with its names, several where layers share it.

    A router is a module whose `forward` is declared to return `RouterOutput`, the classifier of PEFT's X-LoRA, or a
    module that transformers itself records as `router_logits` (Mixtral, Qwen-MoE, OLMoE and their kin).

    Raises:
        ModelError: There is none.
    """
    kinds = (XLoraClassifier, *_native_routers(model))
    ours = {kind for kind in {type(module) for module in model.modules()} if _declares(kind)}
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kinds) or type(module) in ours:
            found.setdefault(module, []).append(_short(name))
    if not found:
        raise ModelError(
            f"{type(model).__name__} has no router; take a mixture: a LoRA mixture (LoraMoeConfig), X-LoRA, or a model "
            "such as Mixtral, Qwen-MoE or OLMoE"
        )
    return found


def read_output(module: nn.Module, name: str, output: Any) -> RouterOutput:
    """Return what a router's forward returned as one record, whatever kind of router it is.

    The scalings of X-LoRA, `(B, T, L, E)`, are read as the softmax that they are: their logarithm are the logits.

    Raises:
        ModelError: The output is not the three tensors logits, weights and selected experts.
    """
    if isinstance(output, RouterOutput):
        return output
    if isinstance(module, XLoraClassifier) and isinstance(output, Tensor):
        return _read_scalings(module, output)
    if isinstance(output, tuple) and len(output) == 3 and not output[2].is_floating_point():
        logits, weights, selected = (part.flatten(0, -2) for part in output)
        if weights.shape == selected.shape:
            return RouterOutput(router_logits=logits, routing_weights=weights, selected_experts=selected)
    shapes = [list(part.shape) for part in output if isinstance(part, Tensor)] if isinstance(output, tuple) else output
    raise ModelError(
        f"the router {name} ({type(module).__name__}) returned {shapes}; a router that can be read returns its logits "
        "(N, E), the weights (N, K) and the indices (N, K) of the selected experts"
    )


def scaling_layers(model: nn.Module, module: nn.Module) -> list[str] | None:
    """Return the names of the layers that X-LoRA scales one by one; None where they share their scalings."""
    if not isinstance(module, XLoraClassifier) or not module.config.layerwise_scalings:
        return None
    return [_short(name) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def inner_model(model: Any) -> nn.Module:
    """Return the transformers model within wrappers: the one that reads token ids, also while PEFT generates."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layer_of(name: str) -> int:
    """Return the index of a router's layer, the first number in its name, or -1 where it holds none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def _short(name: str) -> str:
    """Leave out what wrappers put in front, so that a model's layers have the same names with and without them."""
    return re.sub(r"^((base_model|lora_model|model)\.)+", "", name)


def _declares(kind: type[nn.Module]) -> bool:
    return inspect.signature(kind.forward).return_annotation in (RouterOutput, "RouterOutput")


def _native_routers(model: nn.Module) -> tuple[type, ...]:
    kinds = []
    for module in model.modules():
        recorded = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", [])
        for one in recorded if isinstance(recorded, list) else [recorded]:
            kinds.append(getattr(one, "target_class", one))
    return tuple(kind for kind in kinds if isinstance(kind, type))


def _read_scalings(module: XLoraClassifier, scalings: Tensor) -> RouterOutput:
    """As PEFT's layers use them: the best of them where a number is set, and once more a softmax where that is set."""
    if not module.config.layerwise_scalings:
        scalings = scalings[:, :, :1]
    logits = scalings.log() if module.config.enable_softmax else scalings
    weights, selected = scalings.topk(module.config.top_k_lora or scalings.shape[-1], dim=-1)
    if module.config.enable_softmax_topk:
        weights = torch.softmax(weights, dim=-1)
    return RouterOutput(router_logits=logits, routing_weights=weights, selected_experts=selected)
