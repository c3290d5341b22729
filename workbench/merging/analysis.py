"""Before a merge: how far the parents lie apart, where they pull against each other, and what lies between them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import ratio_weights
from workbench.merging.sources import Group
from workbench.ops.sparsify import delta_chunks
from workbench.ops.spheres import gram

OUTSIDE = "embeddings, final norm, head"


@dataclass(frozen=True, kw_only=True)
class PartStats:
    """What the parents add in one layer, with d_i = W_i - base, or d_i = W_i where there is no base.

    Args:
        part: `layer 1` and so on, or what lies outside the layers.
        size: Number of weights.
        norms: |d_i| / |base| for each parent; without a base |W_i - W_1| / |W_1|.
        cosines: cos(d_i, d_j), `N x N`; NaN where a d is 0.
        conflict: Share of the entries in which two parents' d have opposite signs, among those where two are not 0;
            NaN where there is no such entry.
    """

    part: str
    size: int
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    conflict: float


@dataclass(frozen=True, kw_only=True)
class LossPath:
    """The loss on the straight line between two parents.

    Args:
        ratios: Shares of the second parent, rising from 0 to 1.
        losses: Mean loss over the examples at each.
        errors: Half the width of each mean's 95 % interval over the examples.
        n: Number of examples.
    """

    ratios: tuple[float, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]
    n: int

    @property
    def heights(self) -> tuple[float, ...]:
        """L(t) - ((1-t) L(0) + t L(1)) at each ratio."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(loss - ((1 - t) * first + t * last) for t, loss in zip(self.ratios, self.losses))

    @property
    def barrier(self) -> float:
        """The height of the barrier between the parents, max_t of `heights`: at least 0, as both ends have height 0.

        Source: Entezari et al. (arXiv 2110.06296), section 2. Deviates: the maximum is over the measured ratios.
        """
        return max(self.heights)


def delta_stats(live: LiveMerge) -> list[PartStats]:
    """Measure each layer's task vectors: their lengths, the angles between them, and where their signs conflict.

    Args:
        live: The parents, and the base where it holds one; it is not moved.

    Returns:
        One row for each layer from input to output, and one for all tensors outside the layers.

    Source: Ilharco et al. (arXiv 2212.04089), section 5, for cosines; TIES-Merging (arXiv 2306.01708), section 4, for
    sign conflict.
    """
    parts: dict[str, list[Group]] = {}
    for name, group in live.tensors().items():
        layer = re.search(r"(?:^|\.)(\d+)\.", name)
        parts.setdefault(f"layer {int(layer[1]) + 1}" if layer else OUTSIDE, []).append(group)
    return [_part_stats(part, tensors) for part, tensors in parts.items()]


@torch.no_grad()
def _part_stats(part: str, tensors: Sequence[Group]) -> PartStats:
    g: Any = sum(gram(sources, origin) for sources, origin in tensors)
    count = range(len(g))
    if tensors[0][1] is not None:
        length = math.sqrt(float(sum(gram([origin]) for _, origin in tensors if origin is not None)))
        moved = [math.sqrt(g[i, i]) for i in count]
    else:
        length, moved = math.sqrt(g[0, 0]), [math.sqrt(max(0.0, g[i, i] + g[0, 0] - 2 * g[0, i])) for i in count]
    lengths = g.diagonal().sqrt()
    counts = [_conflicts(sources, origin) for sources, origin in tensors]
    both = sum(known for _, known in counts)
    return PartStats(
        part=part,
        size=sum(sources[0].numel() for sources, _ in tensors),
        norms=tuple(norm / length if length else math.nan for norm in moved),
        cosines=tuple(tuple(row) for row in (g / torch.outer(lengths, lengths)).tolist()),
        conflict=sum(clash for clash, _ in counts) / both if both else math.nan,
    )


def _conflicts(tensors: Sequence[Tensor], origin: Tensor | None) -> tuple[int, int]:
    clash = known = 0
    for chunks in zip(*(delta_chunks(tensor, origin) for tensor in tensors)):
        signs = torch.stack(chunks).sign_()
        clash += int(((signs.amax(0) > 0) & (signs.amin(0) < 0)).sum())
        known += int(((signs != 0).sum(0) > 1).sum())
    return clash, known


def loss_path(live: LiveMerge, loss: Callable[[Any], Sequence[float]], ratios: int | Sequence[float] = 11) -> LossPath:
    """Measure the loss along W(t) = (1-t) W_1 + t W_2, and leave the live merge at the recipe that it had.

    Args:
        live: A merge of two parents.
        loss: Called with the model at each ratio, for the losses of the same examples in the same order.
        ratios: A number of even steps from 0 to 1, at least 3, or rising shares of the second parent from 0 to 1.

    Raises:
        ConfigError: There are not two parents, the ratios do not run from 0 to 1 with one between, or `loss` returns
            nothing.
    """
    shares = [i / (ratios - 1) for i in range(ratios)] if isinstance(ratios, int) and ratios > 2 else ratios
    if isinstance(shares, int) or len(shares) < 3 or [*shares] != sorted(shares) or (shares[0], shares[-1]) != (0, 1):
        raise ConfigError(f"ratios={ratios!r}; a path needs at least 3 rising shares from 0 to 1. Pass ratios=11.")
    recipe, rows = live.recipe, []
    if len(recipe.parents) != 2:
        raise ConfigError(f"{len(recipe.parents)} parents; a path runs between two. Make a LiveMerge of these two.")
    try:
        for share in shares:
            live.apply(recipe.with_method("linear", weights=ratio_weights(share), normalise=None))
            with live.generation(preview=False):
                rows.append([float(value) for value in loss(live.model)])
    finally:
        live.apply(recipe)
    if not rows[0]:
        raise ConfigError("loss returned no number; the path needs at least one example. Pass examples.")
    n = len(rows[0])
    spread = [1.96 * statistics.stdev(row) / math.sqrt(n) if n > 1 else math.nan for row in rows]
    means = tuple(statistics.fmean(row) for row in rows)
    return LossPath(ratios=tuple(shares), losses=means, errors=tuple(spread), n=n)
