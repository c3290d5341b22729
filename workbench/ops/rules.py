"""Every merge rule for one tensor: `merge_tensor`.

The rules of task vectors (d_i = W_i - base) are settings of one: trim each d_i by a mask and rescale it
(`ops.sparsify`), elect a sign and let in what agrees (`ops.consensus`), add to the base. Where the papers and the tools
differ, `semantics` decides:

| | `"paper"` | `"mergekit"` (0.1.5) | `"peft"` (0.21) |
|---|---|---|---|
| TIES: what is trimmed as one | the model, by `threshold`; a tensor where there is none | each tensor | each tensor |
| TIES: entries kept | floor(density n); equal magnitudes at the threshold all | the same, at least 1 | the same |
| sign elected from | sum d_i | sum w_i d_i | sum d_i |
| a sum of 0 | has no sign: nothing is merged | counts as + | counts as + |
| what agrees is divided by | its number | sum of its w_i | its number |
| ... in | every method with election | `ties`, `della` | `ties`, `dare_ties` |
| DARE factor | 1 / density | L1 norm kept | 1 / density (density 0: zero, where PEFT has NaN) |
| DELLA probability | density +- epsilon / 2 | density +- epsilon | - |
| DELLA factor | 1 / probability | L1 norm kept | - |
| DELLA row | last dimension | second dimension; a 1-d tensor is a row | - |
| breadcrumbs at density + gamma > 1 | the top goes all the same | less of the top goes | - |
| SCE at mean squares below 1e-6 in all | as ever | weighs all alike | - |

`normalise` and `rescale`, where given, overrule the habit. Sums are formed in float32 (float64 for float64 tensors)
and rounded once, with every semantics; mergekit and PEFT work in the tensors' own format, which in bfloat16 also moves
entries across a trimming threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.errors import MergeError
from workbench.ops import spheres
from workbench.ops.consensus import consensus, kept_chunks, merge_kept
from workbench.ops.merging import Mix, cosine_similarity, linear_mix, mix_, slerp_mix
from workbench.ops.rule_settings import RULES, RuleSettings, check_rule
from workbench.ops.sparsify import CHUNK, Kept, keep, kth_largest, sum_dtype, top_mask

__all__ = ["RULES", "RuleSettings", "check_rule", "coefficients", "merge_tensor"]


@torch.no_grad()
def merge_tensor(
    method: str, tensors: Sequence[Tensor], base: Tensor | None, settings: RuleSettings, *, out: Tensor | None = None
) -> Tensor:
    """Return the merge of one tensor by any method.

    Args:
        method: A key of `RULES`.
        tensors: The N parents' tensors, of one shape and dtype; the base is none of them.
        base: The base's tensor, same shape and dtype; needed by the methods of task vectors, taken as the origin by
            `nuslerp` and `multislerp`, not read by `linear`, `slerp` and `karcher`.
        settings: What the rule is told.
        out: Receives the result; contiguous, sharing no memory with the others. None makes a new tensor.

    Returns:
        A tensor of the parents' shape and dtype.

    Raises:
        ConfigError: The settings, the number of parents or a missing base do not fit the method.
        MergeError: The shapes differ, or directions cancel (`multislerp`).
    """
    rule = check_rule(method, settings, parents=len(tensors), base=base is not None)
    base = None if rule.base == "unused" else base
    shapes = {tuple(tensor.shape) for tensor in (*tensors, *(() if base is None else (base,)))}
    if len(shapes) > 1:
        raise MergeError(f"Tensor {settings.name!r} has the shapes {sorted(shapes)}; a merge needs one. Align them.")
    out = torch.empty_like(tensors[0], memory_format=torch.contiguous_format) if out is None else out
    if not out.numel():
        return out
    if settings.vectors is not None:
        return by_vectors(tensors, base, settings, out)
    if method in ELEMENTWISE and base is not None:
        return ELEMENTWISE[method](tensors, base, settings, out)
    if base is not None and (rule.sparse or method == "task_arithmetic"):
        kept = [keep(method, tensor, base, settings, index) for index, tensor in enumerate(tensors)]
        return merge_kept(method, tensors, base, settings, kept, out=out)
    if base is None:
        return mix_(out, tensors, _mix(method, tensors, settings))
    moved = RuleSettings(weights=coefficients(method, tensors, base, settings))
    return merge_kept("task_arithmetic", tensors, base, moved, [Kept()] * len(tensors), out=out)


def coefficients(
    method: str, tensors: Sequence[Tensor], base: Tensor | None, settings: RuleSettings
) -> tuple[float, ...]:
    """Return the plain numbers c_i of a method that has them: W = sum_i c_i W_i, with a base base + sum_i c_i d_i.

    With a base, W = (1 - sum_i c_i) base + sum_i c_i W_i is the same.

    Args:
        method: `linear`, `slerp`, `nuslerp`, `multislerp`, `karcher`, `task_arithmetic` or `model_stock`.
        tensors: The N parents' tensors; their entries are read only where angles or lengths are asked for.
        base: As for `merge_tensor`.
        settings: What the rule is told.

    Returns:
        N numbers.

    Raises:
        ConfigError: As for `merge_tensor`.
        KeyError: The method is not one of these.
    """
    if method == "task_arithmetic":
        mix = linear_mix(settings.weights, normalise=bool(settings.normalise))
        return tuple(settings.lambda_ * c for c in mix.coefficients)
    if method == "model_stock":
        return spheres.model_stock(spheres.gram(tensors, base))
    if base is None or RULES[method].base == "unused":
        return _mix(method, tensors, settings).coefficients
    return _spherical(method, tensors, base, settings)


def _mix(method: str, tensors: Sequence[Tensor], settings: RuleSettings) -> Mix:
    if method == "linear":
        return linear_mix(settings.weights, normalise=settings.normalise is not False)
    if method == "slerp":
        t = linear_mix(settings.weights).coefficients[1] if settings.t is None else settings.t
        return slerp_mix(t, cosine_similarity(*tensors))
    return Mix(weights=_spherical(method, tensors, None, settings))


def _spherical(
    method: str, tensors: Sequence[Tensor], base: Tensor | None, settings: RuleSettings
) -> tuple[float, ...]:
    g = spheres.gram(tensors, base)
    if method == "nuslerp":
        return tuple(float(c) for c in spheres.arc(g[0, 0], g[1, 1], g[0, 1], _place(settings)))
    normalise = method == "karcher" or settings.normalise is not False
    weights = linear_mix(settings.weights, normalise=normalise).coefficients
    return {"multislerp": spheres.multislerp, "karcher": spheres.karcher}[method](g, weights)


def _place(settings: RuleSettings) -> float:
    total = math.fsum(settings.weights)
    halfway = abs(total) < 1e-6
    return settings.t if settings.t is not None else 0.5 if halfway else settings.weights[1] / total


def by_vectors(tensors: Sequence[Tensor], base: Tensor | None, settings: RuleSettings, out: Tensor) -> Tensor:
    """Write nuslerp with every vector along one dimension on an arc of its own.

    Args:
        tensors: Two tensors.
        base: Same shape; with it, the vectors are those of the task vectors.
        settings: Gives the dimension, `vectors`, and the place.
        out: Receives the result.

    Source: mergekit 0.1.5 (`nuslerp` with nuslerp_flatten=false; `"first"` is its nuslerp_row_wise).
    """
    dtype, t = sum_dtype(out), _place(settings)
    target, *tables = (_vectors(x, settings.vectors) for x in (out, *tensors, *(() if base is None else (base,))))
    step = max(1, CHUNK // target.shape[1])
    for start in range(0, len(target), step):
        a, b, *origin = (table[start : start + step].to(dtype) for table in tables)
        if origin:
            a, b = a - origin[0], b - origin[0]
        dots = ((x.double() * y.double()).sum(1, keepdim=True) for x, y in ((a, a), (b, b), (a, b)))
        first, second = (c.to(dtype) for c in spheres.arc(*dots, t))
        merged = first * a + second * b
        target[start : start + step].copy_(merged + origin[0] if origin else merged)
    return out


def _vectors(tensor: Tensor, which: str | None) -> Tensor:
    """A view of the tensor with its vectors as rows."""
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    return tensor.reshape(-1, tensor.shape[-1]) if which == "last" else tensor.reshape(len(tensor), -1).T


def _pairs(tensors: Sequence[Tensor], base: Tensor, out: Tensor) -> Iterator[tuple[Tensor, ...]]:
    # (target, base, parents...) chunk by chunk, the inputs in the format of sums.
    flat = (tensor.reshape(-1).split(CHUNK) for tensor in (base, *tensors))
    for target, *pieces in zip(out.view(-1).split(CHUNK), *flat):
        yield target, *(piece.to(sum_dtype(base)) for piece in pieces)


def nearswap(tensors: Sequence[Tensor], base: Tensor, settings: RuleSettings, out: Tensor) -> Tensor:
    """Write k W + (1 - k) base with k = t / |W - base|, at most 1: what hardly differs is taken from the parent.

    Args:
        tensors: One tensor.
        base: Same shape.
        settings: Gives t.
        out: Receives the result.

    Source: mergekit 0.1.5 (`nearswap`), after alchemonaut/QuartetAnemoi-70B-t0.0001.
    """
    for target, origin, piece in _pairs(tensors, base, out):
        share = (settings.t or 0.0) / (piece - origin).abs_().clamp_(min=1e-6)
        share.clamp_(max=1.0)
        target.copy_(share * piece + (1 - share) * origin)
    return out


def arcee_fusion(tensors: Sequence[Tensor], base: Tensor, settings: RuleSettings, out: Tensor) -> Tensor:
    """Write the parent's entries where they matter, the base's elsewhere.

    Importance = |W - base| times the Kullback-Leibler divergence of the row's softmax from the base's; what reaches
    median + 1.5 (q3 - q1) of the tensor's importances is taken.

    Args:
        tensors: One tensor; a row is its last dimension.
        base: Same shape.
        settings: Not read.
        out: Receives the result.

    Source: mergekit 0.1.5 (`arcee_fusion`). Deviates: quartiles are exact; above a million entries mergekit draws a
    sample.
    """
    del settings
    dtype, (tensor,) = sum_dtype(base), tensors
    width = base.shape[-1] if base.ndim else 1
    rows, origins = tensor.reshape(-1, width), base.reshape(-1, width)
    importance = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    step = max(1, CHUNK // max(1, width))
    for piece, origin, target in zip(rows.split(step), origins.split(step), importance.split(step)):
        p, q = (x.to(dtype).softmax(-1) + 1e-8 for x in (piece, origin))
        divergence = (p * (p / q).log()).sum(-1, keepdim=True)
        torch.mul((piece.to(dtype) - origin.to(dtype)).abs_(), divergence, out=target)
    flat = importance.view(-1)
    q1, median, q3 = (
        kth_largest(lambda: flat.split(CHUNK), flat.numel() - int(share * (flat.numel() - 1)))
        for share in (0.25, 0.5, 0.75)
    )
    # In the format of the importances, since the threshold may be one of them.
    limit = torch.tensor(median, dtype=dtype) + 1.5 * (torch.tensor(q3, dtype=dtype) - torch.tensor(q1, dtype=dtype))
    chosen = (flat >= limit.item()).split(CHUNK)
    for (target, origin, piece), mask in zip(_pairs(tensors, base, out), chosen):
        target.copy_(origin + (piece - origin) * mask)
    return out


def sce(tensors: Sequence[Tensor], base: Tensor, settings: RuleSettings, out: Tensor) -> Tensor:
    """Write base + sum_i v_i d_i / sum_i v_i over the entries that agree with the sign of sum_i d_i.

    Select: the share `select_topk` of the entries whose d_i vary most. Calculate: v_i, the mean of what is left of
    d_i^2, relative to the sum over the parents. Erase: what disagrees in sign.

    Args:
        tensors: N tensors.
        base: Same shape.
        settings: Gives select_topk and semantics.
        out: Receives the result.

    Source: SCE, FuseChat (arXiv 2408.07990), section 3; mergekit 0.1.5.
    """
    kept = [Kept(_most_varied(tensors, base, settings.select_topk))] * len(tensors)
    squares = [chunk.square().sum(1, dtype=torch.float64) for _, chunk in kept_chunks(tensors, base, kept)]
    means = torch.stack(squares).sum(0) / base.numel()
    least = 1e-6 if settings.semantics == "mergekit" else 0.0
    means = torch.where(means.sum() > least, means / means.sum(), 1 / len(tensors)).to(sum_dtype(base)).view(-1, 1)
    alike = replace(settings, weights=(1.0,) * len(tensors), normalise=False)
    flat, start = out.view(-1), 0
    for origin, deltas in kept_chunks(tensors, base, kept):
        mask = consensus("sce", deltas, alike).mask
        share = means if mask is None else means * mask
        merged = deltas.mul_(share).sum(0).div_(share.sum(0).clamp_(min=1e-6)).add_(origin)
        flat[start : start + len(merged)].copy_(merged)
        start += len(merged)
    return out


def _most_varied(tensors: Sequence[Tensor], base: Tensor, share: float) -> Tensor | None:
    if share >= 1:
        return None
    chunks = kept_chunks(tensors, base, [Kept()] * len(tensors))
    variance = torch.cat([chunk.var(0, unbiased=False) for _, chunk in chunks]).view(base.shape)
    return top_mask(variance, None, int(torch.count_nonzero(variance) * share))


ELEMENTWISE = {"nearswap": nearswap, "arcee_fusion": arcee_fusion, "sce": sce}
"""Methods with a rule of their own for every entry: no plain numbers c_i, no masks that a density moves."""
