"""Time a move of `LiveMerge` against mergekit in memory and against a plain copy of the same bytes, in one run.

    python benchmarks/live_merge.py --shape 238m --threads 2 --compiled
    python benchmarks/live_merge.py --shape 8b --device cuda --compiled

Random Llama models are merged in bfloat16. `relatives` differ by a small change, as two fine-tunes of one base do,
so that slerp's path is straight; `strangers` are independent, which is slerp's dear case. `ties` and `dare` move the
density of two task vectors; their goal is 5 times a linear move, slerp's is twice. `copy` moves as many bytes as a
linear move of two parents must: two read and one written for each weight. Every round times each row once, in turn, so
that a busy machine hurts all alike; the ratios are of the medians and of the minima.

`8b` has the shape of Llama-3.1-8B, and needs memory for five such models, the codes and what making them takes, about
115 GB. mergekit is left out there, since it makes new tensors of everything at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb

SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500},
    "238m": {"hidden_size": 1024, "intermediate_size": 2144, "num_hidden_layers": 16, "vocab_size": 32000},
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
        "num_attention_heads": 32,
    },
}
BYTES_NEEDED = {"8b": 115e9}
Run = Callable[[], object]
BYTES_PER_WEIGHT = 6  # two bfloat16 parents read, one written


def build(size: str, device: torch.device, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False}
    held = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(LlamaConfig(**(heads | SIZES[size])))
    finally:
        torch.set_default_dtype(held)


def memory_of(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@torch.no_grad()
def relative_of(model: LlamaForCausalLM, size: str, device: torch.device, seed: int = 1) -> LlamaForCausalLM:
    other = build(size, device, seed)
    for near, far in zip(model.parameters(), other.parameters()):
        far.mul_(0.02).add_(near)
    return other


def copy_same_bytes(first: LlamaForCausalLM, second: LlamaForCausalLM, live: LlamaForCausalLM) -> Run:
    halves = [tensor.view(-1)[: tensor.numel() // 2] for tensor in second.state_dict().values()]
    spare = [torch.empty_like(half) for half in halves]
    pairs = list(zip(live.state_dict().values(), first.state_dict().values()))

    def run() -> None:
        for target, source in [*pairs, *zip(spare, halves)]:
            target.copy_(source)

    return run


def timed(run: Run, device: torch.device) -> float:
    started = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def peers(first: LlamaForCausalLM, stranger: LlamaForCausalLM) -> dict[str, Run]:
    from mergekit.merge_methods import merge_state_dicts

    states = [first.state_dict(), stranger.state_dict()]
    return {
        "mergekit linear": lambda: merge_state_dicts(states, "linear", parameters={"weight": [0.6, 0.4]}),
        "mergekit slerp": lambda: merge_state_dicts(states, "slerp", base=0, parameters={"t": 0.4}),
    }


def rows(size: str, device: torch.device, compiled: bool) -> tuple[dict[str, Run], int, list[str]]:
    base = build(size, device, 0)
    first, relative = relative_of(base, size, device, 3), relative_of(base, size, device)
    linear = wb.MergeRecipe(parents=["first", "second"])
    slerp = linear.replace(method="slerp")
    near = wb.LiveMerge(linear, models=[first, relative], exact=False)
    dense = wb.LiveMerge(linear, models=[first, relative], base=base, exact=False, compiled=compiled)
    near.apply(slerp)
    turn = iter(range(10**9))
    notes: list[str] = []

    def move(live: wb.LiveMerge, recipe: wb.MergeRecipe, exact: bool) -> Run:
        def run() -> None:
            live.exact = exact
            live.apply(recipe.with_ratio(0.05 + 0.07 * (next(turn) % 13)))

        return run

    def density(method: str) -> Run:
        start = linear.with_method(method, base=dense.base)

        def run() -> None:
            dense.apply(start.replace(density=0.05 + 0.07 * (next(turn) % 13)))

        return run

    runs: dict[str, Run] = {
        "copy": copy_same_bytes(first, relative, near.model),
        "linear": move(near, linear, False),
        "linear, exact": move(near, linear, True),
        "slerp, relatives": move(near, slerp, False),
        "slerp, relatives, exact": move(near, slerp, True),
    }
    if size not in BYTES_NEEDED:
        stranger = build(size, device, 2)
        far = wb.LiveMerge(linear, models=[first, stranger], exact=False)
        angles = timed(lambda: far.apply(slerp), device)
        notes.append(f"first slerp move, with its angles: {angles * 1e3:.0f} ms")
        runs |= peers(first, stranger) | {"slerp, strangers": move(far, slerp, False)}
    for name, method in {"ties": "ties", "dare": "dare_ties"}.items():
        run = density(method)
        notes.append(f"first {name} move, with its codes: {timed(run, device):.2f} s")
        runs[f"{name}, density"] = run
    return runs, sum(parameter.numel() for parameter in first.parameters()), notes


def report(times: dict[str, list[float]], weights: int) -> str:
    lines = [
        "| row | median ms | min ms | GB/s (min) | times mergekit (median / min) | of copy bandwidth (median / min) "
        "| linear moves (median / min) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        peer = None if name == "copy" else times.get(f"mergekit {name.split(',')[0]}")
        middle, least = statistics.median(seconds), min(seconds)
        against = f"{statistics.median(peer) / middle:.1f}x / {min(peer) / least:.1f}x" if peer else "-"
        share = f"{statistics.median(times['copy']) / middle:.0%} / {min(times['copy']) / least:.0%}"
        moves = f"{middle / statistics.median(times['linear']):.1f} / {least / min(times['linear']):.1f}"
        speed = BYTES_PER_WEIGHT * weights / least / 1e9
        lines.append(
            f"| {name} | {middle * 1e3:.1f} | {least * 1e3:.1f} | {speed:.1f} | {against} | {share} | {moves} |"
        )
    return "\n".join(lines)


def timed_rounds(runs: Mapping[str, Run], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time each row once in every round; a density by itself beside linear, since other methods free its codes."""
    moved = [name for name in runs if "density" in name]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for group in ([name for name in runs if name not in moved], *(["linear", name] for name in moved)):
        for turn in range(rounds + 1):
            for name in group:
                seconds = timed(runs[name], device)
                if turn:
                    times[name].append(seconds)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", "--params", choices=SIZES, default="238m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="let torch.compile make one loop of TIES and DARE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    needed, free = BYTES_NEEDED.get(options.shape, 0.0), memory_of(device)
    if free < needed:
        print(f"{options.shape} needs {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free on {device}: not run")
        return
    runs, weights, notes = rows(options.shape, device, options.compiled)
    times = timed_rounds(runs, options.rounds, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    head = f"{weights / 1e6:.1f} M weights, bfloat16, {where}, torch {torch.__version__}, {options.rounds} rounds"
    print(head + (", compiled" if options.compiled else ""), *notes, "", report(times, weights), "", sep="\n")
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    ratios = ", ".join(
        f"{name.split(',')[0]} {middle[name] / middle['linear']:.1f}x" for name in times if "density" in name
    )
    slerp = middle["slerp, relatives"] / middle["linear"]
    print(f"docs/benchmarks.md: {head}: linear {middle['linear'] * 1e3:.1f} ms, slerp {slerp:.1f}x, {ratios} of it")


if __name__ == "__main__":
    main()
