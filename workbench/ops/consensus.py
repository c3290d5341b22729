"""From trimmed task vectors to one tensor: elect a sign, let what agrees with it in, add to the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.ops.rule_settings import RULES, RuleSettings
from workbench.ops.sparsify import CHUNK, Kept, delta_chunks, sum_dtype


class Agreement(NamedTuple):
    """Who takes part at every entry, and what their weighted sum is divided by.

    Args:
        mask: Boolean `(N, ...)`; None where all do.
        divisor: `(...)`, or a number.
    """

    mask: Tensor | None
    divisor: Tensor | float


def consensus(method: str, deltas: Tensor, settings: RuleSettings) -> Agreement:
    """Elect a sign at every entry and say which parents agree with it.

    The sign is that of sum_i w_i d_i with mergekit's semantics, of sum_i d_i with the others; a sum of 0 counts as
    positive, with the paper's semantics as no sign at all. An entry of 0 agrees with nothing.

    Args:
        method: A key of `RULES`.
        deltas: Trimmed and rescaled task vectors, `(N, ...)`, one per parent.
        settings: Gives weights, normalise and semantics.

    Returns:
        The agreement: mask `(N, ...)` and divisor: the sum of the weights of those that agree, their number with the
        other semantics, 1 where that is 0 or where nothing is normalised.

    Source: TIES-Merging (arXiv 2306.01708), section 3, steps 2 and 3; mergekit 0.1.5; PEFT `ties`.
    """
    rule, mergekit = RULES[method], settings.semantics == "mergekit"
    normalise = _normalises(method, settings)
    if not rule.elect:
        return Agreement(None, sum(settings.weights) if normalise else 1.0)
    weights = torch.tensor(settings.weights, dtype=deltas.dtype, device=deltas.device)
    weights = weights.view(-1, *[1] * (deltas.ndim - 1))
    votes = deltas * weights if mergekit else deltas
    total = votes.sum(0)
    positive = total > 0 if settings.semantics == "paper" else total >= 0
    mask = torch.where(positive, votes > 0, votes < 0)
    if settings.semantics == "paper":
        mask &= total != 0
    if not normalise:
        return Agreement(mask, 1.0)
    divisor = (mask * weights).sum(0) if mergekit else mask.sum(0, dtype=deltas.dtype)
    return Agreement(mask, divisor.masked_fill_(divisor == 0, 1.0))


def _normalises(method: str, settings: RuleSettings) -> bool:
    if settings.normalise is not None:
        return settings.normalise
    rule = RULES[method]
    # Papers and PEFT average what agrees; of mergekit's methods only TIES and DELLA do.
    return rule.normalise if settings.semantics == "mergekit" else rule.elect


@torch.no_grad()
def merge_kept(
    method: str,
    tensors: Sequence[Tensor],
    base: Tensor,
    settings: RuleSettings,
    kept: Sequence[Kept],
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return base + lambda * (sum_i w_i m_i f_i d_i over those that agree) / divisor, with d_i = W_i - base.

    Args:
        method: A method of task vectors, a key of `RULES`.
        tensors: The N parents' tensors, one shape.
        base: The base's tensor, same shape.
        settings: What the rule is told.
        kept: Mask m_i and factor f_i of each parent, as `sparsify.keep` or any other source gives them.
        out: Receives the result; contiguous, sharing no memory with the others. None makes a new tensor.

    Returns:
        A tensor of the first parent's shape and dtype.
    """
    out = torch.empty_like(tensors[0], memory_format=torch.contiguous_format) if out is None else out
    targets = zip(out.view(-1).split(CHUNK), base.reshape(-1).split(CHUNK))
    for (target, origin), deltas in zip(targets, kept_chunks(tensors, base, kept)):
        agreement = consensus(method, deltas, settings)
        weights = torch.tensor(settings.weights, dtype=deltas.dtype, device=deltas.device).view(-1, 1)
        deltas.mul_(weights)
        if agreement.mask is not None:
            deltas.mul_(agreement.mask)
        merged = deltas.sum(0).div_(agreement.divisor).mul_(settings.lambda_)
        target.copy_(merged.add_(origin))
    return out


def kept_chunks(tensors: Sequence[Tensor], base: Tensor, kept: Sequence[Kept]) -> Iterator[Tensor]:
    """Yield the trimmed and rescaled task vectors, `(N, elements)`, a chunk at a time, in float32 or float64."""
    masks = [None if part.mask is None else part.mask.reshape(-1).split(CHUNK) for part in kept]
    factors = [part.factor.reshape(-1).split(CHUNK) if isinstance(part.factor, Tensor) else None for part in kept]
    buffer = torch.empty((len(tensors), min(CHUNK, base.numel())), dtype=sum_dtype(base), device=base.device)
    for index, chunks in enumerate(zip(*(delta_chunks(tensor, base) for tensor in tensors))):
        deltas = buffer[:, : chunks[0].numel()]
        for row, chunk, part, mask, factor in zip(deltas, chunks, kept, masks, factors):
            row.copy_(chunk)
            if mask is not None:
                # Multiplied, not selected: a NaN in a parent stays visible.
                row.mul_(mask[index])
            if factor is not None or part.factor != 1.0:
                row.mul_(part.factor if factor is None else factor[index])
        yield deltas
