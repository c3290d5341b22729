"""Merge rules as functions of tensors: every rule here is, per tensor, W = sum_i c_i W_i with plain numbers c_i."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from workbench.errors import ConfigError

PARALLEL_COSINE = 0.9995
"""Above this |cosine| the great-circle path is taken as straight, as in mergekit."""

_SMALLEST_NORM = 1e-8
_CHUNK = 1 << 18  # elements; two float32 buffers of a chunk stay in a core's cache


def linear_coefficients(weights: Sequence[float], *, normalise: bool = True) -> tuple[float, ...]:
    """Return the c_i of a weighted mean, c_i = w_i / sum_j w_j, or of a weighted sum, c_i = w_i.

    Args:
        weights: One number per parent; negative ones subtract a parent.
        normalise: Divide by the sum of the weights.

    Returns:
        One coefficient per parent.

    Raises:
        ConfigError: The weights sum to 0 (to 1e-6 of their absolute sum) and `normalise` is true.

    Source: Model Soups (arXiv 2203.05482), section 2, with weights.
    """
    if not normalise:
        return tuple(float(w) for w in weights)
    total = math.fsum(weights)
    if abs(total) <= 1e-6 * math.fsum(abs(w) for w in weights):
        raise ConfigError(
            f"The weights {[float(w) for w in weights]} sum to {total:g}; a weighted mean divides by that sum. "
            "Give weights whose sum is not 0, or set normalise=False."
        )
    return tuple(w / total for w in weights)


def slerp_coefficients(t: float, cosine: float) -> tuple[float, float]:
    """Return the c_1, c_2 of spherical interpolation between two tensors at a known angle.

    c_1 = sin((1-t) theta) / sin theta,  c_2 = sin(t theta) / sin theta,  theta = arccos(cosine);
    where |cosine| > 0.9995 the path is straight: c_1 = 1-t, c_2 = t.

    Args:
        t: Place on the path: 0 is the first tensor, 1 the second; outside of that it extrapolates.
        cosine: Cosine of the angle between the flattened tensors, see `cosine_similarity`.

    Returns:
        The two coefficients, which apply to the raw tensors, not to unit vectors.

    Source: Shoemake 1985, section 3.3, as mergekit reads it for weights.
    """
    if abs(cosine) > PARALLEL_COSINE:
        return 1.0 - t, t
    theta = math.acos(cosine)
    return math.sin((1.0 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the cosine between two flattened tensors, accumulated in float32 at least, clamped to [-1, 1].

    Args:
        a: Any shape.
        b: Same number of elements.

    Returns:
        A number between -1 and 1; 0 where one tensor's norm is at most 1e-8.
    """
    precise = torch.float64 if a.dtype == torch.float64 else torch.float32
    dot = norm_a = norm_b = 0.0
    for x, y in zip(a.reshape(-1).split(_CHUNK), b.reshape(-1).split(_CHUNK)):
        x, y = x.to(precise), y.to(precise)
        dot += torch.dot(x, y).item()
        norm_a += torch.dot(x, x).item()
        norm_b += torch.dot(y, y).item()
    norm_a, norm_b = math.sqrt(norm_a), math.sqrt(norm_b)
    if norm_a <= _SMALLEST_NORM or norm_b <= _SMALLEST_NORM:
        return 0.0
    return max(-1.0, min(1.0, dot / (norm_a * norm_b)))


def weighted_sum_(out: torch.Tensor, tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """Write sum_i c_i W_i into `out`, rounded once from float32 (float64 for float64 tensors).

    A tensor whose coefficient is 0 is not read, so that a NaN in it does not spread, and a single coefficient of 1
    is a copy, bit for bit.

    Args:
        out: Receives the result; must share no memory with `tensors`, be contiguous, and have their shape and dtype.
        tensors: The parents' tensors, all of one shape and dtype.
        coefficients: One number per tensor.

    Returns:
        `out`.
    """
    parts = [(w, c) for w, c in zip(tensors, coefficients, strict=True) if c != 0.0]
    if not parts:
        return out.zero_()
    if len(parts) == 1 and parts[0][1] == 1.0:
        return out.copy_(parts[0][0])
    if len(parts) == 2 and math.isclose(parts[0][1] + parts[1][1], 1.0, rel_tol=0.0, abs_tol=1e-9):
        return torch.lerp(parts[0][0], parts[1][0], parts[1][1], out=out)
    if out.dtype in (torch.float32, torch.float64):
        return _accumulate_(out, [w for w, _ in parts], [c for _, c in parts])
    return _accumulate_in_chunks_(out, [w for w, _ in parts], [c for _, c in parts])


def _accumulate_(out: torch.Tensor, tensors: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    torch.mul(tensors[0], coefficients[0], out=out)
    for tensor, coefficient in zip(tensors[1:], coefficients[1:]):
        out.add_(tensor, alpha=coefficient)
    return out


def _accumulate_in_chunks_(
    out: torch.Tensor, tensors: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> torch.Tensor:
    size = min(out.numel(), _CHUNK)
    total, part = torch.empty((2, size), dtype=torch.float32, device=out.device)
    pieces = [tensor.reshape(-1).split(_CHUNK) for tensor in tensors]
    for index, target in enumerate(out.view(-1).split(_CHUNK)):
        x, y = total[: target.numel()], part[: target.numel()]
        x.copy_(pieces[0][index]).mul_(coefficients[0])
        for piece, coefficient in zip(pieces[1:], coefficients[1:]):
            x.add_(y.copy_(piece[index]), alpha=coefficient)
        target.copy_(x)
    return out


def linear(tensors: Sequence[torch.Tensor], weights: Sequence[float], *, normalise: bool = True) -> torch.Tensor:
    """Return the weighted mean (or sum) of tensors of one shape and dtype.

    W = sum_i w_i W_i / sum_i w_i.

    Args:
        tensors: N tensors of one shape and dtype.
        weights: N numbers.
        normalise: Divide by the sum of the weights.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ConfigError: The weights sum to 0 and `normalise` is true.

    Source: Model Soups (arXiv 2203.05482), section 2, with weights.
    """
    return weighted_sum_(torch.empty_like(tensors[0]), tensors, linear_coefficients(weights, normalise=normalise))


def slerp(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """Return the spherical interpolation between two tensors, which are taken as flat vectors.

    Args:
        first: The tensor at t = 0, any shape.
        second: The tensor at t = 1, same shape and dtype.
        t: Place on the path.

    Returns:
        A new tensor of the same shape and dtype.

    Source: Shoemake 1985, section 3.3, as mergekit reads it for weights.
    """
    coefficients = slerp_coefficients(t, cosine_similarity(first, second))
    return weighted_sum_(torch.empty_like(first), (first, second), coefficients)
