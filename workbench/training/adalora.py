"""AdaLoRA beside the steps: its penalty, the allocation of its ranks, and what of both a checkpoint needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from peft import AdaLoraModel
from torch import Tensor

from workbench.ops.processes import put, sharded, whole

_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def allocator_of(model: Any) -> Any:
    """Return AdaLoRA's rank allocator, or None for any other model."""
    tuner = getattr(model, "base_model", None)
    return getattr(tuner, "rankallocator", None) if isinstance(tuner, AdaLoraModel) else None


def allocate(model: Any, step: int) -> None:
    """Let AdaLoRA allocate its ranks after an optimiser step, while the gradients are there; no trainer does.

    What FSDP has split is put together for it, since the ranks of whole matrices compete; every process must call it.
    Models without AdaLoRA are left as they are.
    """
    if allocator_of(model) is None:
        return
    tuner = model.base_model
    if not sharded(model):
        tuner.update_and_allocate(step)
        return
    parts = {name: part for name, part in tuner.model.named_parameters() if "lora_" in name and part.requires_grad}
    together = {name: whole(part.detach()) for name, part in parts.items()}
    for name, part in parts.items():
        together[name].grad = None if part.grad is None else whole(part.grad)
    view = SimpleNamespace(
        model=SimpleNamespace(named_parameters=together.items), peft_config=tuner.peft_config,
        trainable_adapter_name=tuner.trainable_adapter_name, rankallocator=tuner.rankallocator,
    )  # fmt: skip
    AdaLoraModel.update_and_allocate(view, step)  # pyright: ignore[reportArgumentType]
    for name, part in parts.items():
        if "lora_E" in name:
            put(part, together[name])


def orthogonality(model: Any) -> dict[str, Tensor]:
    """Return AdaLoRA's penalty on factors that are not orthonormal, as `orthogonal`; empty for other adapters.

    weight * mean over factors of ||A A^T - I||_F and ||B^T B - I||_F.

    Source: AdaLoRA (arXiv 2303.10512), equation 4, with PEFT's norm and mean.
    """
    if allocator_of(model) is None:
        return {}
    tuner = model.base_model
    weight = tuner.peft_config[tuner.trainable_adapter_name].orth_reg_weight
    gaps = []
    for name, part in tuner.model.named_parameters():
        if part.requires_grad and ("lora_A" in name or "lora_B" in name):
            factor = whole(part)
            gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
            gaps.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)))
    return {"orthogonal": weight * torch.stack(gaps).mean()} if weight and gaps else {}


def ranks(model: Any) -> dict[str, Any]:
    """Return AdaLoRA's present rank by layer under `ranks` with their mean; empty for other adapters."""
    if allocator_of(model) is None:
        return {}
    left = {
        name.removesuffix(".lora_E"): int((whole(e[model.base_model.trainable_adapter_name]) != 0).sum())
        for name, e in model.base_model.model.named_modules()
        if name.endswith(".lora_E")
    }
    return {"mean_rank": sum(left.values()) / len(left), "ranks": left}


@contextmanager
def unpruned(model: Any) -> Iterator[None]:
    """Have PEFT take the factors of a model in shards as they are: it cannot cut pruned ranks out of them."""
    allocator = allocator_of(model)
    if allocator is None or not sharded(model):
        yield
        return
    config = allocator.peft_config
    config.rank_pattern, pattern = None, config.rank_pattern
    try:
        yield
    finally:
        config.rank_pattern = pattern


def allocation(model: Any) -> dict[str, Tensor]:
    """Return what the allocator knows, by name, for a checkpoint; empty for other adapters."""
    allocator = allocator_of(model)
    if allocator is None:
        return {}
    pattern = allocator.peft_config.rank_pattern or {}
    tensors = {f"{kind}/{name}": t for kind in _KEPT for name, t in getattr(allocator, kind).items()}
    return tensors | {f"pattern/{name}": torch.tensor(kept) for name, kept in pattern.items()}


def restore_allocation(model: Any, saved: dict[str, Tensor], device: torch.device) -> None:
    """Bring back what `allocation` returned; other names are passed over, other adapters left as they are."""
    allocator = allocator_of(model)
    if allocator is None:
        return
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_KEPT, "pattern")}
    for name, tensor in saved.items():
        kind, _, rest = name.partition("/")
        groups.get(kind, {})[rest] = tensor
    for kind in _KEPT:
        setattr(allocator, kind, {name: tensor.to(device) for name, tensor in groups[kind].items()})
    pattern = {name: tensor.tolist() for name, tensor in groups["pattern"].items()}
    allocator.peft_config.rank_pattern = pattern or None
