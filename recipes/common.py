"""What the recipes share: arguments, files to examples, the estimate before anything is loaded, the dry run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import workbench as wb
from workbench.errors import ConfigError
from workbench.evaluation import BENCHMARKS, CLASSROOM, Task, read_benchmark
from workbench.records import Example, records
from workbench.training.estimate import estimate_training, matmul_rate

DIALOGUE = {"skill": "summarisation", "context": "dialogue", "query": "Summarise the visit."}
FORMATS: dict[str, dict[str, Any]] = {
    "mts_dialog": DIALOGUE | {"answer": "section_text"},
    "aci_bench": DIALOGUE | {"answer": "note"},
    "meqsum": {
        "skill": "summarisation", "context": "question", "query": "Ask it in one line.", "answer": "summary",
    },
}  # fmt: skip
"""Published files that are no benchmark of `workbench.evaluation`, and how their rows become examples."""

TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "d_ff": 128, "d_kv": 16, "num_decoder_layers": 2,
}  # fmt: skip


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


def announce(
    options: argparse.Namespace, models: Sequence[str], adapter: PeftConfig | None, *, steps: int, **more: Any
) -> None:
    """Print memory, time and disk, check them; for a dry run, put tiny models in the models' places.

    Args:
        options: The recipe's; a dry run changes it.
        models: Names of the options that hold models of one architecture; the first is estimated.
        adapter: What is trained.
        steps: Optimiser steps in all.
        **more: Bytes that come to the memory, by what they are: `{name: models of the first one's size}`.
    """
    name = getattr(options, models[0])
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    found = estimate_training(config, adapter, length=options.length, **settings(options))
    copies = {kind: round(count * found.memory["weights"]) for kind, count in more.items()}
    found = type(found)(**vars(found) | {"memory": {**found.memory, **copies}})
    rate = options.flops or matmul_rate(options.device)
    seconds = found.flops * steps / (rate * options.utilisation)
    say(f"{name}, {config.architectures or config.model_type}, before anything is loaded:\n{found}")
    say(
        f"  time         about {timedelta(seconds=round(seconds))} for {steps:,} steps of {found.tokens:,} tokens, "
        f"{found.tokens * steps / max(seconds, 1e-9):,.0f} tokens/s on one device, assumed: {options.utilisation:.0%} "
        f"of {rate / 1e12:.2f} TFLOP/s ({'given' if options.flops else f'measured on {options.device}'})"
    )
    try:
        found.check(options.device, options.out)
    except ConfigError as error:
        if not (options.yes or options.dry_run):
            raise SystemExit(f"{error}; or go on with --yes") from error
        say(f"Too little here: {error}.")
    if options.dry_run:
        places = [tempfile.mkdtemp(prefix="dry-run-")]
        broadcast_object_list(places)  # where several processes train, they share the first one's
        place = Path(places[0])
        with PartialState().main_process_first():
            tiny = {one: make_tiny(getattr(options, one), place / one, seed) for seed, one in enumerate(models)}
        vars(options).update(tiny, out=str(place / "out"), steps=2, limit=8, batch_size=2, accumulate=1)
        say(f"Dry run: two steps of random tiny models, in {place}.")


def make_tiny(name: str, folder: Path, seed: int) -> str:
    """Write a random model of the same architecture with two narrow layers, beside the same tokenizer."""
    if folder.exists():
        return str(folder)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    for key, value in TINY.items():
        if hasattr(config, key):
            setattr(config, key, value)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(seed)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    kind.from_config(config, trust_remote_code=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(folder)
    return str(folder)


def load(options: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """Open a model in bfloat16."""
    return wb.load_model(name, device=options.device, dtype="bfloat16", attn_implementation=options.attention)


def task(spec: str, split: str = "test") -> Task:
    """Read `NAME=PATH`: a benchmark, a published file of `FORMATS`, or any other name for a file in our format."""
    name, _, path = spec.partition("=")
    if not path:
        raise SystemExit(f"{spec!r}: write NAME=PATH, where NAME is a benchmark ({', '.join(BENCHMARKS)}), a format "
                         f"({', '.join(FORMATS)}), or your own word for a file in the project's format")  # fmt: skip
    if name in BENCHMARKS or name in CLASSROOM:
        return read_benchmark(name, path, split=split, on_bad="skip").task
    return Task(name=name, examples=records(wb.load_examples(path, **FORMATS.get(name, {})).to_list()))


def examples(options: argparse.Namespace, specs: Sequence[str]) -> list[Example]:
    """Read files to train on."""
    return [row for spec in specs for row in task(spec, "train").rows()[: options.limit]]


def measure(options: argparse.Namespace, model: Any, tokenizer: Any) -> None:
    """Score the test files on the main process, each with its interval."""
    if options.test and PartialState().is_main_process:
        tasks = [task(spec) for spec in options.test]
        scores = wb.evaluate(model, tokenizer, tasks, limit=options.limit, on_long="skip", progress=False)
        say(scores.to_frame().to_markdown(index=False, floatfmt=".3f"))


def say(text: str) -> None:
    """Print once, however many processes train."""
    if PartialState().is_main_process:
        print(text, flush=True)
