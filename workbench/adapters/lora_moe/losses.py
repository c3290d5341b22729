"""Gather the routing losses of a model's last forward."""

from __future__ import annotations

import torch
from torch import Tensor


def routing_losses(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the mean of each routing loss over the layers that have it, times its coefficient.

    Args:
        model: Any model, wrapped or not.

    Returns:
        Name to scalar loss; empty for a model without LoRA mixtures.
    """
    gathered: dict[str, list[Tensor]] = {}
    for module in model.modules():
        for name, value in getattr(module, "last_losses", {}).items():
            gathered.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in gathered.items()}
