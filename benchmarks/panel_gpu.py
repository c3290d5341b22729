"""Time four variants that answer together against one that answers alone: the scheduler without the web part.

    python benchmarks/panel_gpu.py --size 8b --device cuda

Random Llama models, in float32 on a CPU and bfloat16 on a GPU; greedy answers of a fixed length to one prompt each. The
peers in the same run are transformers' `generate` for one answer, and PEFT's own mixed batch
(`generate(adapter_names=...)`) for four adapters. Every round times each row once, in turn. The goal: four adapters
over one base take at most 1.5 times as long as one alone.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.generation import Request, Scheduler, make_variants
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.merging.spectrum import RatioSpectrum

SIZES: dict[str, dict[str, int]] = {
    "pico": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 500},
    "28m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "vocab_size": 8000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256},
}
RATIOS = (0.1, 0.35, 0.6, 0.85)
GOAL = 1.5
PEFT = "the same by PEFT's mixed batch"


class Numbers:
    """Stands in for a tokenizer: a prompt is a seed and a length, and nothing ends an answer."""

    chat_template, eos_token_id = None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the numbers of a text `"seed length"`."""
        seed, length = (int(part) for part in text.split())
        draw = torch.Generator().manual_seed(seed)
        return {"input_ids": torch.randint(3, 400, (length,), generator=draw).tolist()}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Return the numbers as words."""
        return " ".join(map(str, ids))


def build(size: str, device: str, seed: int) -> Any:
    shape = SIZES[size]
    heads = max(shape["hidden_size"] // 128, 4)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    config = LlamaConfig(**shape, **ends, num_attention_heads=heads, num_key_value_heads=max(heads // 4, 1))
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def adapted(model: Any) -> Any:
    """Put four random adapters over a base."""
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    wrapped = get_peft_model(model, config, adapter_name="0")
    for name in "123":
        wrapped.add_adapter(name, config)
    return wrapped.eval()


def rows(arguments: argparse.Namespace) -> tuple[dict[str, tuple[Callable[[], Any], int]], list[Scheduler]]:
    """Return what is timed, each with its number of answers, and the schedulers to close."""
    tokenizer: Any = Numbers()
    models = [build(arguments.size, arguments.device, seed) for seed in range(4)]
    recipe = MergeRecipe(parents=["x/0", "x/1"], method="linear", weights=[0.5, 0.5])
    spectrum = RatioSpectrum(recipe, live=LiveMerge(recipe, models=models[:2]))
    plain = build(arguments.size, arguments.device, 4)
    wrapped = adapted(build(arguments.size, arguments.device, 5))
    variants = {"plain": plain, "spectrum": spectrum} | {f"model {i}": model for i, model in enumerate(models)}
    variants |= {f"adapter {name}": (wrapped, name) for name in "0123"}
    scheduler = Scheduler(make_variants(variants, tokenizer))
    ids = torch.tensor([tokenizer(f"{i} {arguments.prompt}")["input_ids"] for i in range(4)], device=plain.device)
    fixed = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens, "do_sample": False}

    def generate(model: Any, count: int, **more: Any) -> None:
        model.generate(input_ids=ids[:count], attention_mask=torch.ones_like(ids[:count]), **fixed, **more)

    def ask(*names: str, ratios: Sequence[float | None] = (None,) * 4) -> None:
        asked = [
            Request(name, f"{i} {arguments.prompt}", max_new_tokens=arguments.tokens, ratio=ratio)
            for i, (name, ratio) in enumerate(zip(names, ratios))
        ]
        for answer in [scheduler.submit(request) for request in asked]:
            answer.wait()
            if answer.state != "done":
                raise SystemExit(f"{answer}: {answer.error}")

    timed: dict[str, tuple[Callable[[], Any], int]] = {
        "transformers generate, one answer": (lambda: generate(plain, 1), 1),
        "one model alone": (lambda: ask("plain"), 1),
        "one model, four answers": (lambda: ask(*["plain"] * 4), 4),
        "one adapter alone": (lambda: ask("adapter 0"), 1),
        "four adapters over one base": (lambda: ask(*(f"adapter {name}" for name in "0123")), 4),
        PEFT: (lambda: generate(wrapped, 4, adapter_names=list("0123")), 4),
        "one ratio of a spectrum": (lambda: ask("spectrum", ratios=RATIOS), 1),
        "four ratios of a spectrum": (lambda: ask(*["spectrum"] * 4, ratios=RATIOS), 4),
        "four different models": (lambda: ask(*(f"model {i}" for i in range(4))), 4),
    }
    return timed, [scheduler]


ALONE = {
    PEFT: "one adapter alone",
    "four adapters over one base": "one adapter alone",
    "four ratios of a spectrum": "one ratio of a spectrum",
    "transformers generate, one answer": "one model alone",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="pico")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=24, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    timed, schedulers = rows(given)
    times: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(given.rounds + 1):
        for name, (run, _) in timed.items():
            began = time.perf_counter()
            run()
            if given.device != "cpu":
                torch.cuda.synchronize()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    for scheduler in schedulers:
        scheduler.close()
    against = {}
    print("| row | median s | tokens/s | times one alone (median / min) |\n|---|---|---|---|")
    for name, seconds in times.items():
        alone = times[ALONE.get(name, "one model alone")]
        against[name] = statistics.median(seconds) / statistics.median(alone), min(seconds) / min(alone)
        speed = timed[name][1] * given.tokens / statistics.median(seconds)
        ratio = "{:.2f}x / {:.2f}x".format(*against[name])
        print(f"| {name} | {statistics.median(seconds):.3f} | {speed:.0f} | {ratio} |")
    ratio = {name: f"{median:.2f}x / {least:.2f}x" for name, (median, least) in against.items()}
    goal = "met" if against["four adapters over one base"][0] <= GOAL else "missed"
    print(
        f"\n{datetime.date.today()}, panel_gpu, {given.size} on {given.device}, {given.threads} threads, prompt "
        f"{given.prompt}, {given.tokens} tokens, {given.rounds} rounds; times one alone: four adapters over one base "
        f"{ratio['four adapters over one base']} (goal {GOAL}x, {goal}), by PEFT's mixed batch "
        f"{ratio[PEFT]}; four ratios of a spectrum {ratio['four ratios of a spectrum']}; four models "
        f"{ratio['four different models']}"
    )


if __name__ == "__main__":
    main()
