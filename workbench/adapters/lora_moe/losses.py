"""The routing losses: formed by a layer in its forward, gathered once a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.ops.routing import balance_loss, expert_cosines, in_batch_contrastive, z_loss
from workbench.records import RouterOutput

if TYPE_CHECKING:
    from workbench.adapters.lora_moe.config import LoraMoeConfig
    from workbench.adapters.lora_moe.queue import ExpertQueue


class Fleeting(dict[Any, Any]):
    """What belongs to the forward at hand only: a copy of the model, or a pickle of it, does not take it along."""

    def __deepcopy__(self, memo: object) -> Fleeting:
        return Fleeting()

    def __reduce__(self) -> tuple[type[Fleeting], tuple[()]]:
        return Fleeting, ()


def routing_losses(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return each routing loss of the model's last forward: its mean over the routers or layers, times its weight.

    Args:
        model: Any model, wrapped or not.

    Returns:
        Name (`balance`, `z`, `contrastive`) to float32 scalar; empty for a model without LoRA mixtures, after a
        forward in evaluation mode, and where every weight is 0.
    """
    gathered: dict[str, list[Tensor]] = {}
    for module in model.modules():
        losses = getattr(module, "routing_losses", None)
        for name, value in losses.items() if isinstance(losses, Fleeting) else ():
            gathered.setdefault(name[1], []).append(value)
    return {name: torch.stack([v.to(values[0].device) for v in values]).mean() for name, values in gathered.items()}


def router_losses(config: LoraMoeConfig, routing: RouterOutput, counted: Tensor | None) -> dict[str, Tensor]:
    """Return the losses of one router, times their weights; those with weight 0 are left out."""
    found: dict[str, Tensor] = {}
    if config.router_aux_loss_coef:
        balance = balance_loss(routing.router_logits, routing.selected_experts, counted)
        found["balance"] = config.router_aux_loss_coef * balance
    if config.router_z_loss_coef:
        found["z"] = config.router_z_loss_coef * z_loss(routing.router_logits, counted)
    return found


def contrastive_loss(
    config: LoraMoeConfig,
    routing: RouterOutput,
    hidden: Tensor,
    up: Tensor,
    queue: ExpertQueue | None,
    counted: Tensor | None,
    *,
    again: bool,
) -> Tensor:
    """Return the contrastive loss of one layer, times its weight.

    Args:
        config: Says which contrast.
        routing: Of the rows; tokens or whole sequences.
        hidden: What each expert's A made of the tokens, each with its routing weight for a queue, `(B, T, E, R)`.
        up: The experts' B side by side, `(D, E * R)`.
        queue: The layer's queue, or None for the contrast within the batch.
        counted: Which tokens are no padding, `(B * T,)`, or None.
        again: This forward is recomputed within a backward.
    """
    batch, tokens, experts, rank = hidden.shape
    if queue is None and len(routing.selected_experts) == batch * tokens:
        cosines, present = expert_cosines(hidden.flatten(0, 1), up)
        loss = in_batch_contrastive(cosines, routing.selected_experts, present, config.temperature, counted)
        return config.contrastive_loss_coef * loss
    share = hidden.new_ones(batch, 1, tokens) if counted is None else counted.to(hidden.dtype).view(batch, 1, tokens)
    pooled = (share @ hidden.flatten(2)).view(batch, experts, rank)
    if queue is None:
        cosines, present = expert_cosines(pooled, up)
        loss = in_batch_contrastive(cosines, routing.selected_experts, present, config.temperature)
    else:
        outputs = torch.einsum("ber,der->bed", pooled.float(), up.float().unflatten(1, (experts, rank)))
        loss = queue.contrast(outputs, config.temperature, again=again)
    return config.contrastive_loss_coef * loss
