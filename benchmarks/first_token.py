"""From a move of the slider to the first new token: median and 95th percentile over 30 moves.

    python benchmarks/first_token.py [--parents NAME NAME] [--threads 2] [--json FILE]

A move recomputes all weights of the merge; then the prompt is read and one token written. Each move goes to another
ratio, so nothing can be kept from the one before. The goal is 300 ms at most on 2 cores with the classroom models.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from workbench.generation import stream
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe

GOAL_MS = 300
MOVES = 30
PROMPT = "What is the first treatment of asthma? Answer in upper case."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parents", nargs=2, default=["classroom/instruct", "classroom/clinical"])
    parser.add_argument("--method", default="slerp", choices=["linear", "slerp"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    recipe = MergeRecipe(parents=arguments.parents, method=arguments.method, weights=[0.5, 0.5])
    live = LiveMerge(recipe)
    moves, answers = [], []
    for move in range(MOVES + 3):
        ratio = (move * 7 % MOVES) / (MOVES - 1)
        start = time.perf_counter()
        live.apply(recipe.with_ratio(ratio))
        moved = time.perf_counter()
        with live.generation() as stop:
            next(stream(live.model, live.tokenizer, PROMPT, stop=stop), "")
        moves.append((moved - start) * 1000)
        answers.append((time.perf_counter() - moved) * 1000)
    # The first three warm caches and the allocator.
    report(moves[3:], answers[3:], live, arguments)


def report(moves: list[float], answers: list[float], live: LiveMerge, arguments: argparse.Namespace) -> None:
    both = [move + answer for move, answer in zip(moves, answers, strict=True)]
    figures = {
        "parents": arguments.parents,
        "method": arguments.method,
        "parameters": sum(p.numel() for p in live.model.parameters()),
        "dtype": str(live.model.dtype).removeprefix("torch."),
        "threads": arguments.threads,
        "moves": len(both),
        "merge_median_ms": statistics.median(moves),
        "first_token_median_ms": statistics.median(answers),
        "median_ms": statistics.median(both),
        "p95_ms": statistics.quantiles(both, n=20, method="inclusive")[-1],
        "goal_ms": GOAL_MS,
    }
    figures["reached"] = figures["p95_ms"] <= GOAL_MS
    for name, value in figures.items():
        print(f"{name:>22}  {value:.1f}" if isinstance(value, float) else f"{name:>22}  {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
