"""The routing losses: a layer notes what they need in its forward, and all layers' are formed together once a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.adapters.lora_moe.config import LoraMoeConfig
from workbench.adapters.lora_moe.queue import MINIMUM, ExpertQueue
from workbench.ops.processes import average, gather
from workbench.ops.routing import balance_loss, expert_cosines, in_batch_contrastive, queue_contrastive, z_loss
from workbench.records import RouterOutput

_DONE = "losses"  # no adapter's name, as that would have to be a module's


class Fleeting(dict[Any, Any]):
    """What belongs to the forward at hand only: a copy of the model, or a pickle of it, does not take it along."""

    def __deepcopy__(self, memo: object) -> Fleeting:
        return Fleeting()

    def __reduce__(self) -> tuple[type[Fleeting], tuple[()]]:
        return Fleeting, ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Note:
    """What one layer's forward leaves for the losses.

    Args:
        config: Says which losses.
        output: The router's decision; of the tokens or of whole sequences.
        decided: The decision is this layer's own router's.
        counted: Which rows of the decision are no padding, or None.
        queue: The layer's queue, if it has one.
        experts: Of the experts' outputs, what the contrast needs: shortened outputs `(B, E, dim)` for a queue; their
            cosines `(N, E, E)` and which are present `(N, E)` within the batch; nothing without a contrast.
    """

    config: LoraMoeConfig
    output: RouterOutput
    decided: bool
    counted: Tensor | None
    queue: ExpertQueue | None
    experts: tuple[Tensor, ...]


def experts_for_contrast(
    queue: ExpertQueue | None, hidden: Tensor, gated: Tensor, up: Tensor, counted: Tensor | None, by_token: bool
) -> tuple[Tensor, ...]:
    """Return what a contrast needs of the experts' outputs, which are never formed for single tokens.

    Args:
        queue: The layer's queue, or None for the contrast within the batch.
        hidden: What each expert's A made of the tokens, `(B, T, E, R)`.
        gated: The same, each expert's times its routing weight.
        up: The experts' B side by side, `(D, E * R)`.
        counted: Which tokens are no padding, `(B * T,)`, or None.
        by_token: Each token has a route; else each sequence, and their tokens' outputs are summed.
    """
    if queue is None and by_token:
        return expert_cosines(hidden.flatten(0, 1), up)
    batch, tokens, experts, rank = hidden.shape
    share = hidden.new_ones(batch, 1, tokens) if counted is None else counted.to(hidden.dtype).view(batch, 1, tokens)
    pooled = (share @ (hidden if queue is None else gated).flatten(2)).view(batch, experts, rank).float()
    if queue is None:
        return expert_cosines(pooled, up)
    return (queue.shorten(torch.einsum("ber,der->bed", pooled, up.float().unflatten(1, (experts, rank)))),)


def routing_losses(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return each routing loss of the model's last forward: its mean over the routers or layers, times its weight.

    The first call after a forward puts the micro-batch into the queues; further calls return the same tensors.

    Where processes train side by side, what is global and what is local: the losses are those of the micro-batches of
    all processes taken together, of which each process returns its part (`workbench.ops.processes`); every queue gets
    the outputs of all, so that it is the same everywhere. Two processes with B sequences each so compute what one with
    2 B computes, but for dropout and jitter, which are drawn anew. All processes must call this after each forward,
    with equally many sequences.

    Args:
        model: Any model, wrapped or not.

    Returns:
        Name (`balance`, `z`, `contrastive`) to float32 scalar; empty for a model without LoRA mixtures, after a
        forward in evaluation mode, and where every weight is 0.
    """
    held = [notes for module in model.modules() if isinstance(notes := getattr(module, "notes", None), Fleeting)]
    held = [notes for notes in held if notes]
    if not held:
        return {}
    if _DONE not in held[0]:
        notes = [note for notes in held for note in notes.values()]
        with torch.autocast(notes[0].output.router_logits.device.type, enabled=False):
            held[0][_DONE] = _formed(notes)
    return dict(held[0][_DONE])


def _formed(notes: list[Note]) -> dict[str, Tensor]:
    groups: dict[tuple[object, ...], list[Note]] = defaultdict(list)
    for note in notes:
        logits = note.output.router_logits
        shapes = tuple(tensor.shape for tensor in (logits, *note.experts))
        groups[id(note.config), note.decided, note.counted is None, logits.device, shapes].append(note)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for group in groups.values():
        for name, losses in _losses(group):
            found[name].append(losses)
    return {name: torch.cat([part.to(parts[0].device) for part in parts]).mean() for name, parts in found.items()}


def _losses(group: list[Note]) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values, one for each of some layers of equal shapes, times the weight."""
    config, counted = group[0].config, group[0].counted
    logits = torch.stack([note.output.router_logits for note in group])
    selected = torch.stack([note.output.selected_experts for note in group])
    if group[0].decided and config.router_aux_loss_coef:
        yield "balance", config.router_aux_loss_coef * balance_loss(logits, selected, counted, average)
    if group[0].decided and config.router_z_loss_coef:
        yield "z", config.router_z_loss_coef * z_loss(logits, counted, average)
    if not group[0].experts:
        return
    experts = [torch.stack(parts) for parts in zip(*(note.experts for note in group))]
    if group[0].queue is None:
        loss = in_batch_contrastive(experts[0], selected, experts[1], config.temperature, counted, average)
    else:
        queues = [note.queue for note in group if note.queue is not None]
        keys, filled = (torch.stack(parts) for parts in zip(*(queue.keys() for queue in queues)))
        least = min(MINIMUM, config.queue_size)
        loss = queue_contrastive(experts[0], keys, filled, config.temperature, least, average)
        for queue, outputs in zip(queues, gather(experts[0], dim=1)):
            queue.add(outputs)
    yield "contrastive", config.contrastive_loss_coef * loss
