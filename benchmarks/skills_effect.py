"""What twelve skills are worth on tasks that nobody trained for: ten arms, nine tasks, draws of shots paired by seed.

    python benchmarks/skills_effect.py --search               # each arm's setting, on validation with seed 100
    python benchmarks/skills_effect.py --split test --save    # the table, read once for the chosen settings
    python benchmarks/skills_effect.py --seeds 1 --tasks referral ner --shots 5    # a quick look, on validation

Five tasks are of trained skills, asked of held-out conditions; four are of no trained skill. All arms start from the
base of the skills and, for one seed, see the same shots, drawn from the training rows; `all` shots are all of them.
Every finished cell is kept in `--store` at once, so that the same command goes on where it was interrupted. With
`--executor ray` cells run side by side.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import torch
from lora_moe_effect import data_digest, made, told
from peft import AdaLoraConfig, PeftModel

import workbench as wb
from workbench.adapters import skill_weights
from workbench.adapters.skill_mix import SkillMix
from workbench.adapters.skill_router.model import open_bank
from workbench.curriculum.losses import answer_losses
from workbench.errors import WorkbenchWarning
from workbench.evaluation.suites import Task, resolve
from workbench.fanout import run_cells
from workbench.generation import context_length, encode_prompt
from workbench.models import chat_prompt, data_samples_root
from workbench.paths import adapter_folder
from workbench.records import SKILLS, Example, records
from workbench.search.few_shot import draw_shots
from workbench.search.store import RowStore
from workbench.training.compose import compose_skills
from workbench.training.encode import collate, encode
from workbench.training.skills import skill_adapter

UNSEEN_DATA = ("relation_extraction", "entity_relation", "entity_synonymy", "ner", "reading_comprehension")
UNSEEN_TASKS = ("abbreviation", "referral", "safety_check", "exam_backward")
TASKS = UNSEEN_DATA + UNSEEN_TASKS
ALL = 0
SHOWN = {ALL: "all", -1: "-"}
FEW, EVERY = (5, 64), (5, 64, ALL)
ARMS: dict[str, tuple[int, ...]] = {
    "base": (), "uniform weights": (), "pooled AdaLoRA": (),
    "in context": FEW, "best single skill": EVERY, "direct tuning": EVERY,
    "LoraHub, faithful": FEW, "LoraHub, improved": FEW, "router, static": EVERY, "router, gated": EVERY,
}  # fmt: skip
"""The arms and the shots that each takes: none where a task's examples play no part."""

KNOBS: dict[str, tuple[str, tuple[float, ...]]] = {
    "direct tuning": ("lr", (1e-3, 3e-3, 1e-2, 3e-2)),
    "LoraHub, improved": ("l1", (0.0, 0.01, 0.05, 0.2)),
    "router, static": ("lr", (0.01, 0.03, 0.1, 0.3)),
    "router, gated": ("lr", (0.001, 0.003, 0.01, 0.03)),
}
"""The one knob that an arm is searched over, as many values for each; the others have none, or are fixed by a paper."""

DEFAULT = {"direct tuning": 1e-2, "LoraHub, improved": 0.05, "router, static": 0.03, "router, gated": 0.01}
STEPS = {5: 30, 64: 60, ALL: 100}
SEARCH_SEED = 100
MARK = "\0"
WATCHED = 64
"""Most examples by which the best single skill is chosen."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm on one draw of one task's shots; everything that its row depends on."""

    arm: str
    task: str
    shots: int
    seed: int
    knob: float
    steps: int
    model: str
    skills: tuple[tuple[str, str], ...]
    digest: str
    split: str
    limit: int
    pooled: tuple[int, int]

    def key(self) -> str:
        """Return what the row is found by in the store."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="choose each arm's setting and write --settings")
    parser.add_argument("--save", action="store_true", help="write the rows to --out")
    parser.add_argument("--split", default="validation", help="what is scored: validation, or test")
    parser.add_argument("--seeds", type=int, default=5, help="draws of shots")
    parser.add_argument("--limit", type=int, default=40, help="most rows of each task that are scored")
    parser.add_argument("--shots", type=int, nargs="+", default=list(EVERY), help="0 is all training rows")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--pooled", type=int, nargs=2, default=(1200, 48), help="steps and batch of the pooled arm")
    parser.add_argument("--model", default="classroom/base")
    parser.add_argument("--skills", type=Path, help="folder with a folder for each skill (default: the shipped ones)")
    results = data_samples_root() / "results"
    parser.add_argument("--settings", type=Path, default=results / "skills_settings.json")
    parser.add_argument("--out", type=Path, default=results / "skills_effect.csv")
    parser.add_argument("--store", type=Path, default=Path("out/skills_effect.sqlite"))
    parser.add_argument("--executor", default="local", help="local, or ray: one cell for each --threads cores")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.search:
        search(options)
        return
    found = json.loads(options.settings.read_text())["chosen"] if options.settings.is_file() else {}
    cells = []
    for task in options.tasks:
        for arm in options.arms:
            shots = [n for n in options.shots if n in ARMS[arm]] if ARMS[arm] else [ALL]
            for n in shots:
                knob = found.get(f"{arm}, {n}", DEFAULT.get(arm, 0.0))
                seeds = range(options.seeds if ARMS[arm] and (n or arm in KNOBS) else 1)
                cells += [cell(arm, task, n, seed, knob, options) for seed in seeds]
    rows = pd.DataFrame(run_all(cells, options))
    print(f"{options.split}, {options.limit} rows a task, {options.seeds} draws of shots; settings", end=" ")
    print(f"{'of the search' if found else 'not searched'}; points, differences with 95 % t-intervals over draws.\n")
    print(summary(rows).to_markdown(index=False, floatfmt=".1f"), "\n")
    print(by_task(rows).to_markdown(index=False, floatfmt=".1f"))
    if options.save:
        rows["made"] = made(sys.argv[1:] if arguments is None else arguments).replace("lora_moe", "skills")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows.round(5).to_csv(options.out, index=False)


def search(options: argparse.Namespace) -> None:
    """Try each arm's knob on the unseen tasks' validation rows, by number of shots; keep the best and all trials."""
    tries = argparse.Namespace(**{**vars(options), "split": "validation"})
    tasks = [task for task in options.tasks if task in UNSEEN_TASKS]
    trials = [
        (arm, n, value) for arm in KNOBS if arm in options.arms
        for n in ARMS[arm] if n in options.shots for value in KNOBS[arm][1]
    ]  # fmt: skip
    cells = [cell(arm, task, n, SEARCH_SEED, value, tries) for arm, n, value in trials for task in tasks]
    scores = iter([row["score"] for row in run_all(cells, tries)])
    tried = [
        {"arm": arm, "shots": n, "knob": KNOBS[arm][0], "value": value, "score": mean(next(scores) for _ in tasks)}
        for arm, n, value in trials
    ]
    best: dict[str, dict[str, Any]] = {}
    for row in tried:
        place = f"{row['arm']}, {row['shots']}"
        best[place] = max(best.get(place, row), row, key=lambda r: r["score"])
    kept = {"chosen": {place: row["value"] for place, row in best.items()}, "trials": tried, "seed": SEARCH_SEED}
    options.settings.parent.mkdir(parents=True, exist_ok=True)
    options.settings.write_text(json.dumps(kept | {"split": "validation", "tasks": tasks}, indent=1) + "\n")
    print(pd.DataFrame(tried).to_markdown(index=False, floatfmt=".4f"))


def cell(arm: str, task: str, shots: int, seed: int, knob: float, options: argparse.Namespace) -> Cell:
    named = tuple(
        (skill, str(options.skills / skill) if options.skills else f"classroom/skills/{skill}") for skill in SKILLS
    )
    parts = [adapter_folder(folder) / "adapter_model.safetensors" for _, folder in named]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:8]
    return Cell(
        arm=arm, task=task, shots=shots, seed=seed, knob=knob, steps=STEPS[shots] if trained(arm) else 0,
        model=options.model, skills=named,
        digest=digest + data_digest(options.model, (task,)), split=split_of(task, options.split),
        limit=options.limit, pooled=tuple(options.pooled) if arm.startswith("pooled") else (0, 0),
    )  # fmt: skip


def trained(arm: str) -> bool:
    return arm.startswith(("router", "direct"))


def split_of(task: str, split: str) -> str:
    """Ask a trained skill's task of held-out conditions, but not while settings are chosen."""
    return "test_unseen" if split == "test" and task in UNSEEN_DATA else split


def run_all(cells: Sequence[Cell], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each cell, from the store where it is there."""
    store = RowStore(options.store)
    missing = [cell for cell in cells if cell.key() not in store]
    if any(cell.arm.startswith("pooled") for cell in missing):
        train_pooled(options)
    work = partial(run_cell, pooled=pooled_folder(options), threads=options.threads, device=options.device)
    run_cells(
        work, missing, executor=options.executor, resources={"num_cpus": options.threads},
        on_result=lambda place, row: store.add(missing[place].key(), row, asdict(missing[place])),
    )  # fmt: skip
    return [store[cell.key()] for cell in cells]


def pooled_folder(options: argparse.Namespace) -> Path:
    return options.store.absolute().with_suffix("") / f"pooled-{options.pooled[0]}-{options.pooled[1]}"


def train_pooled(options: argparse.Namespace) -> None:
    """Train one AdaLoRA on all skills' rows: by default as many tokens and parameters as the twelve skills together."""
    torch.set_num_threads(os.cpu_count() or 1)  # no cell runs beside it
    rows = [row for skill in SKILLS for row in wb.load_examples(f"classroom/{skill}") if row["split"] == "train"]
    steps, batch = options.pooled
    model, tokenizer = wb.load_model(options.model, device=options.device)
    common = {"steps": steps, "batch_size": batch, "lr": 3e-3, "progress": False}
    wb.train(model, tokenizer, rows, adapter=scaled(steps, len(SKILLS)), output_dir=pooled_folder(options), **common)


def scaled(steps: int, factor: int = 1) -> AdaLoraConfig:
    """Return the adapter of a skill, of so many times its rank."""
    config = skill_adapter(steps)
    return replace(config, **{name: factor * getattr(config, name) for name in ("init_r", "target_r", "lora_alpha")})


def run_cell(cell: Cell, *, pooled: Path, threads: int, device: str) -> dict[str, Any]:
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", category=WorkbenchWarning)
    model, tokenizer = wb.load_model(cell.model, device=device)
    rows = [row for row in records(wb.load_examples(f"classroom/{cell.task}")) if row.split == "train"]
    shots = draw_shots(rows, cell.shots or len(rows), cell.seed)
    task = resolve("classroom", split=cell.split, tasks=[cell.task], limit=cell.limit)[0]
    start = time.perf_counter()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        if cell.arm == "in context":
            task, used = in_context(model, tokenizer, task, shots)
        else:
            model, used = adapted(cell, model, tokenizer, shots, stack, pooled, folder)
        seconds = time.perf_counter() - start
        score = wb.evaluate(model, tokenizer, [task], progress=False)[cell.task].value
    lengths = [len(encode_prompt(tokenizer, row.prompt())) for row in task.rows()]
    about = {"arm": cell.arm, "task": cell.task, "track": "unseen data" if cell.task in UNSEEN_DATA else "unseen task"}
    about |= {"shots": cell.shots if ARMS[cell.arm] else -1, "seed": cell.seed, "split": cell.split, "n": len(lengths)}
    spent = {"read_tokens": sum(lengths) / len(lengths), "adapt_s": seconds, "cell_s": time.perf_counter() - start}
    weights = {name: round(value, 3) for name, value in used.items()}
    return about | {"knob": cell.knob, "score": score} | spent | {"used": json.dumps(weights)}


def adapted(
    cell: Cell, model: Any, tokenizer: Any, shots: list[Example], stack: ExitStack, pooled: Path, folder: str
) -> tuple[Any, Any]:
    """Return the model of an arm, and what it took from the shots."""
    if cell.arm == "base":
        return model, {}
    if cell.arm == "pooled AdaLoRA":
        return PeftModel.from_pretrained(model, pooled).eval(), {}
    skills = dict(cell.skills)
    if trained(cell.arm):
        adapter = skill_adapter(cell.steps)
        if cell.arm.startswith("router"):
            adapter = wb.SkillRouterConfig(skills=skills, gate="input" if "gated" in cell.arm else "static")
        settings = {"steps": cell.steps, "lr": cell.knob, "seed": cell.seed, "batch_size": min(16, len(shots))}
        once = {"save_every": cell.steps, "progress": False, "output_dir": folder}
        run = wb.train(model, tokenizer, shots, adapter=adapter, **settings, **once)
        return run.model, skill_weights(run.model) if "static" in cell.arm else {}
    hub = {"seed": cell.seed, "l1": cell.knob}
    if cell.arm == "LoraHub, faithful":
        hub = {"seed": cell.seed, "mix": "factor", "optimizer": "ngopt", "faithful_scaling": True}
    weights = {}
    if cell.arm.startswith("LoraHub"):
        weights = compose_skills(model, tokenizer, shots, skills, **hub).weights
    put = stack.enter_context(SkillMix(open_bank(skills, model, True), hub.get("mix", "update")).on(model))
    if cell.arm == "uniform weights":
        weights = dict.fromkeys(skills, 1 / len(skills))
    elif cell.arm == "best single skill":
        losses = {}
        for skill in skills:
            put(dict.fromkeys(skills, 0.0) | {skill: 1.0})
            losses[skill] = loss_of(model, tokenizer, shots[:WATCHED])
        weights = dict.fromkeys(skills, 0.0) | {min(losses, key=losses.__getitem__): 1.0}
    put(weights)
    return model, weights


@torch.no_grad()
def loss_of(model: Any, tokenizer: Any, rows: Iterable[Example]) -> float:
    data = list(encode(model, tokenizer, rows).data)
    batch = {name: tensor.to(model.device) for name, tensor in collate(data, pad=0).items()}
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return float(answer_losses(logits, batch["labels"]).mean())


def in_context(model: Any, tokenizer: Any, task: Task, shots: list[Example]) -> tuple[Task, dict[str, int]]:
    """Put as many shots before each question as the context holds."""
    longest = max(len(tokenizer(row.answer)["input_ids"]) for row in task.rows()) + 8
    room = (context_length(model) or math.inf) - longest
    widest = max(task.rows(), key=lambda row: len(encode_prompt(tokenizer, row.prompt())))
    for count in range(len(shots), -1, -1):
        told = turns(tokenizer, shots[:count])
        if len(encode_prompt(tokenizer, after(told, widest).prompt())) <= room:
            break
    return replace(task, examples=[after(told, row) for row in task.rows()]), {"shots": count}


def turns(tokenizer: Any, shots: Sequence[Example]) -> str:
    """Write shots as earlier turns of the chat, up to where the next question begins."""
    said = [(("user", row.prompt()), ("assistant", row.answer)) for row in shots]
    messages = [{"role": role, "content": text} for pair in said for role, text in pair]
    whole = chat_prompt(tokenizer, [*messages, {"role": "user", "content": MARK}])
    return whole.partition(MARK)[0].removeprefix(chat_prompt(tokenizer, MARK).partition(MARK)[0])


def after(told: str, row: Example) -> Example:
    return replace(row, context=told + row.context) if row.context else replace(row, query=told + row.query)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each track, number of shots and arm; differences are of one draw's mean over the tasks."""
    table = []
    for track, part in rows.groupby("track", sort=False):
        means = {
            place: arm.groupby("seed")["score"].mean() * 100
            for place, arm in part.groupby(["shots", "arm"], sort=False)
        }
        base = means.get((-1, "base"), pd.Series({0: math.nan})).iloc[0]
        for (shots, arm), mine in sorted(means.items(), key=lambda item: item[0][0] or math.inf):
            those = part[(part["arm"] == arm) & (part["shots"] == shots)]
            row = {"track": track, "shots": SHOWN.get(shots, shots), "arm": arm, "points": mine.mean()}
            row["over base"] = told(mine - base) if len(mine) > 1 else f"{mine.iloc[0] - base:+.1f}"
            single = means.get((shots, "best single skill"), pd.Series(dtype=float))
            paired = (mine - (single if len(single) > 1 else single.sum())).dropna() if len(single) else single
            row["over best single"] = told(paired)
            row |= {"tokens read": those["read_tokens"].mean(), "adapt s": those["adapt_s"].mean(), "draws": len(mine)}
            table.append(row)
    return pd.DataFrame(table)


def by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean points of each task, a row for each arm and number of shots."""
    named = rows.assign(shots=rows["shots"].map(lambda n: SHOWN.get(n, str(n))))
    table = named.pivot_table(index=["shots", "arm"], columns="task", values="score", sort=False) * 100
    return table[[task for task in TASKS if task in table]].reset_index()


if __name__ == "__main__":
    main()
