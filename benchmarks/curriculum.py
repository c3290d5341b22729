"""What a curriculum costs: staging by each measure, and what both memories add to a training step.

    python benchmarks/curriculum.py [--model classroom/base] [--examples 10000] [--scored 1000] [--steps 60]
        [--batch-size 16] [--device cpu] [--threads 2] [--json FILE]

Staging by loss stands beside a bare forward pass over the same padded batches; the time spent in the curriculum's hooks
beside the rest of the same training steps. Goals: 5 s for 10,000 examples by length or rarity on 2 cores; loss at the
speed of a forward pass; at most 5 % of a step for the memories, besides the consistency forward.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.difficulty import _batches, _encode, difficulty, stage_by_difficulty
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Stage, records
from workbench.data import load_examples
from workbench.models import load_model
from workbench.training import train

BATCH_TOKENS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="classroom/base")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--scored", type=int, default=1_000, help="examples staged by loss")
    parser.add_argument("--steps", type=int, default=60, help="of each of three stages")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model, device=arguments.device)
    known = records(load_examples("classroom", split="train").to_list())
    known = [example for example in known if example.skill not in ("prose", "drill")]
    rows = [replace(known[i % len(known)], id=f"row{i}") for i in range(arguments.examples)]
    figures = staging(rows, known, model, tokenizer, arguments.scored)
    figures |= steps(known, model, tokenizer, arguments)
    for name, value in figures.items():
        print(f"{name:>38}  {value:,.3f}")
    line = (
        f"| curriculum | {arguments.model}, {arguments.device}, {arguments.threads} threads | staging "
        f"{arguments.examples:,}: length {figures['staging by length (s)']:.1f} s, rarity "
        f"{figures['staging by rarity (s)']:.1f} s | loss {figures['loss / bare forward']:.2f}x a forward pass | "
        f"memories +{figures['memories / step']:.1%} of a step, with the consistency forwards "
        f"+{figures['with consistency / step']:.0%} |"
    )
    print(f"\nFor docs/benchmarks.md:\n{line}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def staging(rows: list, known: list, model: Any, tokenizer: Any, scored: int) -> dict[str, float]:
    """Time each measure, and the bare forward over the batches that the loss reads."""
    figures = {}
    for measure in ("length", "rarity"):
        start = time.perf_counter()
        stage_by_difficulty(rows, measure)
        figures[f"staging by {measure} (s)"] = time.perf_counter() - start
    some = known[:scored]
    encoded = {i: _encode(tokenizer, example) for i, example in enumerate(some)}
    order = sorted(encoded, key=lambda i: sum(map(len, encoded[i])))
    shapes = [
        (len(batch), max(sum(map(len, encoded[i])) for i in batch), max(len(encoded[i][1]) for i in batch) + 1)
        for batch in _batches(order, encoded, BATCH_TOKENS)
    ]
    bare = []
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        with torch.inference_mode():
            for n, width, kept in shapes:
                ids = torch.zeros(n, width, dtype=torch.long, device=model.device)
                model(input_ids=ids, use_cache=False, logits_to_keep=kept)
        synchronise(model)
        bare.append(time.perf_counter() - start)
    start = time.perf_counter()
    difficulty(some, "loss", model=model, tokenizer=tokenizer, batch_tokens=BATCH_TOKENS, progress=False)
    synchronise(model)
    figures["bare forward (s)"], figures["loss (s)"] = bare[-1], time.perf_counter() - start
    figures["loss / bare forward"] = figures["loss (s)"] / figures["bare forward (s)"]
    return figures


def steps(known: list, model: Any, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Time the hooks of a curriculum inside a training, without and with consistency, against the rest of its steps."""
    figures = {}
    for name, coefficient in (("memories", 0.0), ("with consistency", 1.0)):
        third = len(known) // 3
        stages = [Stage(name=str(k), data=known[k * third : (k + 1) * third], steps=arguments.steps) for k in range(3)]
        made = Curriculum(
            stages, short_term=ShortTermMemory(256), long_term=LongTermMemory(1024), consistency_coef=coefficient,
            batch_size=arguments.batch_size,
        )  # fmt: skip
        spent = [0.0]

        def timed(function, spent=spent):
            def call(*values):
                synchronise(model)
                start = time.perf_counter()
                result = function(*values)
                synchronise(model)
                spent[0] += time.perf_counter() - start
                return result

            return call

        fresh, _ = load_model(arguments.model, device=arguments.device)
        adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        with tempfile.TemporaryDirectory() as folder:
            train(
                fresh, tokenizer, curriculum=made, adapter=adapter, output_dir=Path(folder) / "run", progress=False,
                batch_size=arguments.batch_size, save_every=10**6, on_batch=timed(made.on_batch),
                extra_losses=timed(made.extra_losses),
            )  # fmt: skip
        whole = sum(cost["seconds"] for cost in made.costs.values())
        figures[f"{name} / step"] = spent[0] / max(1e-9, whole - spent[0])
        # The backward of the consistency term runs inside the trainer's own.
        figures[f"{name}: training (s)"] = whole
    return figures


def synchronise(model: Any) -> None:
    """Wait for the device, where it works on its own."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
