"""Time a move of `LiveMerge` against mergekit in memory and against a plain copy of the same bytes, in one run.

    python benchmarks/live_merge.py --params 238m --threads 2

Two random Llama models are merged in bfloat16. `relatives` differ by a small change, as two fine-tunes of one base do,
so that slerp's path is straight; `strangers` are independent, which is slerp's dear case. `copy` moves as many bytes
as a move of two parents must: two read and one written for each weight. Every round times each row once, in turn, so
that a busy machine hurts all alike; the ratios are of the medians and of the minima.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb

SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500},
    "238m": {"hidden_size": 1024, "intermediate_size": 2144, "num_hidden_layers": 16, "vocab_size": 32000},
}
BYTES_PER_WEIGHT = 6  # two bfloat16 parents read, one written


def build(size: str, device: torch.device, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False, **SIZES[size])
    with device:
        return LlamaForCausalLM(config).to(torch.bfloat16)


@torch.no_grad()
def relative_of(model: LlamaForCausalLM, size: str, device: torch.device) -> LlamaForCausalLM:
    other = build(size, device, seed=1)
    for near, far in zip(model.parameters(), other.parameters()):
        far.mul_(0.02).add_(near)
    return other


def copy_same_bytes(first: LlamaForCausalLM, second: LlamaForCausalLM, live: LlamaForCausalLM) -> Callable[[], None]:
    halves = [tensor.view(-1)[: tensor.numel() // 2] for tensor in second.state_dict().values()]
    spare = [torch.empty_like(half) for half in halves]
    pairs = list(zip(live.state_dict().values(), first.state_dict().values()))

    def run() -> None:
        for target, source in [*pairs, *zip(spare, halves)]:
            target.copy_(source)

    return run


def timed(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def rows(size: str, device: torch.device) -> tuple[dict[str, Callable[[], object]], int, float]:
    from mergekit.merge_methods import merge_state_dicts

    first, stranger = build(size, device, 0), build(size, device, 2)
    relative = relative_of(first, size, device)
    linear = wb.MergeRecipe(parents=["first", "second"])
    slerp = linear.replace(method="slerp")
    near = wb.LiveMerge(linear, models=[first, relative], exact=False)
    far = wb.LiveMerge(linear, models=[first, stranger], exact=False)
    angles = timed(lambda: far.apply(slerp), device)
    near.apply(slerp)
    turn = iter(range(10**9))

    def move(live: wb.LiveMerge, recipe: wb.MergeRecipe, exact: bool) -> Callable[[], None]:
        def run() -> None:
            live.exact = exact
            live.apply(recipe.with_ratio(0.05 + 0.07 * (next(turn) % 13)))

        return run

    states = [first.state_dict(), stranger.state_dict()]
    runs = {
        "copy": copy_same_bytes(first, relative, near.model),
        "mergekit linear": lambda: merge_state_dicts(states, "linear", parameters={"weight": [0.6, 0.4]}),
        "mergekit slerp": lambda: merge_state_dicts(states, "slerp", base=0, parameters={"t": 0.4}),
        "linear": move(near, linear, False),
        "linear, exact": move(near, linear, True),
        "slerp, relatives": move(near, slerp, False),
        "slerp, relatives, exact": move(near, slerp, True),
        "slerp, strangers": move(far, slerp, False),
    }
    return runs, sum(parameter.numel() for parameter in first.parameters()), angles


def report(times: dict[str, list[float]], weights: int) -> str:
    lines = [
        "| row | median ms | min ms | GB/s (min) | times mergekit (median / min) | of copy bandwidth (median / min) |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        peer = times[f"mergekit {name.split(',')[0]}"] if "mergekit" not in name and name != "copy" else None
        middle, least = statistics.median(seconds), min(seconds)
        against = f"{statistics.median(peer) / middle:.1f}x / {min(peer) / least:.1f}x" if peer else "-"
        share = f"{statistics.median(times['copy']) / middle:.0%} / {min(times['copy']) / least:.0%}"
        speed = BYTES_PER_WEIGHT * weights / least / 1e9
        lines.append(f"| {name} | {middle * 1e3:.1f} | {least * 1e3:.1f} | {speed:.1f} | {against} | {share} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--params", choices=SIZES, default="238m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    runs, weights, angles = rows(options.params, device)
    for run in runs.values():
        timed(run, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(timed(run, device))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    print(f"{weights / 1e6:.1f} M weights, bfloat16, {where}, torch {torch.__version__}, {options.rounds} rounds")
    print(f"first slerp move, with its angles: {angles * 1e3:.0f} ms\n")
    print(report(times, weights))


if __name__ == "__main__":
    main()
