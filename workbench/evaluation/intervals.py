"""95 % intervals of a mean of per-example values between 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054  # 97.5 % point of the normal distribution
_DRAWS = 1000


def interval(values: Sequence[float], *, graded: bool, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of some values with the ends of its 95 % interval.

    Values of 0 and 1 get Wilson's score interval, graded ones the percentile bootstrap. Where all graded values are
    equal, a bootstrap would claim certainty, so Wilson's is used: of all values within 0..1 with a given mean, zeros
    and ones vary most, so it is too wide rather than too narrow.

    Args:
        values: Per-example values, each 0 to 1, at least one.
        graded: True where values between 0 and 1 can occur.
        seed: Of the bootstrap's draws.

    Returns:
        mean, low, high.
    """
    mean = float(np.mean(values))
    if graded and min(values) != max(values):
        return mean, *_bootstrap(np.asarray(values, dtype=float), seed)
    return mean, *wilson(mean, len(values))


def ratio_interval(parts: Sequence[float], wholes: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Return the share sum(parts) / sum(wholes) with the ends of its 95 % interval.

    The things counted in one example hang together, so examples are drawn, each with its part and its whole. Where the
    share is the same in all of them, the interval is Wilson's for as many examples.

    Args:
        parts: How many things of each example count, each 0 to its whole.
        wholes: How many there are in each example; at least 0.
        seed: Of the draws.

    Returns:
        share, low, high; not a number where there is nothing to count.
    """
    part, whole = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    part, whole = part[whole > 0], whole[whole > 0]
    if not len(whole):
        return math.nan, math.nan, math.nan
    share = float(part.sum() / whole.sum())
    if np.ptp(part / whole) == 0:
        return share, *wilson(share, len(whole))
    draws = np.random.default_rng(seed).integers(len(whole), size=(_DRAWS, len(whole)))
    return share, *_ends(part[draws].sum(axis=1) / whole[draws].sum(axis=1))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share.

    (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n), which stays within 0..1 and has width at p = 0 and 1.

    Args:
        share: p, 0 to 1.
        n: Number of examples, at least 1.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22:209; Agresti and Coull (1998), Am. Stat. 52:119.
    """
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # At the ends rounding would leave the share a hair outside its own interval.
    return max(0.0, min(share, (centre - half) / scale)), min(1.0, max(share, (centre + half) / scale))


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    """2.5 % and 97.5 % points of the mean over 1,000 resamples. Source: Efron and Tibshirani (1993), chapter 13."""
    draws = np.random.default_rng(seed).integers(len(values), size=(_DRAWS, len(values)))
    return _ends(values[draws].mean(axis=1))


def _ends(means: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
