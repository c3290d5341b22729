"""In which order examples come: passes, mixtures, and a growing share of what is sorted by difficulty."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
PACINGS = ("sequential", "cumulative", "competence")
ORDERS = ("given", "anti", "shuffled")


def passes(pool: Sequence[T], key: str) -> Iterator[T]:
    """Yield items forever, every one once before any comes again; `key` alone decides the order."""
    count = 0
    while pool:
        order = list(pool)
        random.Random(f"{key}/{count}").shuffle(order)
        yield from order
        count += 1


def mixed(pools: Mapping[str, Sequence[T]], shares: Mapping[str, float], key: str) -> Iterator[T]:
    """Yield items forever, each from the pool that a draw by `shares` names; each pool in passes of its own."""
    rng, streams = random.Random(f"{key}/mixture"), {name: passes(pools[name], f"{key}/{name}") for name in shares}
    while True:
        yield next(streams[rng.choices(list(shares), list(shares.values()))[0]])


def competence(t: float, start: float = 0.1) -> float:
    """Return which share of the data, the easiest first, is open at time t.

    c(t) = min(1, sqrt(t (1 - c0^2) + c0^2))

    Args:
        t: Time as a share of the whole training, at least 0.
        start: c0, the share open at the beginning, above 0 and at most 1.

    Source: Platanios et al. (2019), arXiv 1903.09848, equation 7 (square root). Deviates: c0 is 0.1 (theirs: 0.01),
    since classroom data are small.
    """
    return min(1.0, math.sqrt(t * (1 - start**2) + start**2))


def by_competence(ranked: Sequence[T], first: int, total: int, key: str) -> Iterator[T]:
    """Yield items from place `first` of a training of `total` examples on, each drawn from the share open by then."""
    rng = random.Random(f"{key}/{first}")
    while True:
        open_share = competence(min(1.0, first / total))
        yield ranked[rng.randrange(max(1, math.ceil(open_share * len(ranked))))]
        first += 1


def replays(length: int, ratio: float) -> list[bool]:
    """Say which of `length` places are rehearsal: `ratio` of them, spread as evenly as can be."""
    return [math.floor((i + 1) * ratio + 1e-9) > math.floor(i * ratio + 1e-9) for i in range(length)]
