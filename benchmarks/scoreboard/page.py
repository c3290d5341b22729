"""The scoreboard as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from claims import Claim, Figure, verdict

HEADS = ("idea", "what its paper states", "what was measured here", "figure (95 %)", "aim", "verdict", "behind it")
MARKS = {"holds": "✔ holds", "open": "○ open", "does not hold": "✘ does not hold"}
ABOUT = (
    "What the papers state was measured on models and data that this project does not ship; what stands beside it was "
    "measured on the classroom models, toys of about one million parameters. A claim **holds** where the whole 95 % "
    "interval is at the aim or above, **does not hold** where it is below, and is **open** where the interval contains "
    "the aim. Aims are ours; a paper's number is used where it states one."
)
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 20%, Canvas) }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse }
caption { text-align: left; padding: .5rem 0 }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
td:nth-child(4), td:nth-child(6) { white-space: nowrap }
.holds { font-weight: 600 }
code { font-size: .85em }
"""
_WIDE, _HIGH = 150, 18


@dataclass(frozen=True)
class Row:
    """A claim with its figure; without one, why there is none."""

    claim: Claim
    figure: Figure | None
    lacking: str = ""

    def cells(self) -> list[str]:
        """Return the plain texts of the row."""
        claim, figure = self.claim, self.figure
        start, aim = [f"{claim.idea} ({claim.paper})", claim.stated, claim.setting], f"≥ {claim.aim:g} {claim.unit}"
        if figure is None:
            return [*start, "not measured", aim, MARKS["open"], self.lacking]
        sign = "+" if claim.unit == "points" else ""
        value, low, high = (f"{number:{sign}.1f}" for number in (figure.value, figure.low, figure.high))
        mark = MARKS[verdict(figure, claim.aim)]
        return [*start, f"{value} ({low} to {high})", aim, mark, f"{figure.behind}; {claim.table}.csv"]


def headline(rows: Sequence[Row]) -> str:
    """Return how many claims hold, idea by idea."""
    parts = []
    for idea in dict.fromkeys(row.claim.idea for row in rows):
        marks = [row.cells()[5] for row in rows if row.claim.idea == idea]
        parts.append(f"{idea} {sum(mark == MARKS['holds'] for mark in marks)} of {len(marks)}")
    held = sum(row.cells()[5] == MARKS["holds"] for row in rows)
    return f"{held} of {len(rows)} claims hold: {', '.join(parts)}."


def markdown(rows: Sequence[Row], made: Sequence[str], today: str) -> str:
    """Return the page as Markdown."""
    lines = ["# Scoreboard", "", f"Assembled {today} by `make scoreboard`. {headline(rows)}", "", ABOUT, ""]
    lines += ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells()) + " |" for row in rows]
    return "\n".join([*lines, "", "The tables:", "", *(f"- {line}" for line in made)]) + "\n"


def page(rows: Sequence[Row], made: Sequence[str], today: str) -> str:
    """Return the page as HTML; every text is escaped."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    about = "".join(
        f"<strong>{html.escape(part)}</strong>" if place % 2 else html.escape(part)
        for place, part in enumerate(ABOUT.split("**"))
    )
    tables = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in made)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Scoreboard</title><style>{STYLE}</style><h1>Scoreboard</h1><p><strong>{html.escape(headline(rows))}"
        f"</strong></p><p>{about}</p><table><caption>Assembled {today} by <code>make scoreboard</code>. In a picture "
        f"the bar is the 95 % interval, the dot the figure, the dashed line the aim.</caption><thead><tr>{heads}</tr>"
        f"</thead><tbody>{body}</tbody></table><h2>The tables</h2><ul>{tables}</ul></html>\n"
    )


def _cells(row: Row) -> str:
    texts = [html.escape(cell) for cell in row.cells()]
    if row.figure is not None:
        texts[3] += "<br>" + picture(row.figure, row.claim.aim)
        kind = verdict(row.figure, row.claim.aim).replace(" ", "-")
        texts[5] = f'<span class="{kind}">{texts[5]}</span>'
    return "".join(f"<td>{text}</td>" for text in texts)


def picture(figure: Figure, aim: float) -> str:
    """Return the interval as a bar, the figure as a dot, the aim as a dashed line."""
    least, most = min(figure.low, aim, 0.0), max(figure.high, aim, 0.0)
    span = (most - least) or 1.0
    x = {name: 6 + (_WIDE - 12) * (value - least) / span for name, value in
         (("low", figure.low), ("value", figure.value), ("high", figure.high), ("aim", aim))}  # fmt: skip
    middle, told = _HIGH / 2, f"{figure.value:.1f}, interval {figure.low:.1f} to {figure.high:.1f}, aim {aim:g}"
    return (
        f'<svg width="{_WIDE}" height="{_HIGH}" role="img" aria-label="{told}" stroke="currentColor">'
        f'<line x1="{x["aim"]:.1f}" x2="{x["aim"]:.1f}" y1="1" y2="{_HIGH - 1}" stroke-dasharray="3 2"/>'
        f'<line x1="{x["low"]:.1f}" x2="{x["high"]:.1f}" y1="{middle}" y2="{middle}" stroke-width="3" opacity=".45"/>'
        f'<circle cx="{x["value"]:.1f}" cy="{middle}" r="3.5" fill="currentColor"/></svg>'
    )
