"""The losses of a curriculum beside the task's own: staying close to the stage before, and the specialist half."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from workbench.ops.processes import put, sharded, whole

KINDS = ("kl", "hidden")


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of the trainable weights by name: of an adapter, so that the base model is never held twice.

    What FSDP has split is put together; every process must call it then.
    """
    return {name: whole(tensor.detach()).clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each row in nats per answer token.

    Args:
        logits: `(B, T, V)`; position t predicts token t + 1.
        labels: Token ids, -100 outside answers, `(B, T)`; each row holds at least one answer token.

    Returns:
        `(B,)`, float32.
    """
    counted = labels[:, 1:] != -100
    flat = F.cross_entropy(logits[:, :-1][counted].float(), labels[:, 1:][counted], reduction="none")
    return flat.new_zeros(counted.shape).masked_scatter(counted, flat).sum(-1) / counted.sum(-1)


def consistency_loss(
    model: torch.nn.Module, previous: Mapping[str, Tensor], inputs: Mapping[str, Tensor], *, kind: str = "kl",
    now: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return how far the model has moved from its earlier self on some examples, per answer token.

    `kl`: mean over answer tokens of KL(p_previous || p_now), in nats. `hidden`: the mean squared difference of the last
    hidden states there. Both are computed in evaluation mode: dropout, or a router's queue, would add noise of its own.

    Args:
        model: The model under training, adapter included.
        previous: Its trainable weights at the end of the stage before, from `snapshot`.
        inputs: `input_ids`, `attention_mask` and `labels`, each `(B, T)`; under FSDP every process must have some.
        kind: `kl` or `hidden`.
        now: What the model says at the answer tokens, `(answer tokens, V)`, where it is known, for `kl`; else the model
            is asked, so that there are two forwards instead of one.

    Returns:
        A scalar, at least 0, with gradient to the present weights.

    Source: Li and Hoiem (2016), Learning without Forgetting, equation 3 at temperature 1; MaLP (arXiv 2309.11696), the
    squared term. Our reading of ICFT's L_consistency, whose formula is not published.
    """
    read: Any = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    read["output_hidden_states"] = kind == "hidden"
    counted = inputs["labels"][:, 1:] != -100
    earlier = {name: tensor.to(counted.device) for name, tensor in previous.items()}

    def said(output: Any) -> Tensor:
        states = output.hidden_states[-1] if kind == "hidden" else output.logits
        return states[:, :-1][counted].float()

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            before = said(_ask(model, earlier, read))
        now = said(model(**read)) if now is None else now.float()
    finally:
        model.train(training)
    if kind == "hidden":
        return F.mse_loss(now, before)
    gap = F.kl_div(now.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="sum") / counted.sum()
    return gap.clamp(min=0)  # of equal models it is rounding, of either sign


def _ask(model: torch.nn.Module, weights: Mapping[str, Tensor], read: dict[str, Any]) -> Any:
    """Return what the model says with other trainable weights; those of shards, which FSDP fetches, change places."""
    if not sharded(model):
        return functional_call(model, dict(weights), (), read)
    present = {name: tensor for name, tensor in model.named_parameters() if name in weights}
    kept = {name: tensor.detach().clone() for name, tensor in present.items()}
    try:
        for name, tensor in present.items():
            put(tensor, weights[name])
        return model(**read)
    finally:
        for name, tensor in present.items():
            tensor.copy_(kept[name])


def noisy(model: torch.nn.Module) -> bool:
    """Say whether a training forward differs from one in evaluation: by dropout, or by jitter in a router."""
    for module in model.modules():
        rates = [rate for name, rate in vars(module).items() if "drop" in name or "jitter" in name]
        rates += [module.p] if isinstance(module, torch.nn.Dropout) else []
        if any(isinstance(rate, int | float) and rate > 0 for rate in rates):
            return True
    return False


def in_fine_tune_half(example_id: str) -> bool:
    """Say which half of the specialist tier an example is in; about every second id, and always the same."""
    return hashlib.blake2b(example_id.encode(), digest_size=1).digest()[0] % 2 == 1
