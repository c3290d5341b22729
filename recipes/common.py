"""What the recipes share: arguments, files to examples, opening and scoring a model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState

import workbench as wb
from workbench.evaluation import BENCHMARKS, CLASSROOM, GENERATION, Task, read_benchmark
from workbench.ops.processes import sharded
from workbench.records import Example, records

FORMATS: dict[str, dict[str, Any]] = {
    name: GENERATION[task]
    for name, task in {"mts_dialog": "note_section", "aci_bench": "full_note", "meqsum": "short_question"}.items()
}
"""Published files that are no benchmark of `workbench.evaluation`, and how their rows become examples."""

SPLITS = dict.fromkeys(["general", "medical", "specialist", "train", "files", "task", "few_shot"], "train")
SPLITS |= {"validation": "validation"} | dict.fromkeys(["test", "few_shot_test", "keep"], "test")
"""The arguments that take `NAME=PATH`, and which rows each recipe wants of them."""


def arguments(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with what every recipe takes; `defaults` are the recipe's own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, help="a new folder, or that of the same run, which then goes on")
    add("--test", nargs="+", default=[], metavar="NAME=PATH", help="scored at the end")
    add("--limit", type=int, default=None, help="most rows of each file")
    add("--length", type=int, default=1024, help="most tokens of a row; longer ones are left out and named")
    add("--batch-size", type=int, default=4)
    add("--accumulate", type=int, default=4, help="batches of one optimiser step")
    add("--steps", type=int, default=500, help="optimiser steps of each training")
    add("--lr", type=float, default=2e-4)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--attention", choices=["sdpa", "eager", "flash_attention_2"], default=None)
    add("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw")
    add("--flops", type=float, default=None, help="matrix operations a second of the chip; measured where not given")
    add("--utilisation", type=float, default=0.35, help="assumed share of that rate which training reaches")
    add("--yes", action="store_true", help="go on where memory or disk seem too small")
    add("--dry-run", action="store_true", help="the estimate, then two steps of a random tiny model")
    parser.set_defaults(**defaults)
    return parser


def settings(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Return the arguments of `wb.train` that all recipes have."""
    return {
        "batch_size": options.batch_size, "gradient_accumulation_steps": options.accumulate, "lr": options.lr,
        "seed": options.seed, "max_length": options.length, "too_long": "drop", "gradient_checkpointing": True,
        "optimizer": options.optimizer, "bf16": True,
    } | more  # fmt: skip


def load(options: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """Open a model in bfloat16, on the device of its own process."""
    device = str(PartialState().device) if options.device == "cuda" else options.device
    return wb.load_model(name, device=device, dtype="bfloat16", attn_implementation=options.attention)


def call(main: Callable[[], None]) -> None:
    """Run a recipe from the command line, where an error of ours is one text."""
    try:
        main()
    except wb.WorkbenchError as error:
        raise SystemExit(f"error: {error}") from error


def check(options: argparse.Namespace) -> None:
    """Read every file that a recipe was given, so that a wrong one is not found after hours, and tell what leaks."""
    parts: dict[str, list[Task]] = {split: [] for split in SPLITS.values()}
    for name, split in SPLITS.items():
        given = getattr(options, name, None) or []
        parts[split] += [task(spec, split) for spec in ([given] if isinstance(given, str) else given)]
    trained = {row.prompt() for one in parts.pop("train") for row in one.rows()}
    for one in (one for part in parts.values() for one in part):
        known = sum(row.prompt() in trained for row in one.rows())
        if known:
            say(f"Beware: {known} of {len(one.rows())} rows to score of {one.name!r} are among those to train on.")


@cache
def task(spec: str, split: str = "test") -> Task:
    """Read `NAME=PATH`: a benchmark, a published file of `FORMATS`, or any other name for a file in our format.

    Of a file whose rows are of several splits, those of the split are taken.
    """
    name, _, path = spec.partition("=")
    if not path:
        raise SystemExit(f"{spec!r}: write NAME=PATH, where NAME is a benchmark ({', '.join(BENCHMARKS)}), a format "
                         f"({', '.join(FORMATS)}), or your own word for a file in the project's format")  # fmt: skip
    if name in BENCHMARKS or name in CLASSROOM:
        return read_benchmark(name, path, split=split, on_bad="skip").task
    rows = records(wb.load_examples(path, **FORMATS.get(name, {})).to_list())
    if len({row.split for row in rows}) > 1:
        rows = [row for row in rows if row.split == split]
    return Task(name=name, examples=rows, metric="composite" if name in FORMATS else "")


def examples(options: argparse.Namespace, specs: Sequence[str]) -> list[Example]:
    """Read files to train on."""
    return [row for spec in specs for row in task(spec, "train").rows()[: options.limit]]


def measure(options: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    """Score the test files, each with its interval: on the main process, or, in shards, on all that hold one.

    Raises:
        SystemExit: A file could not be scored; the others are.
    """
    found, failed = [], []
    for spec in options.test if PartialState().is_main_process or sharded(model) else ():
        try:
            one = wb.evaluate(model, tokenizer, [task(spec)], limit=options.limit, on_long="skip", progress=False)
            found.append(one.to_frame().iloc[:1])
        except wb.WorkbenchError as error:
            failed.append(f"{spec} was not scored: {error}")
    if found:
        say(pd.concat(found).to_markdown(index=False, floatfmt=".3f"))
    if failed:
        raise SystemExit("\n".join(failed))


def say(text: str) -> None:
    """Print once, however many processes train."""
    if PartialState().is_main_process:
        print(text, flush=True)
