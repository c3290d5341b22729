"""Density as a comparison: one byte for each entry of a task vector, so that a slider over densities needs no sorting.

A code says where in 256ths an entry stands: by magnitude (TIES, breadcrumbs), by its random number (DARE), or by its
random number moved by its magnitude (DELLA). The entries of the highest codes are kept, as many 256ths as the density
says. So what a density keeps, every larger one keeps too, and the codes of a seed are the same on every device. Against
the exact rule (`ops.sparsify`) the density is off by at most 1/256, in a tensor of n < 1,024 entries by 1/512 + 2/n;
breadcrumbs may be at either end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.ops.consensus import normalises
from workbench.ops.rule_settings import RULES, RuleSettings
from workbench.ops.sparsify import SMALLEST_SUM, delta_chunks, keep_probabilities, sum_dtype, uniforms

LEVELS = 256
_CHUNKS = {"cpu": 1 << 17, "cuda": 1 << 22}  # elements at a time, whose buffers stay in the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """The codes of one tensor's task vector.

    Args:
        values: uint8, flat: 255 for the 256th that is kept first, 0 for the last.
        masses: The sum of the magnitudes that the k highest codes hold, for k from 0 to 256.
    """

    values: Tensor
    masses: tuple[float, ...]


def has_codes(method: str, settings: RuleSettings) -> bool:
    """Say whether a rule is one comparison with codes.

    All of TIES, DARE, DELLA and breadcrumbs are, except TIES with a threshold for the whole model, and DELLA with a
    factor of its own for every entry (semantics other than mergekit's).
    """
    della = RULES[method].trim == "della" and settings.semantics != "mergekit" and settings.rescale is not False
    return RULES[method].sparse and settings.threshold is None and not della


def codes_key(method: str, settings: RuleSettings) -> tuple[object, ...]:
    """Return what codes depend on besides the tensors: with an equal key they serve any density and weights."""
    trim = RULES[method].trim
    random = (settings.seed,) if trim in ("random", "della") else ()
    della = (settings.epsilon, settings.semantics) if trim == "della" else ()
    return "magnitude" if trim == "outliers" else trim, *random, *della


@torch.no_grad()
def make_codes(method: str, tensor: Tensor, base: Tensor, settings: RuleSettings, parent: int) -> Codes:
    """Return the codes of one parent's task vector, tensor - base.

    Args:
        method: One of those that `has_codes`.
        tensor: The parent's tensor.
        base: The base's tensor, same shape.
        settings: Gives seed and name, and for DELLA epsilon and semantics.
        parent: The parent's index, of which random codes depend.
    """
    if RULES[method].trim in ("magnitude", "outliers"):
        values = _magnitude_codes(tensor, base)
    else:
        values = _random_codes(method, tensor, base, settings, parent)
    sums = torch.zeros(LEVELS, dtype=torch.float64, device=tensor.device)
    for chunk, codes in zip(delta_chunks(tensor, base), values.split(1 << 19)):
        sums.index_add_(0, codes.int(), chunk.abs_().double())
    return Codes(values=values, masses=(0.0, *sums.flip(0).cumsum(0).tolist()))


def _magnitude_codes(tensor: Tensor, base: Tensor) -> Tensor:
    sizes = torch.cat([chunk.abs_().float() for chunk in delta_chunks(tensor, base)])
    # Numbers from 0 up are ordered as their bits are, and whole numbers sort several times faster. Turned over, the
    # largest come first, and of equal ones that of the lowest index, as in the exact rule.
    order = sizes.view(torch.int32).bitwise_xor_(torch.iinfo(torch.int32).max).argsort(stable=True)
    count = max(1, len(order))
    ranks = torch.arange(len(order), device=order.device).mul_(LEVELS).div_(count, rounding_mode="floor")
    return torch.empty_like(order, dtype=torch.uint8).scatter_(0, order, (LEVELS - 1 - ranks).to(torch.uint8))


def _random_codes(method: str, tensor: Tensor, base: Tensor, settings: RuleSettings, parent: int) -> Tensor:
    values = torch.empty(tensor.numel(), dtype=torch.uint8, device=tensor.device)
    pull = keep_probabilities(tensor, base, settings, 0.5, parent).view(-1) if RULES[method].trim == "della" else None
    start = 0
    for target in values.split(1 << 19):
        place = uniforms(start, len(target), settings=settings, parent=parent, device=tensor.device)
        if pull is not None:
            place -= pull[start : start + len(target)] - 0.5
        target.copy_((LEVELS - 1 - (place * LEVELS).floor_()).clamp_(0, LEVELS - 1))
        start += len(target)
    return values


def span(method: str, settings: RuleSettings, parent: int) -> tuple[int, int]:
    """Return (top, reach): of the highest codes, the first `top` are dropped and the rest kept, up to `reach`.

    (0, 256) keeps all.
    """
    density, mergekit = settings.density_of(parent), settings.semantics == "mergekit"
    outliers = RULES[method].trim == "outliers"
    if density >= 1 and (mergekit or not outliers):
        return 0, LEVELS
    target = round(LEVELS * density)
    if RULES[method].trim == "magnitude" and mergekit and density > 0:
        target = max(1, target)
    # Only a density of 1 keeps all: DELLA's last code also holds what no smaller one may keep.
    target = min(target, LEVELS - 1)
    top = round(LEVELS * settings.own("gamma")[parent]) if outliers else 0
    top = min(top, LEVELS - target) if mergekit else top
    return top, min(LEVELS, top + target)


def factor_of(method: str, settings: RuleSettings, parent: int, codes: Codes) -> float:
    """Return the factor that makes up for what the codes drop, as `sparsify.keep` has it for masks."""
    top, reach = span(method, settings, parent)
    rescale = RULES[method].trim in ("random", "della") if settings.rescale is None else settings.rescale
    if not rescale or (top, reach) == (0, LEVELS) or reach == top:
        return 1.0
    if settings.semantics != "mergekit":
        return LEVELS / (reach - top)
    before, after = codes.masses[-1], codes.masses[reach] - codes.masses[top]
    return before / after if min(before, after) >= SMALLEST_SUM else 1.0


@torch.no_grad()
def merge_coded(
    method: str,
    tensors: Sequence[Tensor],
    base: Tensor,
    settings: RuleSettings,
    codes: Sequence[Codes],
    *,
    out: Tensor,
    compiled: bool = False,
) -> Tensor:
    """Write the merge of one tensor, like `rules.merge_tensor` with the density rounded to 256ths.

    Args:
        method: One of those that `has_codes`.
        tensors: The N parents' tensors.
        base: The base's tensor, same shape.
        settings: What the rule is told.
        codes: Those of each parent, made with settings of an equal `codes_key`.
        out: Receives the result; contiguous, sharing no memory with the others.
        compiled: Run as one loop that `torch.compile` makes, which needs a compiler (C++, on a GPU Triton) and, at the
            first tensor, seconds; False runs operation by operation, and takes several times longer.

    Returns:
        `out`.
    """
    flags = _flags(method, settings)
    numbers = _numbers(method, settings, codes, flags)
    values = numbers.to(out.device, sum_dtype(base)).unbind()
    size = out.numel() if compiled else _CHUNKS.get(out.device.type, 1 << 20)
    merge, words = (_compiled(), (_trimmed_fused, _elected_fused)) if compiled else (_merge, (_trimmed, _elected))
    flat = [part.reshape(-1).split(max(1, size)) for part in (base, *tensors, *(code.values for code in codes))]
    for target, origin, *pieces in zip(out.view(-1).split(max(1, size)), *flat):
        merge(target, origin, pieces[: len(codes)], pieces[len(codes) :], values, flags, words)
    return out


@cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_merge, dynamic=True)


class _Flags(NamedTuple):
    outliers: bool
    elect: bool
    normalise: bool
    weighted: bool
    zero_is_positive: bool


def _flags(method: str, settings: RuleSettings) -> _Flags:
    rule, mergekit = RULES[method], settings.semantics == "mergekit"
    return _Flags(
        rule.trim == "outliers", rule.elect, normalises(method, settings), mergekit, settings.semantics != "paper"
    )


def _numbers(method: str, settings: RuleSettings, codes: Sequence[Codes], flags: _Flags) -> Tensor:
    """The numbers of `_merge` as `(5, N)`: tensors, since a loop would be compiled anew for every plain number."""
    rows = []
    for parent, (weight, part) in enumerate(zip(settings.weights, codes)):
        top, reach = span(method, settings, parent)
        # With votes that are weighted, or none, the weight can go in at once.
        first = weight if flags.weighted or not flags.elect else 1.0
        factor = first * factor_of(method, settings, parent, part)
        divisor = math.fsum(settings.weights) if flags.normalise and not flags.elect else 1.0
        rows.append((LEVELS - 1 - reach, LEVELS - top, factor, weight, settings.lambda_ / divisor))
    return torch.tensor(rows, dtype=torch.float64).T.contiguous()


def _merge(
    out: Tensor,
    base: Tensor,
    tensors: Sequence[Tensor],
    codes: Sequence[Tensor],
    numbers: Sequence[Tensor],
    flags: _Flags,
    words: tuple[Callable[..., Tensor], Callable[..., Tensor]],
) -> None:
    """Trim, elect, add up; `words` says how a part is trimmed and how parts are elected."""
    below, above, factors, weights, scale = numbers
    origin, (trimmed, elected) = base.to(below.dtype), words
    rows = [
        trimmed(tensor, code, origin, (below[index], above[index], factors[index]), flags)
        for index, (tensor, code) in enumerate(zip(tensors, codes))
    ]
    if flags.elect:
        merged = elected(rows, weights, flags)
    else:
        merged = rows[0]
        for row in rows[1:]:
            merged = merged.add_(row)
    out.copy_(merged.mul_(scale[0]).add_(origin))


def _trimmed(tensor: Tensor, code: Tensor, origin: Tensor, numbers: Sequence[Tensor], flags: _Flags) -> Tensor:
    below, above, factor = numbers
    place = code.to(origin.dtype)
    # Whole numbers below the limit become 0, the others 1: in floats, this is faster than to compare.
    kept = (place - below).clamp_(0, 1)
    if flags.outliers:
        kept.mul_((above - place).clamp_(0, 1))
    return kept.mul_(tensor.to(origin.dtype) - origin).mul_(factor)


def _elected(rows: Sequence[Tensor], weights: Tensor, flags: _Flags) -> Tensor:
    sign = rows[0].clone()
    for row in rows[1:]:
        sign.add_(row)
    sign.sign_()
    if flags.zero_is_positive:
        sign.add_(0.5).sign_()
    total, divisor = torch.zeros_like(sign), torch.zeros_like(sign)
    for index, row in enumerate(rows):
        row.mul_(sign).clamp_(min=0)
        total.add_(row if flags.weighted else row * weights[index])
        if flags.normalise:
            agrees = row.sign_()
            divisor.add_(agrees.mul_(weights[index]) if flags.weighted else agrees)
    if flags.normalise:
        # A divisor of 0 becomes 1.
        total.div_(divisor.add_(1 - divisor.abs().sign_()))
    return total.mul_(sign)


# The same two in the words that a compiler makes the fastest loop of: comparisons cost nothing there.


def _trimmed_fused(tensor: Tensor, code: Tensor, origin: Tensor, numbers: Sequence[Tensor], flags: _Flags) -> Tensor:
    below, above, factor = numbers
    place = code.to(origin.dtype)
    kept = (place > below) & (place < above) if flags.outliers else place > below
    return torch.where(kept, (tensor.to(origin.dtype) - origin) * factor, 0.0)


def _elected_fused(rows: Sequence[Tensor], weights: Tensor, flags: _Flags) -> Tensor:
    total: Any = sum(rows)
    agrees = [(row != 0) & ((row > 0) == (total >= 0)) for row in rows]
    if not flags.zero_is_positive:
        agrees = [agree & (total != 0) for agree in agrees]
    parts = rows if flags.weighted else [row * weight for row, weight in zip(rows, weights.unbind())]
    merged: Any = sum(torch.where(agree, part, 0.0) for agree, part in zip(agrees, parts))
    if not flags.normalise:
        return merged
    shares = weights if flags.weighted else torch.ones_like(weights)
    divisor: Any = sum(torch.where(agree, share, 0.0) for agree, share in zip(agrees, shares.unbind()))
    return merged / torch.where(divisor == 0, 1.0, divisor)
