"""What weighs the skills: plain numbers, or a gate that reads the prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from workbench.records import RouterOutput

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
        self.weight = nn.Parameter(_encoded(weights, softmax))

    def forward(self) -> Tensor:
        """Return the weights `(S,)`, in float32."""
        weight = self.weight.float()
        return torch.softmax(weight, dim=-1) if self.softmax else weight

    @torch.no_grad()
    def assign(self, weights: Sequence[float]) -> None:
        """Set the weights in place."""
        self.weight.copy_(_encoded(weights, self.softmax))

    def grow(self) -> None:
        """Add a skill of weight 0, in a parameter that is a new one."""
        weights = [*self().tolist(), 0.0]
        self.weight = _longer(self.weight, _encoded(weights, self.softmax))


class InputGate(nn.Module):
    """Read the weights of the skills off a prompt: w = G norm(x) + b, or its softmax.

    x is the mean of what the prompt's tokens bring to the gate's layer, brought to mean 0 and variance 1. G starts at
    0, so that every prompt has the weights of a static router at first.

    Args:
        features: D, the width of x.
        weights: What the skills weigh at first, S numbers.
        softmax: Keep the weights above 0 with sum 1; a first weight of 0 is then 1e-7.

    Source: our reading of SA-MDKIF (arXiv 2402.00474), which does not state its router's formula.
    """

    def __init__(self, features: int, weights: Sequence[float], softmax: bool):
        super().__init__()
        self.softmax = softmax
        self.weight = nn.Parameter(torch.zeros(len(weights), features))
        self.bias = nn.Parameter(_encoded(weights, softmax))

    def forward(self, x: Tensor) -> RouterOutput:
        """Return the weights of all skills for each prompt's mean x, `(B, D)`; free ones sum to anything."""
        x = layer_norm(x.float(), x.shape[-1:])
        logits = linear(x, self.weight.float()).float() + self.bias.float()
        weights, selected = (torch.softmax(logits, dim=-1) if self.softmax else logits).sort(dim=-1, descending=True)
        return RouterOutput(router_logits=logits, routing_weights=weights, selected_experts=selected)

    def grow(self) -> None:
        """Add a skill of weight 0 for every prompt, in parameters that are new ones."""
        bias = self.bias.detach()
        last = bias.logsumexp(0, keepdim=True) + math.log(SMALLEST_SHARE) if self.softmax else bias.new_zeros(1)
        self.bias = _longer(self.bias, torch.cat([bias, last]))
        self.weight = _longer(self.weight, torch.cat([self.weight.detach(), torch.zeros_like(self.weight[:1])]))


def _encoded(weights: Sequence[float], softmax: bool) -> Tensor:
    """Return the numbers that give these weights."""
    values = torch.tensor(weights, dtype=torch.float32)
    return values.clamp(min=SMALLEST_SHARE).log() if softmax else values


def _longer(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(old.device, old.dtype), requires_grad=old.requires_grad)
