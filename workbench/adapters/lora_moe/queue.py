"""The expert memory queue: what each expert of a layer gave lately."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.ops.routing import SMALLEST_NORM

MINIMUM = 8
"""A queue that holds fewer outputs than this (or than it can hold) takes no part in the contrast."""


class ExpertQueue(nn.Module):
    """One first-in-first-out queue for each expert of a layer, with detached outputs of length 1.

    An expert's output for a sequence is the sum of its tokens' outputs, each with its routing weight, so that the
    contrast teaches the router, too; with length 1 it is their weighted mean. Wide outputs are shortened by a fixed
    random projection.

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
        # One row more than there is room: it takes what is skipped, so that nothing depends on how much that is.
        self.register_buffer("vectors", torch.zeros(num_experts, size + 1, self.dim))
        self.register_buffer("written", torch.zeros(num_experts, dtype=torch.int64))

    def shorten(self, outputs: Tensor) -> Tensor:
        """Return outputs `(..., D)` as the queue keeps them, in float32, `(..., dim)`."""
        outputs = outputs.float()
        features = outputs.shape[-1]
        return outputs @ _projection(features, self.dim, outputs.device) if self.dim < features else outputs

    def keys(self) -> tuple[Tensor, Tensor]:
        """Return what is kept, `(E, Q, dim)`, and how much of it is real, the first of each row, `(E,)`."""
        return self.vectors[:, :-1], self.written.clamp(max=self.size)

    @torch.no_grad()
    def add(self, outputs: Tensor) -> None:
        """Put a micro-batch's shortened outputs, `(B, E, dim)`, over the oldest; zero outputs are skipped."""
        outputs = outputs.detach()[-self.size :]
        present = outputs.norm(dim=-1) > SMALLEST_NORM
        place = torch.where(present, (self.written + present.cumsum(dim=0) - 1) % self.size, self.size)
        experts = torch.arange(len(self.written), device=place.device).expand_as(place)
        units = normalize(outputs, dim=-1, eps=SMALLEST_NORM)
        self.vectors.index_put_((experts, place), units.to(self.vectors.dtype))
        self.vectors[:, -1] = 0
        self.written += present.sum(dim=0)


@lru_cache(maxsize=64)
def _projection(features: int, dim: int, device: torch.device) -> Tensor:
    """Return the random matrix `(D, dim)` that keeps angles about as they are; the same one in every process.

    Source: Johnson and Lindenstrauss 1984.
    """
    with torch.inference_mode(False):  # it outlives the forward that asks for it first
        numbers = torch.randn(features, dim, generator=torch.Generator().manual_seed(0))
        return (numbers / dim**0.5).to(device)
