"""Write the classroom's files: the world's examples as JSONL, then tokenizer and models."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from workbench.classroom import general, skills
from workbench.classroom.drills import drills
from workbench.classroom.plan import BASE, SIZE, TUNINGS, group_of
from workbench.classroom.tokenizer import train_tokenizer
from workbench.classroom.train import PLAIN_TEXT, Item, Phase, encode, fit, new_model
from workbench.classroom.world import World, load_world
from workbench.records import Example

TASKS: dict[str, Callable[[World], list[Example]]] = {**skills.TASKS, **general.TASKS}


def write_examples(root: Path) -> Counter[str]:
    """Generate every task from `world/conditions.json` and write `examples/<task>.jsonl`.

    Args:
        root: The `data_samples` folder.

    Returns:
        Number of rows by task.
    """
    world = load_world(root / "world" / "conditions.json")
    (root / "examples").mkdir(exist_ok=True)
    counts: Counter[str] = Counter()
    for task, generate in TASKS.items():
        rows = [_line(example) for example in generate(world)]
        _write(root / "examples" / f"{task}.jsonl", "\n".join(rows) + "\n")
        counts[task] = len(rows)
    return counts


def read_examples(root: Path, tasks: Iterable[str] = TASKS) -> dict[str, list[Example]]:
    """Read back the rows that `write_examples` wrote, by task."""
    found = {}
    for task in tasks:
        lines = (root / "examples" / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        found[task] = [Example(**{**r, "choices": tuple(r["choices"]) if "choices" in r else None}) for r in rows]
    return found


def build_models(
    root: Path,
    out: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    report: Callable[[str], None] = print,
) -> None:
    """Train tokenizer, `base`, `instruct` and `clinical`, and save each with the tokenizer.

    Args:
        root: The `data_samples` folder, with its examples.
        out: Folder that receives one folder for each model.
        seed: Initialisation and order of examples.
        scale: Multiplies the tokens of every phase; below 1 for a quick try.
        report: Called with lines of progress.
    """
    examples = read_examples(root)
    examples["drill"] = drills(load_world(root / "world" / "conditions.json"))
    tokenizer = train_tokenizer(corpus(examples))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = new_model(SIZE, tokenizer, seed=seed).to(device)  # pyright: ignore[reportArgumentType]
    _train(model, tokenizer, examples, BASE, seed, scale, "base", report)
    _save(model, tokenizer, out / "base")
    start = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, phase in TUNINGS.items():
        model.load_state_dict(start)
        _train(model, tokenizer, examples, phase, seed, scale, name, report)
        _save(model, tokenizer, out / name)


def corpus(examples: Mapping[str, Sequence[Example]]) -> list[str]:
    """Return all training texts, for the tokenizer."""
    rows = [example for group in examples.values() for example in group if example.split == "train"]
    return [text for row in rows for text in ((row.answer,) if row.skill in PLAIN_TEXT else (row.prompt(), row.answer))]


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    examples: Mapping[str, Sequence[Example]],
    phase: Phase,
    seed: int,
    scale: float,
    name: str,
    report: Callable[[str], None],
) -> None:
    groups: dict[str, list[Item]] = {group: [] for group in phase.shares}
    for task, rows in examples.items():
        if (group := group_of(task)) in groups:
            groups[group] += [encode(r, tokenizer, answers_only=phase.answers_only) for r in rows if r.split == "train"]
    report(f"{name}: {sum(map(len, groups.values())):,} texts, {phase.tokens * scale / 1e6:.1f} M tokens")
    fit(model, groups, phase.scaled(scale), seed=seed, report=lambda line: report(f"{name}: {line}"))


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a bfloat16 copy; the training model keeps its precision."""
    half = copy.deepcopy(model).bfloat16()
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def _line(example: Example) -> str:
    """Return a row without its empty columns and without `source`, which a loader sets to file and row."""
    row = {name: value for name, value in example.to_dict().items() if value and name != "source"}
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text, encoding="utf-8", newline="\n")
    fresh.replace(path)
