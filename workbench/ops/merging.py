"""Merge rules as functions of tensors: every rule here is, per tensor, W = sum_i c_i W_i with plain numbers c_i.

Sums are formed in float32 (float64 for float64 tensors) and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import ConfigError

PARALLEL_COSINE = 0.9995
"""Above this |cosine| the path of slerp is straight, as in mergekit."""

_SMALLEST_NORM = 1e-8
_CHUNK = 1 << 19  # elements at a time: the float32 buffers stay in cache
_ANGLE_CHUNK = 1 << 20  # mergekit's, so that its sums are met to the last bit


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How one tensor is formed: W = sum_i w_i W_i, or sum_i w_i W_i / sum_i w_i.

    Args:
        weights: w_i, one number per parent.
        normalise: Divide by the sum of the weights, after adding up.
        fused: A product may be added without being rounded first. It changes nothing but how ties are broken, and
            with them whether mergekit's result is met bit for bit.
    """

    weights: tuple[float, ...]
    normalise: bool = False
    fused: bool = False

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The c_i of W = sum_i c_i W_i, one per parent."""
        total = math.fsum(self.weights) if self.normalise else 1.0
        return tuple(weight / total for weight in self.weights)


def linear_mix(weights: Sequence[float], *, normalise: bool = True) -> Mix:
    """Return the weighted mean, W = sum_i w_i W_i / sum_i w_i, or with `normalise` false the weighted sum.

    Args:
        weights: One number per parent; a negative one subtracts a parent.
        normalise: Divide by the sum of the weights.

    Raises:
        ConfigError: The weights sum to 0 (to 1e-6 of their absolute sum) and `normalise` is true.

    Source: Model Soups (arXiv 2203.05482), section 2, with weights.
    """
    weights = tuple(float(weight) for weight in weights)
    total = math.fsum(weights)
    if normalise and abs(total) <= 1e-6 * math.fsum(map(abs, weights)):
        raise ConfigError(
            f"the weights {list(weights)} sum to {total:g}, by which the merge divides. "
            "Give weights whose sum is not 0."
        )
    return Mix(weights=weights, normalise=normalise, fused=True)


def slerp_mix(t: float, cosine: float) -> Mix:
    """Return spherical interpolation between two tensors at a known angle.

    c_1 = sin((1-t) theta) / sin theta,  c_2 = sin(t theta) / sin theta,  theta = arccos(cosine);
    where |cosine| > 0.9995 the path is straight: c_1 = 1-t, c_2 = t.

    Args:
        t: Place on the path: 0 is the first tensor, 1 the second; outside of that it extrapolates.
        cosine: Cosine of the angle between the flattened tensors, as `cosine_similarity` gives it.

    Returns:
        Coefficients for the raw tensors, not for unit vectors.

    Source: Shoemake 1985, section 3.3; threshold as in mergekit 0.1.5.
    """
    # In float32, so that mergekit's numbers are met to the last bit.
    place, theta = torch.tensor(t, dtype=torch.float32), torch.acos(torch.tensor(cosine, dtype=torch.float32))
    if abs(cosine) > PARALLEL_COSINE:
        return Mix(weights=(1.0 - place.item(), place.item()))
    sines = torch.sin((1 - place) * theta), torch.sin(place * theta)
    return Mix(weights=((sines[0] / torch.sin(theta)).item(), (sines[1] / torch.sin(theta)).item()))


@torch.no_grad()
def cosine_similarity(a: Tensor, b: Tensor) -> float:
    """Return the cosine between two flattened tensors.

    Args:
        a: Any shape, floating point.
        b: Same number of elements.

    Returns:
        A number between -1 and 1; a tensor whose norm is at most 1e-8 is not scaled to unit length, so that the
        result is close to 0.
    """
    dtype = _sum_dtype(a)
    pairs = list(zip(a.reshape(-1).split(_ANGLE_CHUNK), b.reshape(-1).split(_ANGLE_CHUNK)))
    norms = [torch.stack([torch.linalg.vector_norm(pair[side].to(dtype)) for pair in pairs]) for side in (0, 1)]
    lengths = [torch.linalg.vector_norm(norm) for norm in norms]
    units = [torch.where(length > _SMALLEST_NORM, length, 1.0) for length in lengths]
    # Scaled before they are multiplied, so that large tensors do not overflow.
    dots = [torch.sum((x.to(dtype) / units[0]) * (y.to(dtype) / units[1])) for x, y in pairs]
    return max(-1.0, min(1.0, torch.stack(dots).sum().item()))


@torch.no_grad()
def mix_(out: Tensor, tensors: Sequence[Tensor], mix: Mix, *, exact: bool = True) -> Tensor:
    """Write the mix of tensors into `out`, outside of autograd.

    A tensor whose weight is 0 is not read, so that a NaN in it does not spread, and a single coefficient of 1 is a
    copy, bit for bit.

    Args:
        out: Receives the result; contiguous, of the tensors' shape and dtype, sharing no memory with them.
        tensors: The parents' tensors, all of one shape and dtype.
        mix: One weight per tensor.
        exact: Multiply, add and divide in mergekit's order, which gives the same bits. False reads memory once where
            there are two positive coefficients of sum 1 to 1.5, or two of sum 1, and may be off in the last bit: at
            sum 1 only where a bfloat16 or float16 result lies half way between two numbers.

    Returns:
        `out`.
    """
    parts = [(tensor, c) for tensor, c in zip(tensors, mix.coefficients, strict=True) if c != 0.0]
    if not parts:
        return out.zero_()
    if len(parts) == 1 and parts[0][1] == 1.0:
        return out.copy_(parts[0][0])
    if not exact and len(parts) == 2 and _is_near_mean(parts[0][1], parts[1][1]):
        return _scaled_mean_(out, parts)
    return _sum_(out, tensors, mix)


def _is_near_mean(first: float, second: float) -> bool:
    return math.isclose(first + second, 1.0) or (min(first, second) > 0.0 and 1.0 <= first + second <= 1.5)


def _scaled_mean_(out: Tensor, parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    # The smaller share is the one that lerp is told: 1 - share would lose its digits.
    (near, large), (far, small) = sorted(parts, key=lambda part: -abs(part[1]))
    scale = large + small
    if math.isclose(scale, 1.0):
        return torch.lerp(near, far, small, out=out)
    chunks = (tensor.reshape(-1).split(_CHUNK) for tensor in (out, near, far))
    for target, x, y in zip(*chunks):
        torch.lerp(x, y, small / scale, out=target).mul_(scale)
    return out


def _sum_(out: Tensor, tensors: Sequence[Tensor], mix: Mix) -> Tensor:
    dtype = _sum_dtype(out)
    parts = [
        (tensor.reshape(-1).split(_CHUNK), weight) for tensor, weight in zip(tensors, mix.weights) if weight != 0.0
    ]
    weights = torch.tensor([weight for _, weight in parts], dtype=dtype)
    divisor = weights.sum().to(out.device) if mix.normalise and weights.sum() != 1.0 else None
    numbers = weights.to(out.device).split(1)
    total, part = torch.empty((2, min(out.numel(), _CHUNK)), dtype=dtype, device=out.device)
    for index, target in enumerate(out.view(-1).split(_CHUNK)):
        x, y = total[: target.numel()], part[: target.numel()]
        x.copy_(parts[0][0][index]).mul_(numbers[0])
        for (pieces, _), number in zip(parts[1:], numbers[1:]):
            y.copy_(pieces[index])
            x.addcmul_(y, number) if mix.fused else x.add_(y.mul_(number))
        target.copy_(x if divisor is None else x.div_(divisor))
    return out


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def linear(tensors: Sequence[Tensor], weights: Sequence[float], *, normalise: bool = True) -> Tensor:
    """Return the weighted mean of tensors, W = sum_i w_i W_i / sum_i w_i, or with `normalise` false the weighted sum.

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
    return mix_(torch.empty_like(tensors[0]), tensors, linear_mix(weights, normalise=normalise))


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Return the spherical interpolation between two tensors, which are taken as flat vectors.

    Args:
        first: The tensor at t = 0, any shape.
        second: The tensor at t = 1, same shape and dtype.
        t: Place on the path.

    Returns:
        A new tensor of the same shape and dtype.

    Source: Shoemake 1985, section 3.3; threshold as in mergekit 0.1.5.
    """
    return mix_(torch.empty_like(first), (first, second), slerp_mix(t, cosine_similarity(first, second)))
