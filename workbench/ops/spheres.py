"""Rules that look at lengths and angles: their numbers c_i come from the tensors' inner products alone.

The tensors (with a base, their task vectors) are taken as flat vectors v_i with inner products g_ij = v_i . v_j; a rule
returns c_i of sum_i c_i v_i. All of it is float64, so that nothing hangs on the tensors' format or device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.errors import MergeError
from workbench.ops.sparsify import CHUNK, delta_chunks

_STRAIGHT = 1e-10  # sin^2 of an angle below which two vectors lie on one line
_TINY = 1e-8


@torch.no_grad()
def gram(tensors: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """Return the inner products of flattened tensors, or of their task vectors.

    Args:
        tensors: N tensors of one shape.
        base: Subtracted from each; None for zero.

    Returns:
        `(N, N)` float64, on the CPU.
    """
    total = torch.zeros((len(tensors), len(tensors)), dtype=torch.float64, device=tensors[0].device)
    for chunks in zip(*(delta_chunks(tensor, base, CHUNK // 4) for tensor in tensors)):
        vectors = torch.stack(chunks).double()
        total += vectors @ vectors.T
    return total.cpu()


def arc(aa: Tensor, bb: Tensor, ab: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Return the numbers of spherical interpolation by place t, without slerp's straight path at small angles.

    c_1 = sin((1-t) theta) / sin theta,  c_2 = sin(t theta) / sin theta, on one line c_1 = 1-t, c_2 = t.

    Args:
        aa: Inner products of first vectors with themselves, float64.
        bb: Those of the second ones.
        ab: Those of first with second ones.
        t: 0 is the first vector, 1 the second.

    Returns:
        c_1 and c_2, of the shape of `ab`.

    Source: mergekit 0.1.5 (`nuslerp`). Deviates: vectors within 1e-5 rad of one line take the straight
    path, where mergekit asks for an exact one.
    """
    cosine = (ab / (aa.sqrt().clamp(min=1e-7) * bb.sqrt().clamp(min=1e-7))).clamp(-1, 1)
    straight = 1 - cosine.square() <= _STRAIGHT
    theta = torch.where(straight, 1.0, cosine.acos())
    first, second = (((place * theta).sin() / theta.sin()) for place in (1 - t, t))
    return torch.where(straight, 1 - t, first), torch.where(straight, t, second)


def multislerp(g: Tensor, weights: Sequence[float]) -> tuple[float, ...]:
    """Return the numbers of the weighted mean direction at the weighted mean length.

    With u_i = v_i / |v_i| and m = sum_i w_i u_i: the result is (m / |m|) sum_i w_i |v_i|. The published method then
    takes a step in the tangent plane at m, along sum_i w_i (u_i - (u_i . m) m / |m|^2), which is 0 for every input.

    Args:
        g: `(N, N)` inner products.
        weights: N numbers, as they shall count.

    Raises:
        MergeError: The directions of three or more vectors cancel.

    Source: mergekit 0.1.5 (`multislerp`). Two vectors that cancel are mixed linearly, as there.
    """
    if len(weights) == 1:
        return (1.0,)
    norms = g.diagonal().sqrt()
    w = torch.tensor(weights, dtype=torch.float64)
    scaled = w / (norms + _TINY)
    length = math.sqrt(max(0.0, float(scaled @ g @ scaled)))
    if length < 1e-6:
        if len(weights) == 2 or not norms.any():
            return tuple(weights)
        raise MergeError(
            f"The weighted directions of {len(weights)} tensors cancel (length {length:.1g}); multislerp needs a mean "
            "direction. Change the weights."
        )
    return tuple((scaled * ((w * norms).sum() / length)).tolist())


def karcher(g: Tensor, weights: Sequence[float], *, iterations: int = 10, tolerance: float = 1e-5) -> tuple[float, ...]:
    """Return the numbers of the mean on the sphere, at the weighted mean length.

    From the normalised mean direction m, steps m <- exp_m(sum_i w_i log_m(u_i)) until they are shorter than
    `tolerance`; a vector of length 0 counts for the length alone, a direction opposite to m takes no part.

    Args:
        g: `(N, N)` inner products.
        weights: N numbers of sum 1.
        iterations: Most steps.
        tolerance: In radians.

    Source: arXiv 2603.04972; steps and tolerance of mergekit 0.1.5. Deviates: weights; mergekit weighs all alike.
    """
    if len(weights) == 1:
        return (1.0,)
    norms, w = g.diagonal().sqrt(), torch.tensor(weights, dtype=torch.float64)
    valid = norms > tolerance
    w_valid = torch.where(valid, w, 0.0)
    if abs(w_valid.sum()) < tolerance:
        return (0.0,) * len(weights)
    w_valid /= w_valid.sum()
    inverse = torch.where(valid, 1 / norms, 0.0)
    u = g * inverse[:, None] * inverse
    mean = _unit(w_valid, u, tolerance, fallback=int(valid.int().argmax()))
    for _ in range(iterations):
        dots = (u @ mean).clamp(-1, 1)
        angles = dots.acos()
        used = valid & (angles >= tolerance) & (math.pi - angles >= tolerance)
        pull = torch.where(used, w_valid * angles / angles.sin(), 0.0)
        tangent = pull - (pull * dots).sum() * mean
        step = math.sqrt(max(0.0, float(tangent @ u @ tangent)))
        if step < tolerance:
            break
        mean = _unit(math.cos(step) * mean + math.sin(step) / step * tangent, u, tolerance, fallback=None)
    return tuple((mean * inverse * (w * norms).sum()).tolist())


def _unit(numbers: Tensor, u: Tensor, tolerance: float, fallback: int | None) -> Tensor:
    length = math.sqrt(max(0.0, float(numbers @ u @ numbers)))
    if length >= tolerance:
        return numbers / length
    return numbers if fallback is None else torch.eye(len(u), dtype=u.dtype)[fallback]


def model_stock(g: Tensor) -> tuple[float, ...]:
    """Return t / N for each of N task vectors, t = N c / (1 + (N - 1) c), c their mean pairwise cosine.

    Args:
        g: `(N, N)` inner products of the task vectors, N at least 2.

    Returns:
        N equal numbers; 0, which keeps the base, where the divisor is.

    Source: Model Stock (arXiv 2403.19522), section 4; one c per tensor, as mergekit 0.1.5 does by default.
    """
    count = len(g)
    cosines = [
        max(-1.0, min(1.0, float(g[i, j]) / max(math.sqrt(g[i, i] * g[j, j]), 1e-6)))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    c = sum(cosines) / len(cosines)
    divisor = 1 + (count - 1) * c
    return (0.0 if abs(divisor) < 1e-6 else c / divisor,) * count
