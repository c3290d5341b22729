"""PEFT methods of our own; importing this package registers them with PEFT."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.adapters.lora_moe.losses import routing_losses


def auxiliary_losses(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return what a training step adds to the task loss, from the model's last forward in training mode.

    Args:
        model: Any model, wrapped or not.

    Returns:
        Name to scalar loss, each already multiplied by its coefficient: `balance`, `z` and `contrastive` for LoRA
        mixtures. Empty where no active adapter has such a loss.
    """
    return routing_losses(model)
