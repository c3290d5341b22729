"""The headline claims of the five papers, and our figure for each from the committed result tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from workbench.routing.stats import over_seeds
from workbench.search.few_shot import shots_difference

Tables = Mapping[str, pd.DataFrame]
RATIO = 0.4
"""The share of the clinical parent in a linear merge that was chosen on validation."""


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, and what stands behind it."""

    value: float
    low: float
    high: float
    behind: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, and how it is measured here.

    Args:
        idea: Whose it is.
        paper: Its arXiv number.
        stated: What its authors state, in our words; a number only where they give one.
        setting: What we measured instead.
        table: The result table behind it.
        unit: Of the figure and the aim.
        aim: The least figure with which the claim would hold here.
        measure: The tables to the figure.
    """

    idea: str
    paper: str
    stated: str
    setting: str
    table: str
    unit: str
    aim: float
    measure: Callable[[Tables], Figure]


def verdict(figure: Figure, aim: float) -> str:
    """Return `holds` where the whole interval reaches the aim, `does not hold` where it is below, else `open`."""
    if figure.low >= aim:
        return "holds"
    return "does not hold" if figure.high < aim else "open"


def paired(first: pd.Series, second: pd.Series, scale: float = 100.0) -> Figure:
    """Return the mean difference of two arms over the seeds that both have, with its 95 % t-interval."""
    gaps = (scale * (first - second)).dropna()
    estimate = over_seeds(gaps.tolist())
    return Figure(float(estimate.value), float(estimate.low), float(estimate.high), f"{len(gaps)} seeds")


def curriculum(measure: str, sign: float = 1.0, other: str = "shuffled") -> Callable[[Tables], Figure]:
    """Compare ICFT with another arm by one measure."""

    def figure(tables: Tables) -> Figure:
        rows = tables["curriculum_effect"]
        by_arm = rows[rows["split"] == "test"].set_index(["arm", "seed"])[measure]
        return paired(by_arm["icft"], by_arm[other], 100 * sign)

    return figure


def examples_saved(tables: Tables) -> Figure:
    """Return the share of all examples that ICFT need not see to reach what shuffled training ends with."""
    rows = tables["curriculum_effect"]
    mine = rows[(rows["split"] == "test") & (rows["arm"] == "icft")].set_index("seed")
    every = mine["steps"] * mine["batch_size"]
    return paired(1 - mine["examples_to_shuffled"].fillna(every) / every, 0 * every)


def kept(group: str, parent: float) -> Callable[[Tables], Figure]:
    """Return the score of the merged model as a share of the score of the parent that is best at it."""

    def figure(tables: Tables) -> Figure:
        sweep = tables["ratio_sweep"].set_index("ratio")
        merged, whole = sweep.loc[RATIO], sweep.loc[parent, group]
        ends = (100 * merged[name] / whole for name in (group, f"{group}_low", f"{group}_high"))
        return Figure(*ends, f"one merge, {int(merged[f'{group}_n'])} questions, the parent's score taken as exact")

    return figure


def few_shot(measure: str, first: tuple[str, int], second: tuple[str, int]) -> Callable[[Tables], Figure]:
    """Compare two parents, each with its number of shots, by the mean of a measure over the tasks."""

    def figure(tables: Tables) -> Figure:
        gap = shots_difference(tables["few_shot_effect"], first, second, measure)
        return Figure(*(100 * float(end) for end in (gap.value, gap.low, gap.high)), f"{gap.n} seeds")

    return figure


def mixture(arm: str, other: str) -> Callable[[Tables], Figure]:
    """Compare two arms of the mixture-of-experts table."""

    def figure(tables: Tables) -> Figure:
        average = tables["lora_moe_effect"].set_index(["arm", "seed"])["average"]
        return paired(average[arm], average[other])

    return figure


def skills(mine: tuple[str, int], other: tuple[str, int], track: str) -> Callable[[Tables], Figure]:
    """Compare two arms of the skills table, each with its shots, by their mean over the tasks of a track."""

    def figure(tables: Tables) -> Figure:
        rows = tables["skills_effect"]
        return _gap(rows[rows["track"] == track], mine, other)

    return figure


def best_task(mine: tuple[str, int], other: tuple[str, int], track: str) -> Callable[[Tables], Figure]:
    """Compare two arms of the skills table on the task of a track that gains most."""

    def figure(tables: Tables) -> Figure:
        rows = tables["skills_effect"]
        tasks = rows[rows["track"] == track].groupby("task")
        gaps = {task: _gap(part, mine, other) for task, part in tasks}
        task = max(gaps, key=lambda name: gaps[name].value)
        return replace(gaps[task], behind=f"{gaps[task].behind}, {task}")

    return figure


def _gap(rows: pd.DataFrame, mine: tuple[str, int], other: tuple[str, int]) -> Figure:
    """Compare two arms draw by draw; one that draws nothing counts the same beside each of the other's draws."""
    means = rows.groupby(["arm", "shots", "seed"])["score"].mean()
    first, second = means[mine], means[other]
    return paired(first, second if len(second) > 1 else pd.Series(second.iloc[0], index=first.index))


def tokens_spared(tables: Tables) -> Figure:
    """Return how much shorter, in percent, LoraHub's prompt is than five examples in context, on unseen tasks."""
    rows = tables["skills_effect"]
    rows = rows[(rows["track"] == "unseen task") & (rows["shots"] == 5)]
    read = {arm: part.groupby("seed")["read_tokens"].mean() for arm, part in rows.groupby("arm")}
    return paired(1 - read["LoraHub, faithful"] / read["in context"], 0 * read["in context"])


BASE, HUB = ("base", -1), ("LoraHub, faithful", 5)
_ICFT = {"idea": "ICFT", "paper": "2502.00832", "table": "curriculum_effect", "unit": "points", "aim": 0.0}
_MERGE = {"idea": "Merging", "paper": "2604.01538", "unit": "points", "aim": 0.0}
_MOE = {"idea": "SparseDoctor", "paper": "2509.14269", "table": "lora_moe_effect", "unit": "points", "aim": 0.0}
_SKILLS = {"idea": "SA-MDKIF", "paper": "2402.00474", "table": "skills_effect", "unit": "points"}
_HUB = {"idea": "LoraHub", "paper": "2307.13269", "table": "skills_effect", "unit": "points", "aim": 0.0}
_QUEUE = "LoRA-MoE, queue"

CLAIMS = (
    Claim(
        stated="better accuracy than baselines", measure=curriculum("specialist"), **_ICFT,
        setting="ICFT minus the same examples shuffled, specialist tasks",
    ),
    Claim(
        stated="generalises to unseen data", measure=curriculum("unseen"), **_ICFT,
        setting="ICFT minus shuffled, specialist tasks of conditions never trained on",
    ),
    Claim(
        stated="more efficient", measure=examples_saved, **_ICFT | {"unit": "% of the examples"},
        setting="examples that ICFT can do without when it reaches shuffled's last score",
    ),
    Claim(
        stated="less catastrophic forgetting", measure=curriculum("general"), **_ICFT,
        setting="ICFT minus shuffled, general tasks at the end",
    ),
    Claim(
        stated="fewer errors", measure=curriculum("error_rate", -1.0), **_ICFT,
        setting="shuffled's error rate minus ICFT's, all tasks",
    ),
    Claim(
        stated="more diverse answers", measure=curriculum("distinct_2"), **_ICFT,
        setting="ICFT minus shuffled, share of distinct word pairs in its short questions",
    ),
    Claim(
        stated="keeps the clinical skill", measure=kept("clinical", 1.0),
        setting=f"linear merge at {RATIO} clinical: share of the clinical parent's score on twelve skills",
        **_MERGE | {"table": "ratio_sweep", "unit": "%", "aim": 90.0},
    ),
    Claim(
        stated="keeps following instructions", measure=kept("instructions", 0.0),
        setting=f"linear merge at {RATIO} clinical: share of the instruct parent's score on instructions",
        **_MERGE | {"table": "ratio_sweep", "unit": "%", "aim": 90.0},
    ),
    Claim(
        stated="with 64 shots on par with fully tuned baselines at 256", table="few_shot_effect", **_MERGE,
        measure=few_shot("composite", ("merged", 64), ("instruct", 256)),
        setting="merged at 64 shots minus instruct at 256, composite of five generation tasks",
    ),
    Claim(
        stated="with 64 shots on par with fully tuned baselines at 256", table="few_shot_effect", **_MERGE,
        measure=few_shot("composite", ("merged", 64), ("clinical", 256)),
        setting="merged at 64 shots minus clinical at 256, composite of five generation tasks",
    ),
    Claim(
        stated="counters forgetting", table="few_shot_effect", **_MERGE,
        measure=few_shot("instruction", ("merged", 64), ("clinical", 256)),
        setting="merged at 64 shots minus clinical at 256, instructions followed after tuning",
    ),
    Claim(
        stated="beats the baselines (a third party: by 2.29 %)", **_MOE | {"aim": 2.29},
        measure=mixture(_QUEUE, "LoRA, equal parameters"),
        setting="mixture with contrast and queue minus one LoRA of as many parameters",
    ),
    Claim(
        stated="contrastive supervision helps the router", measure=mixture(_QUEUE, "LoRA-MoE, no contrast"), **_MOE,
        setting="mixture with contrast and queue minus without contrast",
    ),
    Claim(
        stated="an expert memory queue makes training more efficient", **_MOE,
        measure=mixture(_QUEUE, "LoRA-MoE, in-batch contrast"),
        setting="after equal steps: contrast over the queue minus contrast within the batch",
    ),
    Claim(
        stated="10 to 20 % over the original model, unseen data", **_SKILLS | {"aim": 10.0},
        measure=skills(("router, static", 0), BASE, "unseen data"),
        setting="static router, all training rows, minus base; five skills on unseen conditions",
    ),
    Claim(
        stated="up to 30 % over the original model, unseen tasks", **_SKILLS | {"aim": 30.0},
        measure=best_task(("router, static", 0), BASE, "unseen task"),
        setting="static router, all training rows, minus base; that of four tasks of no trained skill which gains most",
    ),
    Claim(
        stated="works with few shots", **_SKILLS | {"aim": 0.0},
        measure=skills(("router, static", 5), BASE, "unseen task"),
        setting="static router from five examples minus base; four tasks of no trained skill",
    ),
    Claim(
        stated="a composition is worth more than a single module", **_HUB,
        measure=skills(HUB, ("best single skill", 5), "unseen task"),
        setting="LoraHub as published minus the best single skill, five examples, unseen tasks",
    ),
    Claim(
        stated="close to in-context learning (34.7 against 37.3)", **_HUB | {"aim": -2.6},
        measure=skills(HUB, ("in context", 5), "unseen task"),
        setting="LoraHub as published minus five examples in context, which harm a base this small; unseen tasks",
    ),
    Claim(
        stated="a fraction of the tokens (112 against 598)", measure=tokens_spared,
        setting="how much shorter the prompt is than with five examples in context",
        **_HUB | {"unit": "% of the tokens", "aim": 81.0},
    ),
)  # fmt: skip
