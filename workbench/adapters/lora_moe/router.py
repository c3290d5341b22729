"""The router of a mixture: a linear layer without bias, and what it knows of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from workbench.ops.routing import top_k_gate
from workbench.records import RouterOutput


class Router(nn.Module):
    """Score the experts for each row and choose K of them.

    Args:
        features: D, the width of a row.
        num_experts: E.
        num_experts_per_tok: K.
        jitter: In training a row is multiplied by uniform(1 - jitter, 1 + jitter).

    Source: MixLoRA (arXiv 2404.15159), section 3: softmax, top-K, renormalise, initialised with N(0, 0.02); the jitter
    is that of Switch Transformer (arXiv 2101.03961), section 2.2.
    """

    def __init__(self, features: int, num_experts: int, num_experts_per_tok: int, jitter: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, features))
        self.num_experts_per_tok, self.jitter = num_experts_per_tok, jitter
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> RouterOutput:
        """Return the route of each row of x, `(N, D)`; the softmax is formed in float32."""
        if self.jitter and self.training:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = linear(x, self.weight).float()
        weights, selected = top_k_gate(logits, self.num_experts_per_tok)
        return RouterOutput(router_logits=logits, routing_weights=weights, selected_experts=selected)


class Batch:
    """What the layers must know of the batch that the model reads now: a forward pre-hook of the whole model.

    It sees what is passed to the model by name. `mask` marks the tokens that are no padding, `(B, T)`, or is None
    where that is not known; `prompt` those that a sequence's route may depend on: up to the first answer token, where
    labels are given, else all of the mask; `continuing` says that earlier tokens are in a cache.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.prompt: Tensor | None = None
        self.continuing = False
        self.by_sequence = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at what the model is called with."""
        mask, labels, cache = (kwargs.get(name) for name in ("attention_mask", "labels", "past_key_values"))
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        if not self.by_sequence:
            return
        self.prompt = self.mask
        if isinstance(labels, Tensor) and labels.dim() == 2:
            before = (labels != -100).cumsum(dim=1) == 0
            self.prompt = before if self.mask is None else before & self.mask.bool()
        self.continuing = cache is not None and bool(cache.get_seq_length() > 0)

    def rows(self, x: Tensor) -> Tensor | None:
        """Return which of the rows of x, `(B, T, D)`, count, as `(B * T,)`, or None where that is not known."""
        return self.mask.reshape(-1) if self.mask is not None and self.mask.shape == x.shape[:2] else None

    def prompt_mean(self, x: Tensor) -> Tensor:
        """Return the mean of each sequence's prompt, or of all its tokens where it has none, `(B, D)`."""
        if self.prompt is None or self.prompt.shape != x.shape[:2]:
            return x.mean(dim=1)
        share = self.prompt.to(x.dtype)
        share = torch.where(share.sum(dim=1, keepdim=True) > 0, share, 1.0)
        return torch.einsum("bt,btd->bd", share / share.sum(dim=1, keepdim=True), x)
