"""The expert memory queue: what each expert of a layer gave lately."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.ops.routing import SMALLEST_NORM, queue_contrastive

MINIMUM = 8
"""A queue that holds fewer outputs than this (or than it can hold) takes no part in the contrast."""


class ExpertQueue(nn.Module):
    """One first-in-first-out queue for each expert of a layer, with detached outputs of length 1.

    An expert's output for a sequence is the sum of its tokens' outputs, each with its routing weight, so that the
    contrast teaches the router, too; with length 1 it is their weighted mean. Wide outputs are shortened by a fixed
    random projection. A micro-batch waits beside the queue until the next one comes, or until the queue is saved:
    whoever recomputes a forward meets the queue as it was, and adds nothing.

    Memory is `E * (Q + 1) * min(queue_dim, D)` numbers, whatever the batch and its length. The buffers are saved with
    the adapter, as a checkpoint of transformers' Trainer holds nothing else.

    Args:
        features: D, the width of an output.
        num_experts: E.
        size: Q, outputs that are kept for each expert; of a larger micro-batch the last Q are kept.
        dim: Width of what is kept; None or a number of D or more keeps outputs whole.

    Source: our reading of SparseDoctor (arXiv 2509.14269), after MoCo (arXiv 1911.05722).
    """

    vectors: Tensor
    written: Tensor

    def __init__(self, features: int, num_experts: int, size: int, dim: int | None):
        super().__init__()
        self.size, self.dim = size, min(dim or features, features)
        self.waiting: tuple[Tensor, Tensor] | None = None
        # One row more than there is room: it takes what is skipped, so that nothing depends on how much that is.
        self.register_buffer("vectors", torch.zeros(num_experts, size + 1, self.dim))
        self.register_buffer("written", torch.zeros(num_experts, dtype=torch.int64))

    def contrast(self, outputs: Tensor, temperature: float, *, again: bool) -> Tensor:
        """Return the contrastive loss of a micro-batch, which then waits to be added.

        Args:
            outputs: Of each expert for each of B sequences, `(B, E, D)`.
            temperature: tau, above 0.
            again: This forward is recomputed within a backward, and was counted before.
        """
        if self.dim < outputs.shape[-1]:
            outputs = outputs.float() @ _projection(outputs.shape[-1], self.dim, outputs.device)
        if not again:
            self.add_waiting()
            seen = outputs.detach().float()[-self.size :]
            self.waiting = normalize(seen, dim=-1, eps=SMALLEST_NORM), seen.norm(dim=-1) > SMALLEST_NORM
        filled = self.written.clamp(max=self.size)
        return queue_contrastive(outputs, self.vectors[:, :-1], filled, temperature, min(MINIMUM, self.size))

    @torch.no_grad()
    def add_waiting(self) -> None:
        """Put what waits into the queues, over the oldest entries."""
        if self.waiting is None:
            return
        (vectors, present), self.waiting = self.waiting, None
        place = torch.where(present, (self.written + present.cumsum(dim=0) - 1) % self.size, self.size)
        experts = torch.arange(len(self.written), device=place.device).expand_as(place)
        self.vectors.index_put_((experts, place), vectors.to(self.vectors.dtype))
        self.vectors[:, -1] = 0
        self.written += present.sum(dim=0)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        self.add_waiting()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self.waiting = None
        super()._load_from_state_dict(*args, **kwargs)  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=64)
def _projection(features: int, dim: int, device: torch.device) -> Tensor:
    """Return the random matrix `(D, dim)` that keeps angles about as they are; the same one in every process.

    Source: Johnson and Lindenstrauss 1984.
    """
    with torch.inference_mode(False):  # it outlives the forward that asks for it first
        numbers = torch.randn(features, dim, generator=torch.Generator().manual_seed(0))
        return (numbers / dim**0.5).to(device)
