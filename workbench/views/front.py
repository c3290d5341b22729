"""Read the table that a sweep over ratios returns: which curves it holds, how sure they are, and what they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.errors import ConfigError

AXES = ("clinical", "instructions")
"""The two scores that a blend trades against each other, where a sweep has them."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One score at every measured ratio.

    Args:
        name: What is scored, a group such as `clinical` or a task.
        values: Scores, 0 to 1, one for each ratio.
        lows: Lower ends of the 95 % intervals; equal to the values where none were measured.
        highs: Upper ends.
        n: Examples at each ratio; None where the table does not say.
    """

    name: str
    values: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    n: int | None = None

    def text(self, i: int) -> str:
        """Return the value at the i-th ratio with its interval."""
        return f"{self.values[i]:.2f} ({self.lows[i]:.2f} to {self.highs[i]:.2f})"


def ratios_of(front: pd.DataFrame) -> list[float]:
    """Return the measured ratios in rising order.

    Raises:
        ConfigError: There is no `ratio` column, or it holds fewer than two different ratios.
    """
    if "ratio" not in front.columns:
        raise ConfigError(f"the table has the columns {list(front.columns)}; a sweep has one named 'ratio'")
    ratios = sorted(float(ratio) for ratio in front["ratio"].unique())
    if len(ratios) < 2:
        raise ConfigError(f"the table holds the ratios {ratios}; a curve needs at least two: sweep(recipe, ratios=3)")
    return ratios


def curves(front: pd.DataFrame, names: Sequence[str] | None = None) -> list[Curve]:
    """Return several scores over the ratios.

    Args:
        front: What `sweep` returned.
        names: Columns, in the order wanted; None takes clinical and instructions, or the first two scores there are.

    Raises:
        ConfigError: The table has no such score, or fewer than two where none are named.
    """
    known = score_names(front)
    if names is None:
        names = AXES if set(AXES) <= set(known) else known[:2]
        if len(names) < 2:
            raise ConfigError(f"the table holds the scores {known}; two are needed, so sweep over at least two tasks")
    return [_curve(front, name, known) for name in names]


def score_names(front: pd.DataFrame) -> list[str]:
    """Return the columns that hold a score: those with an interval beside them."""
    return [str(name) for name in front.columns if f"{name}_low" in front.columns]


def second_parent(front: pd.DataFrame) -> str:
    """Return the short name of the model that a ratio is the share of."""
    parents = _about(front, "parents")
    return str(parents[1]).rstrip("/").rsplit("/", 1)[-1] if parents else "the second parent"


def method_of(front: pd.DataFrame) -> str | None:
    """Return the merge method that was measured, or None where the table does not say."""
    return _about(front, "method")


def about_line(front: pd.DataFrame, lines: Sequence[Curve]) -> str:
    """Return in one line how many examples stand behind each point, and from which split and seed."""
    counts = ", ".join(f"{line.name} n = {line.n:,}" for line in lines if line.n is not None)
    parts = [f"at each ratio {counts}" if counts else "", "bands and bars are 95 % intervals"]
    parts += [
        f"{name} {_about(front, name)}" for name in ("method", "split", "seed") if _about(front, name) is not None
    ]
    return "; ".join(part for part in parts if part)


def check_parents(front: pd.DataFrame, parents: Sequence[str]) -> None:
    """Refuse a table that was measured on other parents, or on these in another order.

    Raises:
        ConfigError: The table names its parents, and they are others.
    """
    measured = _about(front, "parents")
    if measured and [*measured] != [*parents]:
        raise ConfigError(
            f"front was measured on the parents {[*measured]}, and the sliders move {[*parents]}; "
            "pass the sweep of the same parents in the same order, or leave front out"
        )


def _curve(front: pd.DataFrame, name: str, known: Sequence[str]) -> Curve:
    if name not in known:
        raise ConfigError(f"the table has no score {name!r} with its interval; it has {', '.join(known) or 'none'}")
    rows = front.drop_duplicates("ratio", keep="last").sort_values("ratio")
    values, lows, highs = (tuple(map(float, rows[column])) for column in (name, f"{name}_low", f"{name}_high"))
    n = int(rows[f"{name}_n"].iloc[0]) if f"{name}_n" in rows else None
    return Curve(name=name, values=values, lows=lows, highs=highs, n=n)


def _about(front: pd.DataFrame, name: str) -> Any:
    """Look where `sweep` notes it, else in a column of that name, which survives a CSV file: `a + b` for parents."""
    noted = {**front.attrs.get("recipe", {}), **front.attrs}.get(name)
    if noted is None and name in front.columns:
        noted = front[name].iloc[0]
        return str(noted).split(" + ") if name == "parents" else noted
    return noted
