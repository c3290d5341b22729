"""Read the table that a sweep over ratios returns: which curves it holds, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from workbench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One score at every measured ratio.

    Args:
        name: What is scored, a group such as `clinical` or a task.
        values: Scores, 0 to 1, one for each ratio.
        lows: Lower ends of the 95 % intervals; equal to the values where none were measured.
        highs: Upper ends.
    """

    name: str
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def ratios_of(front: pd.DataFrame) -> list[float]:
    """Return the measured ratios in rising order.

    Raises:
        ConfigError: There is no `ratio` column, or it holds fewer than two different ratios.
    """
    if "ratio" not in front.columns:
        raise ConfigError(f"the table has the columns {list(front.columns)}; a sweep has one named 'ratio'")
    ratios = sorted(float(ratio) for ratio in front["ratio"].unique())
    if len(ratios) < 2:
        raise ConfigError(
            f"the table holds the ratios {ratios}; a curve needs at least two, e.g. sweep(recipe, ratios=3)"
        )
    return ratios


def curve(front: pd.DataFrame, name: str) -> Curve:
    """Return one score over the ratios.

    Raises:
        ConfigError: The table has no such column.
    """
    if name not in front.columns:
        raise ConfigError(f"the table has no score {name!r}; it has {', '.join(score_names(front))}")
    rows = front.drop_duplicates("ratio", keep="last").sort_values("ratio")
    columns = [rows[column] if column in rows else rows[name] for column in (name, f"{name}_low", f"{name}_high")]
    values, lows, highs = (tuple(float(cell) for cell in column) for column in columns)
    return Curve(name=name, values=values, lows=lows, highs=highs)


def curves(front: pd.DataFrame, names: Sequence[str]) -> list[Curve]:
    """Return several scores over the ratios, in the order asked for."""
    return [curve(front, name) for name in names]


def score_names(front: pd.DataFrame) -> list[str]:
    """Return the columns that hold a score: those with an interval beside them."""
    return [str(name) for name in front.columns if f"{name}_low" in front.columns]
