"""Does a mixture of LoRA experts learn more than one LoRA? Six arms, paired over seeds, on the skills and the exams.

    python benchmarks/lora_moe_effect.py --search               # each arm's settings, on validation with seed 100
    python benchmarks/lora_moe_effect.py --split test --save    # the table, read once for the chosen settings
    python benchmarks/lora_moe_effect.py --seeds 1 --steps 20   # a quick look, on validation

All arms start from the same model and read the same batches in the same order. Every finished cell is kept in `--store`
at once, so that the same command goes on where it was interrupted. With `--executor ray` cells run side by side.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, PeftConfig, get_peft_model

import workbench as wb
from workbench.fanout import run_cells
from workbench.models import data_samples_root
from workbench.records import SKILLS, Scores
from workbench.routing.stats import over_seeds
from workbench.search.store import RowStore

TASKS = (*SKILLS, "exam_forward", "exam_backward")
REFERENCE = "LoRA, equal parameters"
RANK, EXPERTS, CHOSEN = 4, 4, 2
_MIXTURE = {"r": RANK, "num_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
ARMS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "LoRA, equal active rank": {"r": RANK * CHOSEN},
    "LoRA-MoE, no contrast": _MIXTURE | {"contrastive_loss_coef": 0.0},
    "LoRA-MoE, in-batch contrast": _MIXTURE | {"contrastive": "in_batch"},
    "LoRA-MoE, queue": _MIXTURE | {"contrastive": "queue"},
    "LoRA-MoE, queue, no balance": _MIXTURE | {"contrastive": "queue", "router_aux_loss_coef": 0.0},
}
"""What tells the arms apart; the rank of the first one follows from the mixture's parameters."""

RATES = (3e-3, 1e-2)
"""The learning rates that are tried; 1e-3 lost to both in the four arms that it was tried in."""
KNOBS: dict[str, tuple[str, tuple[float, ...]]] = {
    **dict.fromkeys(ARMS, ("contrastive_loss_coef", (0.003, 0.01, 0.03))),
    **dict.fromkeys((REFERENCE, "LoRA, equal active rank"), ("scale", (1.0, 2.0, 4.0))),
    "LoRA-MoE, no contrast": ("router_aux_loss_coef", (0.001, 0.01, 0.1)),
}
"""The one knob that an arm is searched over besides the learning rate, as many values for each."""

DEFAULT = {"lr": 3e-3, "scale": 2.0}
SEARCH_SEED = 100
GAIN = 0.9
"""How much of the reference's own gain on validation counts as 'the same score' when steps are compared."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of one arm; everything that its row depends on."""

    arm: str
    seed: int
    settings: tuple[tuple[str, float], ...]
    model: str
    digest: str
    tasks: tuple[str, ...]
    split: str
    limit: int | None
    steps: int
    batch_size: int
    every: int | None
    watched: int

    def key(self) -> str:
        """Return what the row is found by in the store."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="choose each arm's settings and write --settings")
    parser.add_argument("--save", action="store_true", help="write the rows to --out")
    parser.add_argument("--split", default="validation", help="what is scored; the search always takes validation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--every", type=int, default=20, help="steps between two looks at validation")
    parser.add_argument("--watched", type=int, default=15, help="validation rows of each task in such a look")
    parser.add_argument("--limit", type=int, help="most rows of each task that is scored")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--model", default="classroom/base")
    results = data_samples_root() / "results"
    parser.add_argument("--settings", type=Path, default=results / "lora_moe_settings.json")
    parser.add_argument("--out", type=Path, default=results / "lora_moe_effect.csv")
    parser.add_argument("--store", type=Path, default=Path("out/lora_moe_effect.sqlite"))
    parser.add_argument("--executor", default="local", help="local, or ray: one cell for each --threads cores")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.search:
        search(options)
        return
    chosen = json.loads(options.settings.read_text())["chosen"] if options.settings.is_file() else {}
    cells = [
        cell(arm, seed, chosen.get(arm, DEFAULT), options) for seed in range(options.seeds) for arm in options.arms
    ]
    rows = pd.DataFrame(run_all(cells, options))
    print(f"{options.split}, {options.seeds} seeds, {options.steps} steps of {options.batch_size} examples from")
    print(f"{options.model}; settings {'of the search' if chosen else 'not searched'}; differences in points.\n")
    print(summary(rows).to_markdown(index=False, floatfmt=".1f"))
    if options.save:
        rows["made"] = made(sys.argv[1:] if arguments is None else arguments)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows.round(5).to_csv(options.out, index=False)


def search(options: argparse.Namespace) -> None:
    """Give every arm the same number of trials; keep the best of each, and all trials, in one file."""
    trials: list[dict[str, Any]] = [
        {"arm": arm, "lr": lr, KNOBS[arm][0]: value} for arm in options.arms for lr in RATES for value in KNOBS[arm][1]
    ]
    tries = {**vars(options), "split": "validation", "every": None}
    cells = []
    for trial in trials:
        arm = str(trial.pop("arm"))
        cells.append(cell(arm, SEARCH_SEED, DEFAULT | trial, argparse.Namespace(**tries)))
    rows = run_all(cells, options)
    found = [dict(c.settings) | {"arm": c.arm, "average": row["average"]} for c, row in zip(cells, rows)]
    best = {arm: max((t for t in found if t["arm"] == arm), key=lambda t: t["average"]) for arm in options.arms}
    chosen = {arm: {k: v for k, v in t.items() if k not in ("arm", "average")} for arm, t in best.items()}
    told = {"chosen": chosen, "trials": found, "seed": SEARCH_SEED, "split": "validation", "steps": options.steps}
    options.settings.parent.mkdir(parents=True, exist_ok=True)
    options.settings.write_text(json.dumps(told, indent=1) + "\n")
    print(pd.DataFrame(found).sort_values("average", ascending=False).to_markdown(index=False, floatfmt=".4f"))


def cell(arm: str, seed: int, settings: Mapping[str, float], options: argparse.Namespace) -> Cell:
    names = ("model", "split", "limit", "steps", "batch_size", "every", "watched")
    held = {name: getattr(options, name) for name in names}
    digest = data_digest(options.model, tuple(options.tasks))
    return Cell(
        arm=arm, seed=seed, settings=tuple(sorted(settings.items())), tasks=tuple(options.tasks), digest=digest, **held
    )


def data_digest(model: str, tasks: tuple[str, ...]) -> str:
    """Digest the rows and the weights: both may be made anew under their old names."""
    root = data_samples_root()
    folder = root / "models" / model.removeprefix("classroom/") if model.startswith("classroom/") else Path(model)
    files = [*(root / "examples" / f"{task}.jsonl" for task in tasks), *sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()[:16]


def run_all(cells: Sequence[Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each cell, from the store where it is there."""
    store = RowStore(options.store)
    missing = [cell for cell in cells if cell.key() not in store]
    work = partial(run_cell, threads=options.threads, device=options.device)
    run_cells(
        work,
        missing,
        executor=options.executor,
        resources={"num_cpus": options.threads},
        on_result=lambda place, row: store.add(missing[place].key(), row, asdict(missing[place])),
    )
    return [store[cell.key()] for cell in cells]


def run_cell(cell: Cell, *, threads: int, device: str) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model, tokenizer = wb.load_model(cell.model, device=device)
    ask: dict[str, Any] = {"suite": "classroom", "tasks": cell.tasks, "progress": False}
    curve, spent = {}, 0.0

    def watch(model: Any) -> dict[str, float]:
        nonlocal spent
        start = time.perf_counter()
        scores = wb.evaluate(model, tokenizer, split="validation", limit=cell.watched, **ask)
        spent += time.perf_counter() - start
        return {"average": average(scores)}

    if cell.every:
        curve["step_0"], spent = watch(model)["average"], 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = wb.train(
            model,
            tokenizer,
            training_rows(cell.tasks),
            adapter=adapter(cell, model),
            output_dir=folder,
            evaluate=watch if cell.every else None,
            eval_every=cell.every,
            save_every=cell.steps,
            steps=cell.steps,
            batch_size=cell.batch_size,
            lr=dict(cell.settings)["lr"],
            seed=cell.seed,
            progress=False,
        )
        seconds = time.perf_counter() - start - spent
    curve |= {f"step_{row['step']}": row["eval_average"] for row in run.history if "eval_average" in row}
    scores = wb.evaluate(run.model, tokenizer, split=cell.split, limit=cell.limit, **ask)
    groups = {"skills": mean_of(scores, "clinical"), "exam": mean_of(scores, "exam")}
    size = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    figures = {"parameters": size, "tokens": run.history[-1]["tokens"], "train_s": seconds}
    told = {"arm": cell.arm, "seed": cell.seed, "split": cell.split, "steps": cell.steps, "average": average(scores)}
    settings = {"settings": json.dumps(dict(cell.settings))}
    return told | groups | figures | {task: score.value for task, score in scores.items()} | curve | settings


def training_rows(tasks: Sequence[str]) -> list[dict[str, Any]]:
    rows = [row for task in tasks for row in wb.load_examples(f"classroom/{task}").to_list()]
    return [row for row in rows if row["split"] == "train"]


def adapter(cell: Cell, model: Any) -> PeftConfig:
    """Return the arm's configuration; alpha is `scale` times the rank, the same rule for all."""
    settings: dict[str, Any] = dict(cell.settings)
    settings.pop("lr")
    values: dict[str, Any] = ARMS[cell.arm] | {"target_modules": "all-linear"}
    values |= {} if "r" in values else {"r": equal_rank(model)}
    values["lora_alpha"] = settings.pop("scale") * values["r"]
    return (wb.LoraMoeConfig if "num_experts" in values else LoraConfig)(**values, **settings)


def equal_rank(model: Any) -> int:
    """Return the rank whose LoRA has the number of parameters of the mixture, routers included, to the nearest rank."""
    whole = wb.LoraMoeConfig(**_MIXTURE, target_modules="all-linear")
    return round(size(model, whole) / size(model, LoraConfig(r=1, target_modules="all-linear")))


def size(model: Any, config: PeftConfig) -> int:
    wrapped = get_peft_model(type(model)(model.config), config)
    return sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


def average(scores: Scores) -> float:
    """The macro average of all tasks: skills and exams count one each."""
    return sum(score.value for score in scores.values()) / len(scores)


def mean_of(scores: Scores, group: str) -> float:
    return scores.mean(group).value if group in scores.groups() else math.nan


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each arm: means over seeds, and paired differences to the reference with 95 % t-intervals.

    `steps` is where the arm's curve on validation first reaches the score that is `GAIN` of the way from the untrained
    model's to the reference's last one, of the same seed; `reached` says in how many seeds it does.
    """
    pairs = rows.set_index(["arm", "seed"])
    table = []
    for arm in dict.fromkeys(rows["arm"]):
        mine = pairs.loc[arm]
        row: dict[str, Any] = {"arm": arm, "n": len(mine), "parameters": int(mine["parameters"].iloc[0])}
        row |= {"tokens": int(mine["tokens"].mean()), "train s": mine["train_s"].mean()}
        row |= {name: 100 * mine[name].mean() for name in ("average", "skills", "exam")}
        if REFERENCE in pairs.index:
            reference = pairs.loc[REFERENCE]
            row["difference (95 %)"] = told(100 * (mine["average"] - reference["average"]).dropna())
            steps, theirs = steps_to(mine, reference), steps_to(reference, reference)
            row |= {"steps": steps.mean(), "reached": f"{steps.notna().sum()} of {len(mine)}"}
            row["steps less (95 %)"] = told((theirs - steps).dropna())
        table.append(row)
    return pd.DataFrame(table)


def steps_to(mine: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    """Return, by seed, the step (interpolated) at which an arm reaches the reference's target; NaN where never."""
    steps = sorted((name for name in mine.columns if name.startswith("step_")), key=lambda name: int(name[5:]))
    found = {}
    for seed in mine.index.intersection(reference.index) if steps else ():
        first, last = reference.loc[seed, steps[0]], reference.loc[seed, steps[-1]]
        points = [(int(name[5:]), mine.loc[seed, name]) for name in steps]
        found[seed] = crossing(points, first + GAIN * (last - first))
    return pd.Series(found, dtype=float)


def crossing(points: Sequence[tuple[int, float]], target: float) -> float:
    """Return where a line through the points first reaches the target, NaN where it does not."""
    if points[0][1] >= target:
        return float(points[0][0])
    for (before, low), (after, high) in pairwise(points):
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return math.nan


def told(differences: pd.Series) -> str:
    if len(differences) < 2:
        return "" if differences.empty else f"{differences.iloc[0]:+.1f} (one seed)"
    estimate = over_seeds(differences.tolist())
    return f"{estimate.value:+.1f} ({estimate.low:+.1f} to {estimate.high:+.1f})"


def made(arguments: Sequence[str]) -> str:
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    return f"{datetime.date.today()}, {machine}: python benchmarks/lora_moe_effect.py {' '.join(arguments)}"


if __name__ == "__main__":
    main()
