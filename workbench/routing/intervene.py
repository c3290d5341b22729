"""Ask *what if*: make routers take one expert, or do without it, while a block of code runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peft.tuners.xlora.classifier import XLoraClassifier
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.records import RouterOutput
from workbench.routing.find import find_routers, layer_of, read_output


@contextmanager
def steer_routing(
    model: Any, *, force: int | None = None, mute: int | None = None, layers: Collection[int] | None = None
) -> Iterator[None]:
    """Change what routers return within the block, and leave the model as it was afterwards.

    A forced expert gets the whole weight of each token. A muted one is passed over: the best K of the others share the
    token's weight in proportion to softmax(router_logits). The logits that a router returns stay as they are.

    Args:
        model: What `capture_routing` takes.
        force: An expert, counted from 0.
        mute: An expert, counted from 0; exactly one of the two is given.
        layers: Change these layers alone; None changes all.

    Raises:
        ConfigError: Both or none of `force` and `mute` are given, or no router is in these layers; while the block
            runs: there is no such expert, or muting it would leave none.
        ModelError: The model has no router.
    """
    expert = mute if force is None else force
    if expert is None or (force is not None and mute is not None):
        raise ConfigError(f"force={force}, mute={mute}: give exactly one of them, an expert counted from 0")
    chosen = {
        module: [name for name in names if layers is None or layer_of(name) in layers]
        for module, names in find_routers(model).items()
    }
    if not any(chosen.values()):
        raise ConfigError(f"layers={sorted(layers or ())}: no router is there; name layers that hold one, or None")
    edit = partial(_force if force is not None else _mute, expert=expert)
    handles = [
        module.register_forward_hook(partial(_hook, name=names[0], edit=edit))
        for module, names in chosen.items()
        if names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(module: nn.Module, _: Any, raw: Any, *, name: str, edit: Any) -> Any:
    if isinstance(module, XLoraClassifier):
        even = RouterOutput(
            router_logits=raw.log() if module.config.enable_softmax else raw,
            routing_weights=raw,
            selected_experts=torch.arange(raw.shape[-1], device=raw.device).expand(raw.shape),
        )
        changed = edit(even, name)
        return torch.zeros_like(raw).scatter(-1, changed.selected_experts, changed.routing_weights)
    changed = edit(read_output(module, name, raw), name)
    return changed if isinstance(raw, RouterOutput) else (raw[0], changed.routing_weights, changed.selected_experts)


def _force(output: RouterOutput, name: str, *, expert: int) -> RouterOutput:
    """Put the expert in the first place, and what stood there into the place that it leaves, so that none is twice."""
    _check(output, name, expert, least=1)
    selected = output.selected_experts
    others = torch.where(selected == expert, selected[..., :1], selected)
    first = torch.full_like(selected[..., :1], expert)
    weights = torch.zeros_like(output.routing_weights)
    weights[..., 0] = output.routing_weights.sum(-1)
    return replace(output, routing_weights=weights, selected_experts=torch.cat([first, others[..., 1:]], -1))


def _mute(output: RouterOutput, name: str, *, expert: int) -> RouterOutput:
    _check(output, name, expert, least=2)
    blocked = torch.zeros_like(output.router_logits, dtype=torch.bool)
    blocked[..., expert] = True
    shares = torch.softmax(output.router_logits.float().masked_fill(blocked, float("-inf")), -1)
    best, selected = shares.topk(output.selected_experts.shape[-1], dim=-1)
    total: Tensor = output.routing_weights.sum(-1, keepdim=True)
    weights = (best / best.sum(-1, keepdim=True) * total).to(output.routing_weights.dtype)
    return replace(output, routing_weights=weights, selected_experts=selected.to(output.selected_experts.dtype))


def _check(output: RouterOutput, name: str, expert: int, *, least: int) -> None:
    experts = output.router_logits.shape[-1]
    if not 0 <= expert < experts or experts < least:
        raise ConfigError(
            f"expert {expert} of the router {name}: it has {experts} experts, counted from 0; take one of them, and "
            "mute one only where another is left"
        )
