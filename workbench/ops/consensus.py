"""From trimmed task vectors to one tensor: elect a sign, let what agrees with it in, add to the base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.ops.rule_settings import RULES, RuleSettings
from workbench.ops.sparsify import Kept, sum_dtype

_CACHED = 1 << 16  # elements at a time on a CPU: what is worked on stays in its cache


class Agreement(NamedTuple):
    """Who takes part at every entry, and what their weighted sum is divided by.

    Args:
        mask: 1 and 0, `(N, ...)`, in the task vectors' format; None where all do.
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
    normalise = normalises(method, settings)
    if not rule.elect:
        return Agreement(None, math.fsum(settings.weights) if normalise else 1.0)
    weights = _column(settings, deltas)
    votes = deltas * weights if mergekit else deltas.clone()
    sign = votes.sum(0).sign_()
    if settings.semantics != "paper":
        sign.add_(0.5).sign_()
    mask = votes.mul_(sign).gt_(0)
    if not normalise:
        return Agreement(mask, 1.0)
    divisor = (mask * weights).sum(0) if mergekit else mask.sum(0)
    if not mergekit or min(settings.weights) > 0:
        # Where nothing agrees there is nothing to divide, and this is faster than to look for zeros.
        return Agreement(mask, divisor.clamp_(min=min(settings.weights) if mergekit else 1.0))
    return Agreement(mask, divisor.masked_fill_(divisor == 0, 1.0))


def normalises(method: str, settings: RuleSettings) -> bool:
    """Say whether a method divides by the weights or the number of those that agree: as told, or by its habit."""
    if settings.normalise is not None:
        return settings.normalise
    # Papers and PEFT average what agrees; of mergekit's methods only TIES and DELLA do.
    return RULES[method].normalise if settings.semantics == "mergekit" else RULES[method].elect


def _column(settings: RuleSettings, deltas: Tensor) -> Tensor:
    weights = torch.tensor(settings.weights, dtype=deltas.dtype, device=deltas.device)
    return weights.view(-1, *[1] * (deltas.ndim - 1))


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
    flat, start = out.view(-1), 0
    for origin, deltas in kept_chunks(tensors, base, kept):
        agreement = consensus(method, deltas, settings)
        deltas.mul_(_column(settings, deltas))
        if agreement.mask is not None:
            deltas.mul_(agreement.mask)
        merged = deltas.sum(0).div_(agreement.divisor).mul_(settings.lambda_).add_(origin)
        flat[start : start + len(merged)].copy_(merged)
        start += len(merged)
    return out


def kept_chunks(tensors: Sequence[Tensor], base: Tensor, kept: Sequence[Kept]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the base and the trimmed and rescaled task vectors, flat, chunk by chunk.

    Args:
        tensors: The N parents' tensors.
        base: The base's tensor.
        kept: One for each parent.

    Yields:
        The base's part `(elements,)` and the task vectors `(N, elements)`, in float32 or float64; the second is
        overwritten by the next.
    """
    size = _CACHED if base.device.type == "cpu" else 64 * _CACHED
    parts = [
        (tensor.reshape(-1).split(size), _split(part.mask, size), _split(part.factor, size))
        for tensor, part in zip(tensors, kept)
    ]
    buffer = torch.empty((len(tensors), min(size, base.numel())), dtype=sum_dtype(base), device=base.device)
    for index, origin in enumerate(base.reshape(-1).split(size)):
        origin, deltas = origin.to(buffer.dtype), buffer[:, : origin.numel()]
        for row, (pieces, masks, factors) in zip(deltas, parts):
            row.copy_(pieces[index]).sub_(origin)
            if isinstance(masks, tuple):
                # Multiplied, not selected: a NaN in a parent stays visible.
                row.mul_(masks[index].to(row.dtype))
            if factors != 1.0:
                row.mul_(factors[index] if isinstance(factors, tuple) else factors)
        yield origin, deltas


def _split(part: Tensor | float | None, size: int) -> Any:
    return part.reshape(-1).split(size) if isinstance(part, Tensor) else part
