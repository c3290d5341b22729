"""Pictures of a curriculum: the loss above its stages, what batches held, the stage x task matrix, both memories."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from workbench.records import Scores
from workbench.views.drawing import COLOURS, DASHES, INK, LINE, PAGE, SOFT
from workbench.views.router_drawing import Panel, heat_map

LEFT, WIDTH, LOSS, MIX, RIBBON = 52, 560, 150, 60, 26
BINS = 60
CURVES = ("task", "fine_tune", "consistency")


def ribbon_panel(curriculum: Any) -> Panel:
    """Return the losses of a training so far, the mixture of its batches below, and the ribbon of stages.

    Args:
        curriculum: A `Curriculum`; only its history, settings and stages' names are read.
    """
    history, tiers = curriculum.history, [stage.name for stage in curriculum.stages]
    groups = _groups(history)
    means = {name: [_mean([row[name] for row in group if row[name]]) for group in groups] for name in CURVES}
    shares = [_shares(group, tiers) for group in groups]
    about = (
        f"{len(history)} batches in {len(groups)} groups; {curriculum.pacing} pacing, order {curriculum.order}, "
        f"replay ratio {curriculum.replay_ratio:g}; one run, seed {curriculum.seed}, so no interval."
    )
    rows = [
        [f"{group[0]['step']} to {group[-1]['step']}", group[-1]["stage"],
         *("" if math.isnan(means[name][k]) else f"{means[name][k]:.3f}" for name in CURVES),
         *(f"{share:.0%}" for share in shares[k])]
        for k, group in enumerate(groups)
    ]  # fmt: skip
    return Panel(
        title="Loss, mixture and stages",
        picture=_ribbon(groups, means, shares, tiers),
        reading="from left to right, training goes on. Above, the loss in nats per answer token; in the middle, which "
        "stages' examples the batches held, by the number of the stage; below, the stage under way.",
        about=about,
        head=["steps", "stage", *CURVES, *(f"{i + 1}: {name}" for i, name in enumerate(tiers))],
        rows=rows,
    )


def matrix_panel(after: Mapping[str, Scores], expected: Sequence[str] = ()) -> Panel:
    """Return the stage x task matrix as far as it is filled.

    Args:
        after: Name of a row (`before`, then stages) to the scores measured then, in order.
        expected: Names of all rows that there will be; those not measured yet stay empty.
    """
    names = list(dict.fromkeys([*after, *expected]))
    tasks = list(dict.fromkeys(task for scores in after.values() for task in scores))
    values = np.array([[after[name][task].value if name in after else math.nan for name in names] for task in tasks])
    rows = [
        [task, name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}", score.n]
        for name, scores in after.items()
        for task, score in scores.items()
    ]
    picture = heat_map(values.reshape(len(tasks), len(names)), tasks, [str(i) for i in range(len(names))])
    return Panel(
        title="What each stage taught, and what it destroyed",
        picture=picture,
        reading="a row is a task, a column a time of measuring. A number that falls to the right was forgotten.",
        about="columns: " + ", ".join(f"{i} = after {name}" if i else f"0 = {name}" for i, name in enumerate(names))
        + "; intervals are of 95 % and stand in the table.",
        head=["task", "after", "score", "95 % interval", "n"],
        rows=rows,
    )  # fmt: skip


def memory_tables(curriculum: Any, first: int = 200) -> str:
    """Return what sits in both memories as HTML tables; every text is escaped.

    Args:
        curriculum: A `Curriculum`.
        first: Most rows of each table.
    """
    parts = []
    for title, memory in (("Short-term memory", curriculum.short_term), ("Long-term memory", curriculum.long_term)):
        if memory is None:
            continue
        rows = memory.rows()[:first]
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in (rows[0] if rows else ()))
        body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
        table = f'<table class="wb-table"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        held = f"{len(memory)} of {memory.size} places taken" + (
            f", the first {first} shown" if len(memory) > first else ""
        )
        parts.append(f'<h4>{title}</h4><p class="wb-note">{held}.</p><div class="wb-scroll">{table}</div>')
    return "".join(parts)


def _ribbon(groups: Sequence[Any], means: Mapping[str, Sequence[float]], shares: Any, tiers: Sequence[str]) -> str:
    height = LOSS + MIX + RIBBON + 66
    parts = [f'<rect width="{LEFT + WIDTH + 12}" height="{height}" fill="{PAGE}"/>']
    top = max((value for values in means.values() for value in values if not math.isnan(value)), default=1.0)
    # A batch is as wide as any other, however many are drawn as one.
    edges = LEFT + WIDTH * np.cumsum([0, *map(len, groups)]) / max(1, sum(map(len, groups)))
    for value in (0, top / 2, top):
        y = 30 + LOSS * (1 - value / top)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LINE}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.2f}", "end", SOFT))
    for k, (name, values) in enumerate(means.items()):
        points = " ".join(
            f"{(edges[i] + edges[i + 1]) / 2:.1f},{30 + LOSS * (1 - value / top):.1f}"
            for i, value in enumerate(values)
            if not math.isnan(value)
        )
        style = f'stroke="{COLOURS[k]}" stroke-width="2" stroke-dasharray="{DASHES[k]}" fill="none"'
        parts.append(f'<polyline points="{points}" {style}/>')
        x = LEFT + 150 * k
        parts.append(f'<line x1="{x}" x2="{x + 26}" y1="12" y2="12" {style}/>')
        parts.append(_text(x + 32, 16, name.replace("_", "-"), "start", INK))
    below, ribbon = 40 + LOSS, 48 + LOSS + MIX
    for i, parts_of in enumerate(shares):
        y, step = float(below), edges[i + 1] - edges[i]
        for k, share in enumerate(parts_of):
            size = MIX * share
            title = f"<title>{html.escape(tiers[k])}: {share:.0%}</title>"
            parts.append(_box(edges[i], y, step, size, k, title))
            if size > 12 and step > 9:
                parts.append(_text(edges[i] + step / 2, y + size / 2 + 4, str(k + 1), "middle", INK))
            y += size
    spans: list[list[Any]] = []
    for i, group in enumerate(groups):
        if not spans or spans[-1][0] != group[-1]["stage"]:
            spans.append([group[-1]["stage"], i, i])
        spans[-1][2] = i + 1
    for name, first, last in spans:
        k = tiers.index(name)
        start, width = float(edges[first]), float(edges[last] - edges[first])
        parts.append(_box(start, ribbon, width, RIBBON, k, ""))
        label = f"{k + 1} {name}"[: max(1, int(width / 7))]
        parts.append(_text(start + width / 2, ribbon + 17, label, "middle", INK))
    return _svg(parts, height)


def histogram_picture(counts: Sequence[int], low: float, high: float, borders: Sequence[float], label: str) -> str:
    """Return an SVG of a histogram with dashed borders between stages.

    Args:
        counts: Examples in each bar.
        low: Left end of the first bar.
        high: Right end of the last.
        borders: Rising values between them.
        label: What is measured.
    """
    bottom, step = 30 + LOSS, WIDTH / len(counts)
    parts = [f'<rect width="{LEFT + WIDTH + 12}" height="{bottom + 44}" fill="{PAGE}"/>']
    for i, count in enumerate(counts):
        height = LOSS * count / max(1, *counts)
        parts.append(_box(LEFT + step * i, bottom - height, step, height, 0, f"<title>{count} examples</title>"))
    for part in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(LEFT + WIDTH * part, bottom + 16, f"{low + (high - low) * part:.2f}", "middle", SOFT))
    for border in borders:
        x = LEFT + WIDTH * (border - low) / ((high - low) or 1)
        line = f'x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{bottom}" stroke="{INK}" stroke-dasharray="5 3"'
        parts.append(f"<line {line}/>")
        parts.append(_text(x, 14, f"{border:.3g}", "middle", INK))
    parts.append(_text(LEFT - 6, 34, str(max(counts)), "end", SOFT))
    parts.append(_text(LEFT + WIDTH / 2, bottom + 36, label, "middle", INK))
    return _svg(parts, bottom + 44)


def _groups(history: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Put batches that follow each other together, so that about `BINS` groups are left; none holds two stages."""
    size, groups = max(1, math.ceil(len(history) / BINS)), []
    for _, stage in groupby(history, key=lambda row: row["stage"]):
        rows = list(stage)
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    return groups


def _svg(parts: Sequence[str], height: float) -> str:
    size = f'viewBox="0 0 {LEFT + WIDTH + 12} {height}" width="{LEFT + WIDTH + 12}"'
    font = 'font-family="system-ui, sans-serif" font-size="12" aria-hidden="true"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{"".join(parts)}</svg>'


def _box(x: float, y: float, width: float, height: float, k: int, title: str) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {where} fill="{COLOURS[k % 4]}" fill-opacity="0.35" stroke="{LINE}">{title}</rect>'


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _shares(group: Sequence[Mapping[str, Any]], tiers: Sequence[str]) -> list[float]:
    counts = [sum(row["mix"].get(name, 0) for row in group) for name in tiers]
    return [count / max(1, sum(counts)) for count in counts]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _cell(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return html.escape(text if len(text) <= 90 else f"{text[:89]}…")
