"""Time a prompt's answers at many ratios in one batch against one model, and against merging them one by one.

    python benchmarks/spectrum.py --params 82m --threads 2

Two random Llama models, in float32 on a CPU and bfloat16 on a GPU. `one model` decodes the same prompt once with a
merged model; `one by one` moves a LiveMerge to each ratio and decodes there. Every round times each row once, in turn,
so that a busy machine hurts all alike; the ratios are of the medians and of the minima. In float32 the tokens are
compared with those of the merges one by one.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.merging.spectrum import RatioSpectrum

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500},
    "13m": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 12, "vocab_size": 8000},
    "82m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 16000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
}


def build(size: str, device: torch.device, dtype: torch.dtype, seed: int) -> LlamaForCausalLM:
    shape = SIZES[size]
    heads = max(shape["hidden_size"] // 128, 4)
    config = LlamaConfig(
        **shape, num_attention_heads=heads, num_key_value_heads=max(heads // 4, 1), tie_word_embeddings=False
    )
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    with device:
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def decode(model: Any, batch: dict[str, Tensor], tokens: int) -> Tensor:
    return model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)


def timed(run: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def report(times: dict[str, list[float]], ratios: int) -> tuple[str, dict[str, tuple[float, float]]]:
    lines = ["| row | median s | min s | times one model (median / min) |", "|---|---|---|---|"]
    against = {}
    for name, seconds in times.items():
        middle, least = statistics.median(seconds), min(seconds)
        against[name] = middle / statistics.median(times["one model"]), least / min(times["one model"])
        shown = "{:.2f}x / {:.2f}x".format(*against[name])
        lines.append(f"| {name.format(ratios)} | {middle:.3f} | {least:.3f} | {shown} |")
    return "\n".join(lines), against


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--params", choices=SIZES, default="13m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ratios", type=int, default=11)
    parser.add_argument("--prompt", type=int, default=16, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = [build(options.params, device, dtype, seed) for seed in (0, 1)]
    live = wb.LiveMerge(wb.MergeRecipe(parents=["first", "second"]), models=models)
    spectrum = RatioSpectrum(live.recipe, options.ratios, live=live)
    ids = torch.arange(3, 3 + options.prompt, device=device)[None]
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch = spectrum.expand(prompt)

    def one_by_one() -> Tensor:
        answers = []
        for recipe in spectrum.recipes:
            live.apply(recipe)
            answers.append(decode(live.model, prompt, options.tokens))
        return torch.cat(answers)

    runs = {
        "one model": lambda: decode(live.model, prompt, options.tokens),
        "spectrum, {} ratios": lambda: decode(spectrum.model, batch, options.tokens),
        "one by one, {} ratios": one_by_one,
    }
    same = torch.equal(one_by_one(), decode(spectrum.model, batch, options.tokens))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(timed(run, device))
    weights = sum(parameter.numel() for parameter in models[0].parameters())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    about = f"{weights / 1e6:.1f} M weights, {str(dtype)[6:]}, {where}, torch {torch.__version__}"
    print(f"{about}, prompt {options.prompt}, {options.tokens} new tokens, {options.rounds} rounds\n")
    table, against = report(times, options.ratios)
    print(table)
    print(f"\nTokens equal to the merges one by one: {'yes' if same else 'no'}\n")
    ours, alone = against["spectrum, {} ratios"], against["one by one, {} ratios"]
    print(
        f"docs/benchmarks.md: {datetime.date.today()}, {about}: {options.ratios} ratios in {ours[0]:.2f}x one model's "
        f"time (min {ours[1]:.2f}x), one by one {alone[0]:.2f}x, prompt {options.prompt} and {options.tokens} new "
        f"tokens, tokens equal: {'yes' if same else 'no'}"
    )


if __name__ == "__main__":
    main()
