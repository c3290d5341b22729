"""Which entries of a task vector a rule keeps, and the factor that makes up for the others.

Every mask is the same on every device: ties in magnitude go to the entry that comes first, and random masks compare
a probability with `uniforms`, so that a larger density keeps all that a smaller one kept. Work goes chunk by chunk:
besides the masks, memory does not grow with the tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.ops.rule_settings import RULES, RuleSettings

CHUNK = 1 << 19
"""Elements that are worked on at a time."""

_DIGIT = 16  # bits of a magnitude that one pass of the selection settles
SMALLEST_SUM = 1e-7
"""Mergekit's: a smaller sum of magnitudes is not rescaled."""


@dataclass(frozen=True)
class Kept:
    """What is kept of one parent's task vector.

    Args:
        mask: True where an entry is kept, of the tensor's shape; None keeps all.
        factor: What kept entries are multiplied by: a number, or a float32 tensor of the tensor's shape.
    """

    mask: Tensor | None = None
    factor: float | Tensor = 1.0


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the format in which sums over a tensor are formed: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def delta_chunks(tensor: Tensor, base: Tensor | None, size: int | None = None) -> Iterator[Tensor]:
    """Yield the task vector tensor - base, flat, `size` elements at a time, in `sum_dtype`; base None is zero."""
    dtype, size = sum_dtype(tensor), size or CHUNK
    bases = [None] * (tensor.numel() // size + 1) if base is None else base.reshape(-1).split(size)
    for piece, origin in zip(tensor.reshape(-1).split(size), bases):
        # A chunk of its own even where no format changes, since callers write into it.
        yield piece.to(dtype, copy=True) if origin is None else piece.to(dtype) - origin.to(dtype)


def uniforms(start: int, count: int, *, settings: RuleSettings, parent: int, device: torch.device) -> Tensor:
    """Return uniform numbers for the elements from `start` on: the same for the same element on every device.

    The element's index goes through a 64-bit hash, keyed by the seed, the tensor's name and the parent's index.

    Args:
        start: Flat index of the first element.
        count: How many.
        settings: Gives seed and name.
        parent: The parent's index.
        device: Where the numbers are formed.

    Returns:
        `(count,)` float32 in [0, 1), multiples of 2^-24.

    Source: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
    """
    text = f"{settings.seed}\0{settings.name}\0{parent}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
    state = torch.arange(start, start + count, device=device).mul_(_signed(0x9E3779B97F4A7C15)).add_(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state.bitwise_xor_(_shifted(state, shift)).mul_(_signed(factor))
    state.bitwise_xor_(_shifted(state, 31))
    return _shifted(state, 40).to(torch.float32).mul_(2.0**-24)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _shifted(state: Tensor, bits: int) -> Tensor:
    # int64 shifts copy the sign bit in; a hash needs zeros.
    return (state >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def kth_largest(chunks: Callable[[], Iterable[Tensor]], k: int) -> float:
    """Return the k-th largest of many numbers, exactly, without sorting or storing them.

    Numbers of one format can be ordered by their bits; each pass settles 16 of them, from the top.

    Args:
        chunks: Called for each pass; gives flat chunks, all float32 or all float64.
        k: From 1 to the number of elements.
    """
    dtype = next(iter(chunks())).dtype
    width, whole = (64, torch.int64) if dtype == torch.float64 else (32, torch.int32)
    buckets, prefix = 1 << _DIGIT, 0
    for place in range(width - _DIGIT, -1, -_DIGIT):
        first = place == width - _DIGIT
        counts: Tensor | float = 0.0
        for chunk in chunks():
            keys = chunk.view(whole)
            # Below zero, larger bits are smaller numbers.
            keys = keys ^ ((keys >> (width - 1)) & torch.iinfo(whole).max)
            if not first:
                keys = keys[(keys >> (place + _DIGIT)) == prefix]
            digits = (keys >> place) + buckets // 2 if first else (keys >> place) & (buckets - 1)
            counts = torch.bincount(digits, minlength=buckets) + counts
        reached = torch.as_tensor(counts).flip(0).cumsum(0)
        steps = int((reached < k).sum())
        k -= int(reached[steps - 1]) if steps else 0
        digit = buckets - 1 - steps
        prefix = digit - buckets // 2 if first else (prefix << _DIGIT) | digit
    bits = prefix if prefix >= 0 else prefix ^ torch.iinfo(whole).max
    return torch.tensor(bits, dtype=whole).view(dtype).item()


def whole_model_threshold(chunks: Callable[[], Iterable[Tensor]], count: int, density: float) -> float:
    """Return the magnitude from which TIES keeps an entry when it trims over a whole model.

    Args:
        chunks: Called for each pass; gives one parent's task vectors, flat, as `delta_chunks` does, tensor by tensor.
        count: Their entries in all.
        density: The share to keep, 0 to 1.

    Returns:
        A number for `RuleSettings.threshold`; infinite where nothing is kept.

    Source: TIES-Merging (arXiv 2306.01708), section 3, step 1. Entries of equal magnitude are all kept.
    """
    k = int(density * count)
    return kth_largest(lambda: (chunk.abs() for chunk in chunks()), k) if k else float("inf")


def top_mask(tensor: Tensor, base: Tensor | None, k: int) -> Tensor:
    """Return where the task vector is among its k largest magnitudes: exactly k entries, ties in order of index.

    Args:
        tensor: Any shape.
        base: Same shape, or None for zero.
        k: From 0 to the number of elements.

    Returns:
        Boolean, of the tensor's shape.
    """
    mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    if k == 0:
        return mask.view(tensor.shape)
    if k == tensor.numel():
        return mask.logical_not_().view(tensor.shape)
    least = kth_largest(lambda: (chunk.abs_() for chunk in delta_chunks(tensor, base)), k)
    ties = torch.zeros_like(mask)
    for target, tied, chunk in zip(mask.split(CHUNK), ties.split(CHUNK), delta_chunks(tensor, base)):
        torch.gt(chunk.abs_(), least, out=target)
        torch.eq(chunk, least, out=tied)
    spare = k - int(mask.sum())
    for target, tied in zip(mask.split(CHUNK), ties.split(CHUNK)):
        target.logical_or_(tied.logical_and_(tied.cumsum(0) <= spare) if spare > 0 else tied.zero_())
        spare -= int(tied.sum())
    return mask.view(tensor.shape)


def keep(method: str, tensor: Tensor, base: Tensor, settings: RuleSettings, parent: int) -> Kept:
    """Return what a method keeps of one parent's task vector, and the factor that makes up for the rest.

    Args:
        method: A key of `RULES`.
        tensor: The parent's tensor.
        base: The base's tensor, same shape.
        settings: What the rule is told.
        parent: The parent's index in the settings.

    Source: TIES (arXiv 2306.01708, step 1), DARE (arXiv 2311.03099, section 3), DELLA (arXiv 2406.11617, MAGPRUNE),
    Model Breadcrumbs (arXiv 2312.06795, section 3); the table in `ops.rules` says where they and the tools differ.
    """
    rule, density = RULES[method], settings.density_of(parent)
    probabilities: float | Tensor = density
    if rule.trim == "none" or tensor.numel() == 0:
        return Kept()
    if rule.trim == "magnitude":
        mask = _trim(tensor, base, settings, parent)
    elif rule.trim == "outliers":
        mask = _without_outliers(tensor, base, settings, parent)
    else:
        mask, probabilities = _random(rule.trim == "della", tensor, base, settings, parent)
    if mask is None:
        return Kept()
    rescale = rule.trim in ("random", "della") if settings.rescale is None else settings.rescale
    if not rescale or density == 0:
        return Kept(mask)
    if settings.semantics != "mergekit":
        return Kept(mask, 1.0 / probabilities)
    return Kept(mask, l1_factor(tensor, base, mask))


def _trim(tensor: Tensor, base: Tensor, settings: RuleSettings, parent: int) -> Tensor | None:
    density, count = settings.density_of(parent), tensor.numel()
    if settings.threshold is not None:
        kept = [chunk.abs_() >= settings.threshold[parent] for chunk in delta_chunks(tensor, base)]
        return torch.cat(kept).view(tensor.shape)
    if density >= 1:
        return None
    k = int(density * count)
    return top_mask(tensor, base, max(1, k) if settings.semantics == "mergekit" and density > 0 else k)


def _without_outliers(tensor: Tensor, base: Tensor, settings: RuleSettings, parent: int) -> Tensor | None:
    count, density, gamma = tensor.numel(), settings.density_of(parent), settings.own("gamma")[parent]
    target, top = int(density * count), int(gamma * count)
    if settings.semantics == "mergekit":
        if density >= 1:
            return None
        top = min(top, count - target)
    reach = min(count, top + target)
    return top_mask(tensor, base, reach) & ~top_mask(tensor, base, top)


def _random(
    by_magnitude: bool, tensor: Tensor, base: Tensor, settings: RuleSettings, parent: int
) -> tuple[Tensor | None, float | Tensor]:
    density = settings.density_of(parent)
    if density >= 1:
        return None, 1.0
    mask = torch.empty(tensor.numel(), dtype=torch.bool, device=tensor.device)
    share: float | Tensor = density
    if by_magnitude and density > 0:
        share = keep_probabilities(tensor, base, settings, density, parent)
    start = 0
    for target in mask.split(CHUNK):
        drawn = uniforms(start, target.numel(), settings=settings, parent=parent, device=tensor.device)
        limit = share.view(-1)[start : start + target.numel()] if isinstance(share, Tensor) else share
        torch.lt(drawn, limit, out=target)
        start += target.numel()
    return mask.view(tensor.shape), share


def keep_probabilities(
    tensor: Tensor, base: Tensor | None, settings: RuleSettings, density: float, parent: int = 0
) -> Tensor:
    """Return DELLA's probability of keeping each entry: the larger in its row, the likelier.

    With a the rank in a row of n, 0 for the smallest: mergekit, density - epsilon + 2 epsilon a / (n - 1);
    paper, density + epsilon/2 - epsilon (n - 1 - a) / n.

    Args:
        tensor: Any shape; a row is the last dimension. With mergekit's semantics it is the second dimension, and
            what has fewer than two dimensions is one row.
        base: Same shape, or None for zero.
        settings: Gives epsilon and semantics.
        density: The mean probability.
        parent: The parent's index in the settings.

    Returns:
        float32, of the tensor's shape. A row of one entry has the density itself where mergekit has 0/0.

    Source: DELLA (arXiv 2406.11617), MAGPRUNE, in our reading; mergekit 0.1.5.
    """
    mergekit, epsilon = settings.semantics == "mergekit", settings.own("epsilon")[parent]
    tables = [None if x is None else x.reshape(1, -1) if x.ndim < 2 else x for x in (tensor, base)]
    if mergekit:
        tables = [None if x is None else x.movedim(1, -1) for x in tables]
    table, origin = tables
    assert table is not None
    n = table.shape[-1]
    highest = density + (epsilon if mergekit else epsilon / 2)
    lowest = density - epsilon if mergekit else highest - epsilon * (n - 1) / n
    by_rank = torch.linspace(density if n == 1 else lowest, highest, n, device=tensor.device)
    result = torch.empty_like(table, dtype=torch.float32)
    step = max(1, CHUNK * len(table) // table.numel())
    for row in range(0, len(table), step):
        part = table[row : row + step].to(sum_dtype(tensor))
        part = part if origin is None else part - origin[row : row + step].to(part.dtype)
        order = part.abs().argsort(dim=-1, stable=True)
        result[row : row + step].scatter_(-1, order, by_rank.expand_as(order))
    return (result.movedim(-1, 1) if mergekit else result).reshape(tensor.shape)


def l1_factor(tensor: Tensor, base: Tensor | None, mask: Tensor) -> float:
    """Return sum |d| / sum |masked d| of a task vector d, so that the mask leaves its L1 norm as it was.

    Args:
        tensor: Any shape.
        base: Same shape, or None for zero.
        mask: Boolean, same shape.

    Returns:
        1 where either sum is below 1e-7.

    Source: mergekit 0.1.5.
    """
    before = after = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for chunk, kept in zip(delta_chunks(tensor, base), mask.reshape(-1).split(CHUNK)):
        before, after = before + chunk.abs_().sum(), after + chunk.mul_(kept).sum()
    sums = float(before), float(after)
    return sums[0] / sums[1] if min(sums) >= SMALLEST_SUM else 1.0
