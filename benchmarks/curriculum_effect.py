"""Does a curriculum with memories help? Seven arms from one base model, paired over seeds, by one resumable command.

    python benchmarks/curriculum_effect.py [--model classroom/base] [--out out/curriculum_effect] [--arms icft ...]
        [--trials 4] [--seeds 5] [--steps 120] [--batch-size 16] [--limit 60] [--device cpu] [--threads 2]
        [--executor local] [--save]

Every arm sees the same number of examples in three tiers: general (instructions, general knowledge), broad (facts asked
in several forms), and specialist, ICFT's three tasks: question answering, preference classification, response
generation, in forms that the base has not mastered. First each arm gets the same `--trials` settings, each
learning rate as often as the others, scored on validation; then its best one is trained with `--seeds` seeds and scored
on test after each stage. A cell that is done is never done again. The table gives each arm's means and its paired
difference to the first arm, with the 95 % t-interval.
"""

import argparse
import json
import os
import platform
import random
from datetime import date
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig

from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.measures import StageMatrix, distinct_n, operations, self_bleu
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Stage, records
from workbench.data import load_examples
from workbench.evaluation import evaluate
from workbench.fanout import run_cells
from workbench.models import data_samples_root, load_model
from workbench.records import Scores
from workbench.routing.stats import over_seeds
from workbench.search.store import RowStore
from workbench.training import train

TIERS = {
    "general": ("instruction", "general_knowledge"),
    "broad": ("entity_relation", "entity_synonymy", "exam_backward"),
    "specialist": ("referral", "preference", "short_question", "impression"),
}
TASKS = [task for tasks in TIERS.values() for task in tasks]
ICFT: dict[str, Any] = {"short": True, "long": True, "consistency": True, "order": "given"}
ARMS: dict[str, dict[str, Any]] = {
    "icft": ICFT,
    "without consistency": ICFT | {"consistency": False},
    "without long-term": ICFT | {"long": False, "consistency": False},
    "without short-term": ICFT | {"short": False},
    "sequential, no memory": ICFT | {"short": False, "long": False, "consistency": False, "pacing": "sequential"},
    "shuffled": ICFT | {"short": False, "long": False, "consistency": False, "order": "shuffled"},
    "anti-curriculum": ICFT | {"order": "anti"},
}
SPACE = {
    "lr": (1e-3, 3e-3, 1e-2),
    "pacing": ("sequential", "cumulative", "competence"),
    "replay_ratio": (0.1, 0.2, 0.35, 0.5),
    "consistency_coef": (0.1, 0.3, 1.0, 3.0),
    "theta": (1, 2),
    "last_share": (1 / 3, 1 / 2, 2 / 3),
}
MEASURES = ("specialist", "general", "unseen", "average_accuracy", "forgetting", "backward_transfer", "error_rate",
            "distinct_2", "self_bleu", "examples_to_shuffled", "tokens", "tera_operations", "seconds")  # fmt: skip


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="classroom/base")
    parser.add_argument("--out", type=Path, default=Path("out/curriculum_effect"))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--trials", type=int, default=4, help="settings tried for each arm")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120, help="optimiser steps of all stages together")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--limit", type=int, default=60, help="examples of each task that are scored")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--executor", default="local", choices=["local", "ray"])
    parser.add_argument("--save", action="store_true", help="write data_samples/results/curriculum_effect.csv")
    arguments = parser.parse_args(given)
    fixed = {name: getattr(arguments, name) for name in ("model", "steps", "batch_size", "limit", "device", "threads")}
    arguments.out.mkdir(parents=True, exist_ok=True)
    tried = [
        {"arm": arm, "seed": 1000, "split": "validation", **fixed, **settings}
        for arm in arguments.arms
        for settings in trials(arm, arguments.trials)
    ]
    found = run_all(tried, arguments)
    cells = []
    for arm in arguments.arms:
        best = max((pair for pair in zip(tried, found, strict=True) if pair[0]["arm"] == arm), key=lambda p: goal(p[1]))
        cells += [best[0] | {"seed": seed, "split": "test"} for seed in range(arguments.seeds)]
    rows = run_all(cells, arguments)
    report(cells, rows, arguments)
    if arguments.save:
        save([*tried, *cells], [*found, *rows])


def trials(arm: str, count: int) -> list[dict[str, Any]]:
    """Return settings to try: the same for all arms but for what makes the arm, so that none depends on a lucky draw.

    Each knob takes each of its values equally often, in an order of its own.
    """
    rng = random.Random("trials")
    columns = {name: [values[place % len(values)] for place in range(count)] for name, values in SPACE.items()}
    for column in columns.values():
        rng.shuffle(column)
    return [{name: ARMS[arm].get(name, columns[name][place]) for name in SPACE} for place in range(count)]


def goal(row: dict[str, Any]) -> float:
    """Return what settings are chosen by: the mean of specialist and general scores on validation."""
    return (row["specialist"] + row["general"]) / 2


def run_all(cells: list[dict[str, Any]], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return each cell's row, computing only those that no earlier call has computed."""
    store = RowStore(arguments.out / "cells.sqlite")
    left = list({key_of(cell): cell for cell in cells if key_of(cell) not in store}.values())
    run_cells(
        run_cell,
        left,
        executor=arguments.executor,
        on_result=lambda place, row: store.add(key_of(left[place]), row, left[place]),
    )
    return [store[key_of(cell)] for cell in cells]


def key_of(cell: dict[str, Any]) -> str:
    """Return a cell as text that is the same for the same settings."""
    return json.dumps(cell, sort_keys=True)


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Train one arm with one setting and one seed, and measure it before training and after each stage."""
    torch.set_num_threads(cell["threads"])
    torch.manual_seed(cell["seed"])
    model, tokenizer = load_model(cell["model"], device=cell["device"])
    curriculum = make_curriculum(cell)
    score = partial(evaluate, tokenizer=tokenizer, suite="classroom", tasks=TASKS, limit=cell["limit"], progress=False)
    after: dict[str, Scores] = {"before": score(model, split=cell["split"])}
    trace: list[tuple[int, float]] = []
    ends = {stage.name: (stage.steps or 0) for stage in curriculum.stages}

    def measure(trained: Any) -> dict[str, float]:
        stage = curriculum.history[-1]["stage"]
        seen = sum(cost["examples"] for cost in curriculum.costs.values())
        over = curriculum.costs[stage]["examples"] >= ends[stage] * cell["batch_size"]
        quick = evaluate(trained, tokenizer, tasks=list(TIERS["specialist"]), split="validation",
                         limit=max(2, cell["limit"] // 3), progress=False)  # fmt: skip
        trace.append((int(seen), mean(value.value for value in quick.values())))
        if over:
            after[stage] = score(trained, split=cell["split"])
        return {}

    with TemporaryDirectory() as folder:
        run = train(
            model, tokenizer, curriculum=curriculum, output_dir=Path(folder) / "run", batch_size=cell["batch_size"],
            adapter=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"), lr=cell["lr"],
            seed=cell["seed"], evaluate=measure, eval_every=max(1, cell["steps"] // 12), save_every=10**6,
            progress=False,
        )  # fmt: skip
        row = figures(cell, curriculum, run.model, after, trace, score)
    return {"cell": cell, **row}


def make_curriculum(cell: dict[str, Any]) -> Curriculum:
    """Return an arm's curriculum; every arm reads `steps` times `batch_size` examples."""
    arm, last = ARMS[cell["arm"]], max(1, round(cell["steps"] * cell["last_share"]))
    early = max(1, (cell["steps"] - last) // 2)
    lengths = dict(zip(TIERS, (early, max(1, cell["steps"] - last - early), last), strict=True))
    stages = []
    for name, tasks in TIERS.items():
        rows = [row for task in tasks for row in load_examples(f"classroom/{task}", split="train").to_list()]
        stages.append(Stage(name=name, data=records(rows), steps=lengths[name]))
    return Curriculum(
        stages, pacing=cell["pacing"], order=arm["order"], seed=cell["seed"], batch_size=cell["batch_size"],
        replay_ratio=cell["replay_ratio"], consistency_coef=cell["consistency_coef"] if arm["consistency"] else 0.0,
        short_term=ShortTermMemory(256) if arm["short"] else None,
        long_term=LongTermMemory(1024, theta=cell["theta"], seed=cell["seed"]) if arm["long"] else None,
    )  # fmt: skip


def figures(
    cell: dict[str, Any], curriculum: Curriculum, model: Any, after: dict[str, Scores], trace: list, score: Any
):
    """Return one cell's measures as JSON values."""
    last = list(after.values())[-1]
    # The matrix's notion of the teaching stage is the tier that the task's examples belong to, in the arm's own order.
    matrix = StageMatrix(after=after, taught={task: tier for tier, tasks in TIERS.items() for task in tasks})
    summary = {name: value for name, (value, _, _) in matrix.summary().items()}
    unseen = score(model, split="test_unseen", tasks=list(TIERS["specialist"]))
    texts = [output.text for output in last.outputs["short_question"]]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    work = operations(curriculum.costs, parameters=sum(p.numel() for p in model.parameters()), trainable=trainable)
    costs = curriculum.costs.values()
    return {
        "specialist": mean(last[task].value for task in TIERS["specialist"]),
        "general": mean(last[task].value for task in TIERS["general"]),
        "unseen": mean(value.value for value in unseen.values()),
        **summary,
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": self_bleu(texts),
        "tokens": sum(cost["tokens"] for cost in costs),
        "extra_tokens": sum(cost["extra_tokens"] for cost in costs),
        "tera_operations": sum(work.values()) / 1e12,
        "seconds": sum(cost["seconds"] for cost in costs),
        "trace": trace,
        "matrix": matrix.rows(),
    }


def save(cells: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Keep every cell's settings and single figures, trials on validation included, where the project keeps results."""
    kept = [{name: value for name, value in row.items() if isinstance(value, int | float)} for row in rows]
    table = pd.DataFrame([cell | figures for cell, figures in zip(cells, kept, strict=True)])
    table["made"] = f"{date.today()}, {os.cpu_count()} cores {platform.machine()}"
    table.round(5).to_csv(data_samples_root() / "results" / "curriculum_effect.csv", index=False)


def report(cells: list[dict[str, Any]], rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print the table, and each arm's paired difference to the first arm."""
    by_arm: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arguments.arms}
    for cell, row in zip(cells, rows, strict=True):
        by_arm[cell["arm"]].append(row)
    target = mean(row["trace"][-1][1] for row in by_arm["shuffled"]) if by_arm.get("shuffled") else None
    for found in by_arm.values():
        for row in found:
            reached = [seen for seen, value in row["trace"] if target is not None and value >= target]
            row["examples_to_shuffled"] = reached[0] if reached else None
    first = arguments.arms[0]
    lines = [f"| measure | {' | '.join(by_arm)} |", "|---" * (len(by_arm) + 1) + "|"]
    for name in MEASURES:
        line = [name]
        for arm, found in by_arm.items():
            pairs = [(row[name], base[name]) for row, base in zip(found, by_arm[first], strict=True)]
            values = [value for value, _ in pairs if value is not None]
            text = f"{mean(values):.3g}" if values else "never"
            text += f" ({len(values)} of {len(pairs)} seeds)" if len(values) < len(pairs) else ""
            gaps = [value - base for value, base in pairs if value is not None and base is not None]
            if arm != first and len(gaps) > 1:
                gap = over_seeds(gaps)
                text += f"; {float(gap.value):+.3g} [{float(gap.low):+.3g}, {float(gap.high):+.3g}]"
            line.append(text)
        lines.append(f"| {' | '.join(line)} |")
    chosen = {arm: {name: found[0]["cell"][name] for name in SPACE} for arm, found in by_arm.items()}
    table = "\n".join(lines)
    print(f"\nFor docs/benchmarks.md (n = {arguments.seeds} seeds; after the mean the paired difference to {first}):")
    print(f"\n{table}\n\nchosen of {arguments.trials} trials each on validation: {json.dumps(chosen)}")
    (arguments.out / "table.md").write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
