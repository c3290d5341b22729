"""What weighs the skills: plain numbers, or a gate that reads the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALLEST_SHARE = 1e-7


class SkillWeights(nn.Module):
    """One number for each skill: the weight itself, or its logit under a softmax.

    Args:
        weights: What the skills weigh at first, S numbers.
        softmax: Keep them above 0 with sum 1. A weight of 0 is then kept as 1e-7, from which training can raise it.
    """

    def __init__(self, weights: Sequence[float], softmax: bool):
        super().__init__()
        self.softmax = softmax
        self.weight = nn.Parameter(self.encode(weights))

    def forward(self) -> Tensor:
        """Return the weights `(S,)`, in float32."""
        weight = self.weight.float()
        return torch.softmax(weight, dim=-1) if self.softmax else weight

    def encode(self, weights: Sequence[float]) -> Tensor:
        """Return the parameter that gives these weights."""
        values = torch.tensor(weights, dtype=torch.float32)
        return values.clamp(min=SMALLEST_SHARE).log() if self.softmax else values

    @torch.no_grad()
    def assign(self, weights: Sequence[float]) -> None:
        """Set the weights; with more of them than before, the parameter is a new one."""
        values = self.encode(weights).to(self.weight.device)
        if values.shape == self.weight.shape:
            self.weight.copy_(values)
        else:
            self.weight = nn.Parameter(values, requires_grad=self.weight.requires_grad)
