"""The few-shot protocol of a merge: parents fine-tuned alike on k examples, and what that makes them forget."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
from peft import LoraConfig, PeftConfig

from workbench.data import load_examples
from workbench.errors import ConfigError, DataError
from workbench.evaluation import CLASSROOM, METRICS, Task, evaluate, score
from workbench.evaluation.metrics import known_metric
from workbench.evaluation.suites import resolve
from workbench.fanout import run_cells
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.models import load_model, open_folder
from workbench.paths import adapter_folder
from workbench.records import Example, Rows, records
from workbench.routing.stats import Estimate, over_seeds
from workbench.search.store import RowStore
from workbench.training import train
from workbench.training.settings import make_settings

GENERATION = tuple(task for task, (group, _) in CLASSROOM.items() if group == "generation")
"""The classroom's five clinical generation tasks."""

METRIC_PARTS = ("composite", "rouge_l", "bleu", "meteor")

Parent = str | Path | MergeRecipe


def few_shot(
    parents: Mapping[str, Parent],
    tasks: Sequence[str] | Mapping[str, Rows] = GENERATION,
    *,
    ks: Sequence[int] = (0, 16, 64, 256), seeds: int | Sequence[int] = 5,
    keep: Sequence[str] | Mapping[str, Rows] = ("instruction",),
    metrics: Sequence[str] = METRIC_PARTS,
    split: str = "validation", limit: int | None = None, keep_limit: int | None = None, on_long: str = "error",
    steps: int | Mapping[int, int] = 32, lr: float | Mapping[tuple[str, int], float] = 3e-3,
    adapter: PeftConfig | None = None, device: str | None = None, dtype: str | None = None,
    store: str | Path | None = None, executor: str = "local", resources: Mapping[str, Any] | None = None,
    progress: bool = True, stop: Event | None = None,
    **settings: Any,
) -> pd.DataFrame:  # fmt: skip
    """Fine-tune each parent on k shots of each task, and score the task and what the parent could do before.

    A cell is one parent, task, k and seed: one fresh adapter, trained on k of the task's training rows and then scored.
    The seed is that of the draw, of the adapter's first numbers and of the order; with one seed and task all parents
    read the same shots in the same order, and a smaller draw is part of a larger one. Every finished cell goes into
    `store` at once; the same call computes only the cells that are missing there. A cell counts as the same only if the
    parent's weights, the examples, the metrics and all settings are the same.

    Args:
        parents: A name of your own to a model (as `load_model` takes it) or to a recipe, which is merged anew for each
            cell: export a large one once and give its folder.
        tasks: Names of the classroom's tasks; or task name to your own examples, whose rows of split `train` are the
            shots' source.
        ks: Numbers of shots, each at least 0; 0 is the parent as it is: the scores before, one row, seed 0.
        seeds: How many, or which.
        keep: What fine-tuning may make a model forget, scored in each cell: as `tasks`, each by its own metric.
        metrics: The first is the tasks' score, the others are noted beside it for the same answers.
        split: Which rows are scored. Choose settings on validation, and read test once for those chosen.
        limit: Most rows of each task that are scored.
        keep_limit: Most rows of each task of `keep`.
        steps: Optimiser steps, the same for all parents: one number, or one for each k above 0.
        lr: Peak learning rate: one, or one for each parent and k above 0.
        adapter: What is trained; None is a LoRA of rank 8, alpha 16, on all linear layers.
        device: As in `load_model`.
        dtype: As in `load_model`; a recipe's own stands where this is None.
        on_long: As in `evaluate`.
        store: A file for finished rows; None keeps them in memory alone.
        executor: `local` or `ray`, as in `run_cells`.
        resources: What a cell needs on Ray, e.g. `{"num_gpus": 1}`.
        progress: Show a bar over the cells.
        stop: Set it from any thread: no further cell starts.
        **settings: Of `train`: batch_size, gradient_accumulation_steps, bf16, gradient_checkpointing, max_length, ...

    Returns:
        One row for each cell: `parent`, `task`, `k`, `seed`, `steps`, `lr`, `tokens` read in training, `train_s`,
        `cpu_s` of the whole cell, and each metric and kept task, 0 to 1.

    Raises:
        ConfigError: An argument is out of range or unknown, a task is empty, or a learning rate or number of steps is
            missing.
        DataError: A task has fewer training rows than shots, or `store` is a file of something else.
        ModelError: A parent cannot be found.
        CellError: A cell failed; the rows before it are in the store.
        CellsStopped: `stop` was set.

    Source: arXiv 2604.01538 compares a merge after 64 shots with baselines after 256. Our reading: one LoRA for each
    task, nested draws, seeds, and the score on instructions before and after.
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    if not (parents and tasks and seeds and ks) or min(ks) < 0 or len({*ks}) < len(ks):
        raise ConfigError(
            f"parents={list(parents)}, tasks={list(tasks)}, ks={list(ks)}, seeds={list(seeds)}: give at least one of "
            "each; numbers of shots are at least 0, each once"
        )
    held = _rows(tasks)
    scored = [replace(task, metric=known_metric(metrics[0])) for task in _tasks(held, split, limit)]
    protocol = _Protocol(
        parents=dict(parents), tasks={task.name: task for task in scored}, keep=_tasks(_rows(keep), split, keep_limit),
        shots={name: [row for row in rows if row.split == "train"] for name, rows in held.items()},
        metrics=tuple(known_metric(metric) for metric in metrics), settings=settings, on_long=on_long,
        adapter=adapter or LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        opening={"device": device, "dtype": dtype},
    )  # fmt: skip
    for rows in protocol.shots.values():
        draw_shots(rows, max(ks), 0)
    cells = [
        _Cell(parent=parent, task=task.name, k=k, seed=seed if k else 0, **_pace(parent, k, steps, lr, settings))
        for seed in seeds for k in sorted(ks) for parent in parents for task in scored if k or seed == seeds[0]
    ]  # fmt: skip
    keys, found = protocol.keys(cells), RowStore(store)
    missing = [(key, cell) for key, cell in zip(keys, cells) if key not in found]
    run_cells(
        partial(_run, protocol), [cell for _, cell in missing],
        executor=executor, resources=resources, progress=progress, stop=stop,
        on_result=lambda place, row: found.add(missing[place][0], row, {"split": split, "limit": limit}),
    )  # fmt: skip
    return pd.DataFrame([found[key] for key in keys])


def shots_table(rows: pd.DataFrame, scores: Sequence[str] = ("composite", "instruction")) -> pd.DataFrame:
    """Return the mean over tasks of each score, with its 95 % t-interval over seeds.

    Args:
        rows: What `few_shot` returned, also after a way through a file.
        scores: Some of its columns.

    Returns:
        One row for each parent and k: `parent`, `k`, `n` (seeds), and for each score `x` the columns `x`, `x_low` and
        `x_high`; these two are NaN where there is one seed, as at k = 0, where nothing is drawn.

    Raises:
        ConfigError: A column is missing, or a seed lacks a task that another one has.
    """
    table = []
    for parent, k in dict.fromkeys(zip(rows["parent"], rows["k"])):
        row: dict[str, Any] = {"parent": parent, "k": int(k)}
        for name in scores:
            values = _by_seed(rows, (parent, k), name).mean(axis=1)
            found = over_seeds([*values]) if len(values) > 1 else None
            row |= {"n": len(values), name: float(values.mean())}
            row |= {f"{name}_{end}": float(getattr(found, end, "nan")) for end in ("low", "high")}
        table.append(row)
    return pd.DataFrame(table)


def shots_difference(
    rows: pd.DataFrame, first: tuple[str, int], second: tuple[str, int], name: str = "composite"
) -> Estimate:
    """Return one parent's mean over tasks less another's, paired over seeds, with its 95 % t-interval.

    Args:
        rows: What `few_shot` returned.
        first: Parent and k, e.g. `("merged", 64)`.
        second: Parent and k; at k = 0 its one value stands against every seed.
        name: The score.

    Raises:
        ConfigError: A column, parent or k is missing, seeds or tasks differ, or there are fewer than two seeds.
    """
    mine, theirs = (_by_seed(rows, place, name) for place in (first, second))
    if not second[1]:
        theirs = pd.DataFrame([theirs.iloc[0]] * len(mine), index=mine.index)
    if {*mine.index} != {*theirs.index} or {*mine.columns} != {*theirs.columns}:
        about = [f"seeds {[*found.index]} and tasks {[*found.columns]}" for found in (mine, theirs)]
        raise ConfigError(f"{first} has {about[0]}, {second} {about[1]}; pairs need the same")
    return over_seeds([*(mine - theirs).mean(axis=1)])


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One fine-tuning, or at k = 0 none."""

    parent: str
    task: str
    k: int
    seed: int
    steps: int
    lr: float


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    """What all cells share."""

    parents: dict[str, Parent] = field(repr=False)
    shots: dict[str, list[Example]] = field(repr=False)
    tasks: dict[str, Task] = field(repr=False)
    keep: tuple[Task, ...] = field(repr=False)
    metrics: tuple[str, ...]
    adapter: PeftConfig
    settings: dict[str, Any]
    opening: dict[str, Any]
    on_long: str

    def keys(self, cells: Sequence[_Cell]) -> list[str]:
        """Return what each cell's row is found by: a digest of everything that it depends on."""
        weights = {name: _fingerprint(parent) for name, parent in self.parents.items()}
        named = {*self.metrics, *(task.metric for task in self.keep)}
        versions = {name: METRICS[name].version for name in sorted(named)}
        common = [versions, self.metrics, self.opening, self.on_long, _told(self.keep)]
        trained = [self.adapter.to_dict(), self.settings]
        told = {name: [_told([task]), [row.to_dict() for row in self.shots[name]]] for name, task in self.tasks.items()}
        parts = {name: _digest([common, trained, value]) for name, value in told.items()}
        return [_digest([asdict(cell), weights[cell.parent], parts[cell.task]]) for cell in cells]

    def open(self, parent: str) -> tuple[Any, Any]:
        """Load a parent, or merge it."""
        chosen = self.parents[parent]
        if not isinstance(chosen, MergeRecipe):
            return load_model(chosen, **self.opening)
        live = LiveMerge(chosen, **self.opening)
        return live.model, live.tokenizer


def _run(protocol: _Protocol, cell: _Cell) -> dict[str, Any]:
    used, start = time.process_time(), time.perf_counter()
    row: dict[str, Any] = {"tokens": 0}
    model, tokenizer = protocol.open(cell.parent)
    if cell.k:
        shots = draw_shots(protocol.shots[cell.task], cell.k, cell.seed)
        plan = {"steps": cell.steps, "lr": cell.lr, "seed": cell.seed, "save_every": cell.steps, **protocol.settings}
        with tempfile.TemporaryDirectory() as folder:
            run = train(model, tokenizer, shots, adapter=protocol.adapter, output_dir=folder, progress=False, **plan)
        model, row = run.model, {"tokens": run.history[-1]["tokens"]}
    row["train_s"] = time.perf_counter() - start
    task = protocol.tasks[cell.task]
    scores = evaluate(model, tokenizer, [task, *protocol.keep], on_long=protocol.on_long, progress=False)
    asked = {example.id: example for example in task.rows()}
    answers = [(asked[output.id], output.text) for output in scores.outputs[cell.task]]
    for metric in protocol.metrics:
        row[metric] = sum(score(example, text, metric) for example, text in answers) / len(answers)
    row |= {kept.name: scores[kept.name].value for kept in protocol.keep}
    return asdict(cell) | row | {"cpu_s": time.process_time() - used}


def draw_shots(rows: Sequence[Example], k: int, seed: int) -> list[Example]:
    """Draw k examples; those of a smaller draw are the first of a larger one of the same seed.

    Raises:
        DataError: There are fewer rows.
    """
    if k > len(rows):
        name = rows[0].skill if rows else "a task"
        raise DataError(f"{k} shots are asked for and {name!r} has {len(rows)} training rows; ask for fewer shots")
    return random.Random(f"shots/{seed}").sample(rows, len(rows))[:k]


def _pace(parent: str, k: int, steps: Any, lr: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the steps and the learning rate of a cell, checked together with the other settings of `train`."""
    if not k:
        return {"steps": 0, "lr": 0.0}
    pace = {}
    for name, value, place in (("steps", steps, k), ("lr", lr, (parent, k))):
        if isinstance(value, Mapping) and place not in value:
            raise ConfigError(f"{name} has {list(value)} and nothing for {place!r}; name each, or give one number")
        pace[name] = value[place] if isinstance(value, Mapping) else value
    make_settings({**settings, **pace})
    return pace


def _rows(tasks: Sequence[str] | Mapping[str, Rows]) -> dict[str, list[Example]]:
    named: Any = tasks if isinstance(tasks, Mapping) else {name: load_examples(f"classroom/{name}") for name in tasks}
    return {name: records(rows) for name, rows in named.items()}


def _tasks(held: Mapping[str, list[Example]], split: str, limit: int | None) -> tuple[Task, ...]:
    chosen = {name: [row for row in rows if row.split == split] for name, rows in held.items()}
    return resolve(chosen, split=split, limit=limit) if chosen else ()


def _by_seed(rows: pd.DataFrame, place: tuple[str, int], name: str) -> pd.DataFrame:
    """Return a score with a row for each seed and a column for each task."""
    if name not in rows.columns:
        raise ConfigError(f"the table has no column {name!r}; it has {', '.join(rows.columns)}")
    chosen = rows[(rows["parent"] == place[0]) & (rows["k"] == place[1])]
    found = chosen.pivot(index="seed", columns="task", values=name)
    if found.empty or found.isna().any(axis=None):
        lacks = "no row" if found.empty else f"a task that a seed lacks ({', '.join(found.columns)})"
        raise ConfigError(f"{place[0]!r} at k={place[1]} has {lacks}; a mean needs the same tasks for each seed")
    return found


def _fingerprint(parent: Any) -> list[str]:
    """Digest the files of a parent's weights: they may be made anew under their old name."""
    merged = isinstance(parent, MergeRecipe)
    found = [parent.to_json()] if merged else []
    for name in filter(None, [*parent.parents, parent.base] if merged else [parent]):
        folder = adapter_folder(name)
        if not (folder / "adapter_config.json").is_file():
            folder = open_folder(name)[0]
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                found.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return found


def _told(tasks: Sequence[Task]) -> list[Any]:
    return [[task.name, task.metric, task.max_new_tokens, [row.to_dict() for row in task.rows()]] for task in tasks]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=sorted).encode()).hexdigest()[:32]
