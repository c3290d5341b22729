"""PEFT methods of our own; importing this package registers them with PEFT."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.adapters._register import register
from workbench.adapters.lora_moe.config import METHOD, LoraMoeConfig
from workbench.adapters.lora_moe.layer import LoraMoeLayer
from workbench.adapters.lora_moe.losses import routing_losses
from workbench.adapters.lora_moe.model import LoraMoeModel
from workbench.adapters.skill_router.bank import SkillBank
from workbench.adapters.skill_router.config import METHOD as SKILL_ROUTER
from workbench.adapters.skill_router.config import SkillRouterConfig
from workbench.adapters.skill_router.layer import SkillRouterLayer
from workbench.adapters.skill_router.model import (
    SkillRouterModel,
    add_skill,
    set_skill_weights,
    skill_losses,
    skill_weights,
)

__all__ = [
    "LoraMoeConfig",
    "SkillBank",
    "SkillRouterConfig",
    "add_skill",
    "auxiliary_losses",
    "keep_sequences",
    "set_skill_weights",
    "skill_weights",
]

register(METHOD, LoraMoeConfig, LoraMoeModel)
register(SKILL_ROUTER, SkillRouterConfig, SkillRouterModel)


def auxiliary_losses(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return what a training step adds to the task loss, from the model's last forward in training mode.

    Args:
        model: Any model, wrapped or not.

    Returns:
        Name to float32 scalar, each already multiplied by its coefficient: `balance`, `z` and `contrastive` for LoRA
        mixtures, `l1` for skill routers. Empty where no active adapter has such a loss, and after a forward in
        evaluation mode.
    """
    return routing_losses(model) | skill_losses(model)


def keep_sequences(model: torch.nn.Module, rows: Tensor) -> None:
    """Tell the routers which sequences of a batch are decoded further, where each sequence keeps its prompt's route.

    Whoever drops or reorders rows of the cache within a sequence of forwards calls this; transformers' `generate`
    keeps all rows, and beams only change places within one prompt.

    Args:
        model: Any model; one without sequence routing is left alone.
        rows: Indices of the sequences, in their new order.
    """
    for module in model.modules():
        if isinstance(module, LoraMoeLayer | SkillRouterLayer):
            module.keep_sequences(rows)
