"""The pictures of a mixture of skills: weights by task, a search's path, what each skill adds, a gate's choices."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from workbench.adapters import set_skill_weights, skill_weights
from workbench.adapters.lorahub import SearchStep
from workbench.curriculum.difficulty import difficulty
from workbench.errors import ConfigError
from workbench.records import RoutingTrace
from workbench.routing.stats import over_seeds
from workbench.views.curve_picture import curve_pictures
from workbench.views.drawing import INK, LINE, SOFT
from workbench.views.router_drawing import LESS, MORE, ROW, Panel, heat_map
from workbench.views.skill_sliders import preset_weights

COLUMNS = 12
"""Most columns of a path's picture: more do not fit on a page."""


def weights_panel(tasks: Mapping[str, Sequence[Any]]) -> Panel:
    """Draw which skills each task takes.

    Args:
        tasks: Task to what was found for it, once for each seed: weights by skill, what `compose_skills` returned, or a
            model with a static skill router.

    Raises:
        ConfigError: There is no task, or a task has no weights.
    """
    empty = [task for task, found in tasks.items() if not len(found)]
    if not tasks or empty:
        raise ConfigError(f"tasks without weights: {empty or 'all'}; give each task one set of weights for each seed")
    found = {task: [preset_weights(weights) for weights in seeds] for task, seeds in tasks.items()}
    skills = list(dict.fromkeys(skill for seeds in found.values() for weights in seeds for skill in weights))
    means = np.array([[_mean([one.get(skill, 0.0) for one in seeds]) for seeds in found.values()] for skill in skills])
    columns = "; ".join(f"{i + 1} = {task} (n = {len(seeds)})" for i, (task, seeds) in enumerate(found.items()))
    return Panel(
        title="Which task takes which skill",
        picture=heat_map(means[..., 0], skills, [str(i + 1) for i in range(len(found))], marks=_sure(means)),
        reading="a row is a skill, a column a task; blue adds the skill, orange takes it away. A star marks a weight "
        "whose interval over seeds leaves out 0: the others may be chance, or a skill that another one replaces.",
        about=f"Columns: {columns}. n counts seeds; intervals are 95 % t-intervals over them, and stand in the table.",
        head=["skill", *found],
        rows=[[skill, *(_text(mean, "+.2f") for mean in row)] for skill, row in zip(skills, means)],
    )


def path_panels(trace: Sequence[SearchStep], seed: int | None = None) -> list[Panel]:
    """Draw the path of a search: the loss of every try with the best so far, and the weights of the best so far.

    Args:
        trace: The tries, such as `Composition.trace`; not empty.
        seed: The search's seed, to say so.
    """
    charts = {
        "what is searched: loss + L1": {
            "this try": [(row.step + 1, row.penalised) for row in trace],
            "best": [(row.step + 1, row.best) for row in trace],
        },
        "loss (nats per answer token)": {"this try": [(row.step + 1, row.loss) for row in trace]},
    }
    shown = [trace[i] for i in sorted({round(i * (len(trace) - 1) / (COLUMNS - 1)) for i in range(COLUMNS)})]
    leading = [next(row for row in trace if row.penalised == late.best) for late in shown]
    skills, steps = list(trace[0].weights), [str(row.step + 1) for row in shown]
    values = np.array([[row.weights[skill] for row in leading] for skill in skills])
    about = f"{len(trace)} tries, one search" + ("" if seed is None else f", seed {seed}") + ", so no interval."
    return [
        Panel(
            title="The search, try by try",
            picture=curve_pictures(charts),
            reading="from left to right, tries go on; the first one is w = 0, the base. The best line only falls.",
            about=about,
            head=["try", "loss", "loss + L1", "best"],
            rows=[[row.step + 1, *(f"{one:.3f}" for one in (row.loss, row.penalised, row.best))] for row in trace],
        ),
        Panel(
            title="The weights of the best try so far",
            picture=heat_map(values, skills, steps),
            reading="a column is a try, a row a skill. Where a row stops changing, the search has settled on it.",
            about=about,
            head=["skill", *steps],
            rows=[[skill, *(f"{value:+.2f}" for value in row)] for skill, row in zip(skills, values)],
        ),
    ]


def leave_one_out(model: Any, tokenizer: Any, examples: Any) -> dict[str, list[float]]:
    """Return how much each example's loss rises when one skill is left out and the others keep their weights.

    Args:
        model: A model with a static skill router; its weights are put back at the end.
        tokenizer: Its tokenizer.
        examples: At least two examples, or rows with their columns.

    Returns:
        Skill, of those whose weight is not 0, to nats per answer token, one number for each example. Above 0, the skill
        helps.
    """
    weights = skill_weights(model)

    def losses() -> list[float]:
        return difficulty(examples, "loss", model=model, tokenizer=tokenizer, progress=False)

    whole, found = losses(), {}
    try:
        for skill in [skill for skill, weight in weights.items() if np.any(weight)]:
            set_skill_weights(model, weights | {skill: 0.0})
            found[skill] = [without - full for without, full in zip(losses(), whole, strict=True)]
    finally:
        set_skill_weights(model, weights)
    return found


def leave_one_out_panel(rises: Mapping[str, Sequence[float]]) -> Panel:
    """Draw what each skill adds.

    Args:
        rises: What `leave_one_out` returned.

    Raises:
        ConfigError: There is no skill, or fewer than two examples.
    """
    if not rises or len(next(iter(rises.values()))) < 2:
        raise ConfigError(f"{len(rises)} skills were left out; it takes a skill of weight other than 0, and 2 examples")
    order = sorted(rises, key=lambda skill: -np.mean(rises[skill]))
    means = np.array([_mean(rises[skill]) for skill in order])
    return Panel(
        title="What each skill adds: the rise of the loss without it",
        picture=_bars(order, means),
        reading="a bar to the right is a skill that is missed when it is left out, to the left one that does harm. "
        "A star marks an interval that leaves out 0. Two skills that know the same cover for each other: both look "
        "small.",
        about=f"Nats per answer token, n = {len(rises[order[0]])} examples; the black line is the 95 % t-interval over "
        "them, each compared with itself.",
        head=["skill", "rise of the loss (95 % interval)"],
        rows=[[skill, _text(mean, "+.3f")] for skill, mean in zip(order, means)],
    )


def gate_panel(trace: RoutingTrace, skills: Sequence[str], prompts: Sequence[str] | None = None) -> Panel:
    """Draw which skills a gate takes for each prompt, as the mean over its routers.

    Args:
        trace: What `capture_routing` recorded of a model whose skill router has an input gate.
        skills: The router's skills, in its order.
        prompts: What to call the documents; None numbers them.

    Raises:
        ConfigError: The trace is empty, or its routers choose among another number of experts.
    """
    widths = {output.router_logits.shape[1] for output in trace.routers.values()}
    if widths != {len(skills)}:
        raise ConfigError(
            f"the trace's routers choose among {sorted(widths)} experts, and {len(skills)} skills were named; capture "
            "a model with an input gate while it runs, and name each of its skills"
        )
    documents = trace.tokens["document"]
    first = [int((documents == document).int().argmax()) for document in range(int(documents.max()) + 1)]
    each = [
        torch.zeros(one.router_logits.shape).scatter(1, one.selected_experts, one.routing_weights.float())[first]
        for one in trace.routers.values()
    ]
    values = torch.stack(each).mean(0).T.numpy()
    numbers = [str(i + 1) for i in range(len(first))]
    named = "; ".join(f"{i} = {' '.join(text.split())[:60]}" for i, text in zip(numbers, prompts or numbers))
    return Panel(
        title="What the gate takes for each prompt",
        picture=heat_map(values, skills, numbers),
        reading="a column is a prompt, a row a skill; the gate reads the whole prompt once and then keeps its choice. "
        "Columns that look alike are a gate that does not care what is asked.",
        about=f"Columns: {named}. One gate, n = {len(first)} prompts: no interval.",
        head=["skill", *numbers],
        rows=[[skill, *(f"{value:+.2f}" for value in row)] for skill, row in zip(skills, values)],
    )


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and 95 % t-interval, NaN ends for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan, math.nan
    one = over_seeds(list(values))
    return float(one.value), float(one.low), float(one.high)


def _sure(means: np.ndarray) -> np.ndarray:
    """Say of which means `(..., 3)` the interval leaves out 0."""
    return (means[..., 1] > 0) | (means[..., 2] < 0)


def _text(mean: np.ndarray, form: str) -> str:
    value, low, high = (f"{number:{form}}" for number in mean)
    return value if math.isnan(mean[1]) else f"{value} ({low} to {high})"


def _bars(names: Sequence[str], means: np.ndarray) -> str:
    """Return an SVG with a bar from 0 and an interval for each row of means `(rows, 3)`."""
    left, width, height = 20 + 7 * max(map(len, names)), 360, 8 + ROW * len(names)
    low, high = min(0.0, means.min()), max(0.0, means.max())
    places = left + width * (means - low) / ((high - low) or 1.0)
    zero = left - width * low / ((high - low) or 1.0)
    parts = [f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="2" y2="{height}" stroke="{SOFT}"/>']
    for i, (name, (end, *ends), star) in enumerate(zip(names, places, _sure(means))):
        y, colour = 6 + ROW * i, MORE if end >= zero else LESS
        bar = f'x="{min(zero, end):.1f}" y="{y}" width="{abs(end - zero):.1f}" height="{ROW - 6}"'
        value = f"{means[i, 0]:+.3f}{'*' if star else ''}"
        parts += [
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end" fill="{INK}">{html.escape(name)}</text>',
            f'<rect {bar} fill="{colour}" fill-opacity="0.5" stroke="{LINE}"/>',
            f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="{INK}"/>',
            f'<text x="{left + width + 10}" y="{y + 15}" fill="{INK}">{value}</text>',
        ]
    size = f'viewBox="0 0 {left + width + 70} {height}" width="{left + width + 70}"'
    font = 'font-family="system-ui, sans-serif" font-size="12" aria-hidden="true"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>{"".join(parts)}</svg>'
