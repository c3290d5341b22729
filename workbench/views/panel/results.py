"""From votes to a ranking: shares of rounds won with intervals, and strengths where more than two are compared."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from workbench.evaluation.intervals import interval
from workbench.views.panel.votes import Vote


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one variant fared.

    Args:
        variant: Its name.
        rounds: Rounds in which it was voted on.
        won: Rounds in which it was the best.
        ties: Rounds without a best one.
        bad: Rounds in which all answers were bad.
        share: Mean share of a round, 0 to 1: 1 for a win, an equal part of a tie and of a round of bad answers.
        low: Lower end of the 95 % interval of `share`.
        high: Its upper end.
        strength: Elo-like points around 1000, where more than two variants were compared; else None.
        strength_low: Lower end of its 95 % interval.
        strength_high: Its upper end.
    """

    variant: str
    rounds: int
    won: int
    ties: int
    bad: int
    share: float
    low: float
    high: float
    strength: float | None = None
    strength_low: float | None = None
    strength_high: float | None = None


def standings(votes: Sequence[Vote], *, seed: int = 0) -> list[Standing]:
    """Return every variant that was voted on, the best first.

    Args:
        votes: Votes, each round once.
        seed: Of the resampling behind the intervals of the shares.
    """
    names = sorted({pane.variant for vote in votes for pane in vote.panes})
    shares: dict[str, list[float]] = {name: [] for name in names}
    for vote in votes:
        for pane in vote.panes:
            shares[pane.variant].append(_share(vote, pane.variant))
    points = strengths(votes, names) if len(names) > 2 else {}
    found = []
    for name in names:
        mean, low, high = interval(shares[name], graded=True, seed=seed)
        seen = [vote for vote in votes if any(pane.variant == name for pane in vote.panes)]
        counts = {"ties": "tie", "bad": "bad"}
        found.append(
            Standing(
                variant=name,
                rounds=len(seen),
                won=sum(vote.winner == name and vote.verdict == "best" for vote in seen),
                **{field: sum(vote.verdict == verdict for vote in seen) for field, verdict in counts.items()},
                share=mean,
                low=low,
                high=high,
                **dict(zip(("strength", "strength_low", "strength_high"), points.get(name, ()))),
            )
        )
    return sorted(found, key=lambda row: (-(row.strength or row.share), row.variant))


def strengths(votes: Sequence[Vote], names: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Return the strengths behind the votes, as Elo-like points with the ends of their 95 % interval.

    Of the answers S of a round, i is the best with probability q_i = p_i / sum_{j in S} p_j, which for two answers is
    the model of Bradley and Terry. A tie is an equal part of a win for each. Points are 1000 + 400 log10(p_i / m), with
    m the geometric mean of p. Intervals come from the information sum (diag(q) - q q^T) over the rounds.

    Args:
        votes: Votes, each round once.
        names: The variants.

    Source: Bradley and Terry (1952), Biometrika 39:324; Luce (1959) for more than two; Hunter (2004), Ann. Stat.
        32:384, equation 30, for the iteration.
    Deviates: one tie among all variants is added, so that nobody's strength is 0 or without end.
    """
    groups = [{pane.variant for pane in vote.panes} for vote in votes] + [set(names)]
    shown = np.array([[name in group for name in names] for group in groups], dtype=float)
    won = np.array([[_share(vote, name) for name in names] for vote in votes] + [[1 / len(names)] * len(names)])
    p, wins = np.ones(len(names)), won.sum(0)
    for _ in range(2000):
        before, p = p, wins / (shown.T @ (1 / (shown @ p)))
        p /= np.exp(np.log(p).mean())
        if np.abs(p / before - 1).max() < 1e-8:
            break
    q = shown * p / (shown @ p)[:, None]
    half = 1.96 * np.sqrt(np.diag(np.linalg.pinv(np.diag(q.sum(0)) - q.T @ q, hermitian=True)))
    points, widths = 1000 + 400 * np.log10(p), 400 / np.log(10) * half
    return {name: (float(x), float(x - w), float(x + w)) for name, x, w in zip(names, points, widths)}


def _share(vote: Vote, name: str) -> float:
    if not any(pane.variant == name for pane in vote.panes):
        return 0.0
    return float(vote.winner == name) if vote.verdict == "best" else 1 / len(vote.panes)


def as_csv(rows: Sequence[Standing]) -> str:
    """Return the standings as CSV text; a name that a spreadsheet would compute gets a quote in front."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Standing.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        name = row.variant
        writer.writerow(asdict(row) | {"variant": f"'{name}" if name[:1] in tuple("=+-@\t\r") else name})
    return out.getvalue()


def as_html(rows: Sequence[Standing]) -> str:
    """Return the standings as an HTML table with a bar for each interval, and a link that saves them as CSV.

    The link carries the file in itself, so that the server hands out none.
    """
    if not rows:
        return "<p class='wb-note'>No vote yet. Ask something, read the answers, and choose.</p>"
    ranked = rows[0].strength is not None
    heads = ["", "rounds", "best", "tie", "all bad", "share of rounds won (95 %)", ""]
    heads += ["strength (95 %)"] if ranked else []
    body = "".join(f"<tr>{_cells(row, ranked)}</tr>" for row in rows)
    data = base64.b64encode(as_csv(rows).encode()).decode()
    reading = (
        "How to read this: a tie is an equal part of a win for each answer. Where two bars overlap, the votes do not "
        "show which is better." + (" Strengths are Bradley-Terry's, on the scale of Elo; 1000 is average." * ranked)
    )
    return (
        f"<table class='wb-results'><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{body}</tbody></table><p class='wb-note'>{reading}</p>"
        f"<p><a download='results.csv' href='data:text/csv;base64,{data}'>Save as CSV</a></p>"
    )


def _cells(row: Standing, ranked: bool) -> str:
    left, width, dot = (f"{100 * value:.1f}%" for value in (row.low, row.high - row.low, row.share))
    # Its style stands here, since a notebook has no style sheet of the panel.
    box = "position:absolute;height:100%"
    bar = (
        "<span style='position:relative;display:inline-block;width:160px;height:12px;background:rgba(127,127,127,.2)'>"
        f"<i style='{box};left:{left};width:{width};background:#2b7bba;opacity:.5'></i>"
        f"<b style='{box};left:{dot};width:3px;margin-left:-1px;background:#2b7bba'></b></span>"
    )
    cells = [row.rounds, row.won, row.ties, row.bad, f"{row.share:.0%} ({row.low:.0%} to {row.high:.0%})", bar]
    cells += [f"{row.strength:.0f} ({row.strength_low:.0f} to {row.strength_high:.0f})"] if ranked else []
    return f"<th>{html.escape(row.variant)}</th>" + "".join(f"<td>{cell}</td>" for cell in cells)
