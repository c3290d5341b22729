"""Many skills, each an adapter of its own on one base, in one call that goes on where it ended."""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftConfig
from safetensors.torch import load_file

from workbench.data import load_examples
from workbench.errors import ConfigError, DataError
from workbench.fanout import run_cells
from workbench.models import load_model
from workbench.records import SKILLS, Example, records
from workbench.training.resume import check_same, read_json, write_json
from workbench.training.run import train
from workbench.training.settings import make_settings

CARD = "skill.json"
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_COLUMNS = {
    "skill": "{}", "steps": "{}", "loss": "{:.3f}", "rank from": "{}", "rank to": "{:.2f}", "parameters": "{:,}",
    "share": "{:.2%}", "seconds": "{:.0f}",
}  # fmt: skip
_WIDTHS = {"skill": 21}


class Skills(dict[str, Path]):
    """Skill names to their adapters' folders; shown, it is the table of their training.

    Args:
        rows: A row for each skill: its steps, last loss of the answers in nats per token, rank before and after (the
            mean over layers), parameters kept, their share of the model's, and seconds of the last unbroken training.
        folders: The folders, by skill.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], folders: Mapping[str, Path]) -> None:
        super().__init__(folders)
        self.rows = tuple(rows)

    def __repr__(self) -> str:
        return "\n".join([_line({}), *map(_line, self.rows)])

    def _repr_html_(self) -> str:
        """Return a table that needs no widget; every name is escaped."""
        cells = [_COLUMNS, *({name: _COLUMNS[name].format(row[name]) for name in _COLUMNS} for row in self.rows)]
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(v)}</td>' for v in row.values())}</tr>" for row in cells[1:])
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, kw_only=True)
class _Job:
    skill: str
    folder: Path
    identity: dict[str, Any] = field(repr=False)
    rows: list[Example] = field(repr=False)


def skill_adapter(steps: int) -> AdaLoraConfig:
    """Return AdaLoRA from rank 4 down to a mean of 2 over all linear layers, its pruning between 10 % and 60 %.

    Source: AdaLoRA (arXiv 2303.10512), section 3.3, the cubic budget.
    """
    return AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=16, tinit=steps // 10, tfinal=2 * steps // 5, deltaT=5, total_step=steps,
        target_modules="all-linear", orth_reg_weight=0.5,
    )  # fmt: skip


def train_skills(
    model: str | Path,
    examples: Mapping[str, Iterable[Any]] | None = None,
    *,
    output_dir: str | Path,
    skills: Sequence[str] | None = None,
    adapter: PeftConfig | None = None,
    steps: int = 300,
    batch_size: int = 16,
    lr: float = 1e-2,
    executor: str = "local",
    resources: Mapping[str, Any] | None = None,
    threads: int = 1,
    device: str | None = None,
    stop: threading.Event | None = None,
    progress: bool = True,
    **settings: Any,
) -> Skills:
    """Train one adapter for each skill, each on its own examples and from the same base.

    A finished skill is not trained again; a half one goes on from its last checkpoint. Executors give equal weights on
    equal machines, since each skill computes with `threads` threads wherever it runs.

    Args:
        model: The base, as in `load_model`.
        examples: Skill to its training examples; None takes the training rows of the classroom's skills.
        output_dir: Gets a folder for each finished skill: the PEFT adapter in two files, and its row of the table.
        skills: Which to train; None takes all that have examples, or the classroom's twelve.
        adapter: A PEFT configuration for all of them; None is `skill_adapter(steps)`.
        steps: Optimiser steps of each skill.
        batch_size: Examples of a step.
        lr: Peak learning rate.
        executor: `local`, one after another here, or `ray`, side by side; see `workbench.fanout.run_cells`.
        resources: What one skill needs on Ray; None is `threads` cores.
        threads: CPU threads of each training.
        device: As in `load_model`.
        stop: Set it from any thread: no further skill starts.
        progress: Print a line of the table as soon as a skill is finished.
        **settings: More of `TrainSettings`, such as `seed`.

    Returns:
        Skill to folder, a dict whose repr is the table.

    Raises:
        ConfigError: A skill's name is no plain folder name, a setting is wrong, or a folder holds another skill.
        DataError: A skill has no examples; nothing is trained then.
        CellError: A training failed; the finished skills stay.
        CellsStopped: `stop` was set.

    Source: SA-MDKIF (arXiv 2402.00474), stage 1.
    """
    known = {"steps": steps, "batch_size": batch_size, "lr": lr} | settings
    identity = make_settings(known).identity() | {"adapter": (adapter or skill_adapter(steps)).to_dict()}
    identity |= {"model": str(model)}
    rows = _rows(examples, SKILLS if skills is None and examples is None else skills)
    jobs = [_job(Path(output_dir).expanduser(), skill, rows[skill], identity) for skill in rows]
    missing = [job for job in jobs if not _finished(job)]
    show = print if progress else lambda _: None
    show(_line({}))
    for job in jobs:
        if job not in missing:
            show(_line(_card(job)))
    work = partial(
        _train_skill, adapter=adapter or skill_adapter(steps), settings=known, threads=threads, device=device
    )
    run_cells(
        work, missing, executor=executor, resources=resources or {"num_cpus": threads}, progress=False, stop=stop,
        on_result=lambda _, row: show(_line(row)),
    )  # fmt: skip
    return Skills([_card(job) for job in jobs], {job.skill: job.folder for job in jobs})


def _rows(examples: Mapping[str, Iterable[Any]] | None, skills: Sequence[str] | None) -> dict[str, list[Example]]:
    given = examples if examples is not None else {skill: load_examples(f"classroom/{skill}") for skill in skills or ()}
    rows = {skill: records(given.get(skill, ())) for skill in skills or given}
    if examples is None:
        rows = {skill: [row for row in found if row.split == "train"] for skill, found in rows.items()}
    empty = [skill for skill, found in rows.items() if not found]
    if empty or not rows:
        raise DataError(
            f"the skill {', '.join(map(repr, empty)) or '(none)'} has no training example; each skill needs at least "
            "one: look at its file and split, or leave it out of skills="
        )
    return rows


def _job(output_dir: Path, skill: str, rows: list[Example], identity: dict[str, Any]) -> _Job:
    if skill != Path(skill).name or skill.startswith("."):
        raise ConfigError(f"the skill {skill!r} names a folder; take a plain word, such as 'ner'")
    data = hashlib.sha256(json.dumps([row.to_dict() for row in rows]).encode()).hexdigest()[:16]
    text = json.dumps(identity | {"data": data}, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
    return _Job(skill=skill, folder=output_dir / skill, identity=json.loads(text), rows=rows)


def _card(job: _Job) -> dict[str, Any]:
    return read_json(job.folder / CARD)


def _finished(job: _Job) -> bool:
    card = read_json(job.folder / CARD)
    if card is not None:
        check_same(job.folder, card["identity"], job.identity)
    return card is not None


def _train_skill(job: _Job, *, adapter: PeftConfig, settings: dict[str, Any], threads: int, device: Any) -> Any:
    before, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(threads)
    try:
        base, tokenizer = load_model(job.identity["model"], device=device)
        size = sum(tensor.numel() for tensor in base.parameters())
        place = job.folder.with_name(f".{job.skill}.run")
        run = train(base, tokenizer, job.rows, adapter=adapter, output_dir=place, progress=False, **settings)
    finally:
        torch.set_num_threads(before)
    saved = load_file(place / _FILES[1])
    ranks = [len(tensor) for name, tensor in saved.items() if "lora_A" in name]
    kept = sum(tensor.numel() for tensor in saved.values())
    last = [row for row in run.history if "loss" in row][-1]
    row = {"skill": job.skill, "steps": run.step, "loss": last.get("answer_loss", last["loss"])}
    row |= {"rank from": getattr(adapter, "init_r", None) or getattr(adapter, "r", 0)}
    row |= {"rank to": sum(ranks) / max(1, len(ranks)), "parameters": kept, "share": kept / size}
    row |= {"seconds": round(time.perf_counter() - started, 1), "identity": job.identity}
    _publish(place, job.folder, row)
    return row


def _publish(run: Path, folder: Path, row: dict[str, Any]) -> None:
    """Make the skill's folder appear at once and whole; only then may the run go."""
    partial = run / "finished"
    partial.mkdir(exist_ok=True)
    config = read_json(run / _FILES[0]) | {"base_model_name_or_path": row["identity"]["model"]}
    # PEFT keeps them as a set, in an order that differs from process to process.
    config["target_modules"] = sorted(config["target_modules"])
    write_json(partial / _FILES[0], config)
    shutil.copyfile(run / _FILES[1], partial / _FILES[1])
    write_json(partial / CARD, row)
    partial.replace(folder)
    shutil.rmtree(run)


def _line(row: Mapping[str, Any]) -> str:
    cells = {name: form.format(row[name]) if row else name for name, form in _COLUMNS.items()}
    return "  ".join(f"{cell:<{_WIDTHS.get(name, 10)}}" for name, cell in cells.items())
