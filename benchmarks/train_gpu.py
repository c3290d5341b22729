"""Time training at 1B and 8B shapes: `wb.train` against PEFT in a plain loop, in tokens a second, memory, chip's share.

    python benchmarks/train_gpu.py --device cuda --shapes 1b 8b --checkpointing

Random Llama models in bfloat16 (float32 on a CPU) with the shapes of Llama-3.2-1B and Llama-3.1-8B, one arm after
the other: LoRA, AdaLoRA and our mixture of LoRA experts by `wb.train`; LoRA and AdaLoRA by PEFT, AdamW and nothing
else. All arms read rows of one length, of which the second half is answers. A step's time is from one batch to the
next with the device synchronised; the first steps warm up. The share is the model's operations in matrix products,
recomputed ones left out, over the time and over the rate that this device reaches in a large matrix product in the
same run. An arm that runs out of memory says so in its row.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.classroom.tokenizer import train_tokenizer
from workbench.records import Example
from workbench.training.estimate import estimate_training, gib, matmul_rate

LARGE = {"vocab_size": 128256, "num_key_value_heads": 8, "num_attention_heads": 32, "rope_theta": 500000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "pico": {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "1b": LARGE | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8b": LARGE | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}  # fmt: skip
MIXTURE, LORA, ADALORA = "LoRA-MoE, wb.train", "LoRA, {}", "AdaLoRA, {}"
OURS, ALONE = "wb.train", "PEFT alone"
MOE_RANK, CHOSEN = 8, 2


def adapters(steps: int) -> dict[str, Any]:
    """Return each arm's adapter; the mixture's active rank is LoRA's."""
    common = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    lora = LoraConfig(r=MOE_RANK * CHOSEN, **common)
    ada = AdaLoraConfig(init_r=12, target_r=8, tinit=1, tfinal=1, deltaT=1, total_step=steps, **common)
    mixture = wb.LoraMoeConfig(r=MOE_RANK, num_experts=4, num_experts_per_tok=CHOSEN, **common)
    arms = {form.format(who): adapter for form, adapter in ((LORA, lora), (ADALORA, ada)) for who in (ALONE, OURS)}
    return arms | {MIXTURE: mixture}


def build(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def ours(model: Any, adapter: Any, options: argparse.Namespace, device: torch.device) -> list[float]:
    """Return the time at each batch of `wb.train`."""
    tokenizer = train_tokenizer([], vocab_size=261)  # a token for each byte
    tokenizer.chat_template = None
    answer = options.tokens // 2
    asked = options.tokens - answer - 4  # a space before both, a line break between them, the end
    rows = [
        Example(id=str(i), skill="none", query="q" * asked, answer="a" * answer)
        for i in range(options.steps * options.batch)
    ]
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        run = wb.train(
            model, tokenizer, rows, adapter=adapter, output_dir=folder, steps=options.steps, batch_size=options.batch,
            gradient_checkpointing=options.checkpointing, save_every=options.steps, progress=False,
            on_batch=lambda batch: times.append(clock(device)) or check(batch.inputs["input_ids"], options),
        )  # fmt: skip
        assert run.state == "finished", run
    return times


def check(ids: torch.Tensor, options: argparse.Namespace) -> None:
    assert ids.shape == (options.batch, options.tokens), f"the rows are {tuple(ids.shape)}"


def alone(model: Any, adapter: Any, options: argparse.Namespace, device: torch.device) -> list[float]:
    """Return the time at each batch of a plain loop over PEFT's model."""
    # A copy, since AdaLoRA writes the ranks that it found into its configuration.
    wrapped: Any = get_peft_model(model, copy.deepcopy(adapter)).train()
    if options.checkpointing:
        wrapped.activation_checkpointing_enable({"use_reentrant": False})
    trained = [tensor for tensor in wrapped.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    ids = torch.randint(3, 261, (options.batch, options.tokens), device=device)
    mask, wanted, times = torch.ones_like(ids), ids[:, -(options.tokens // 2) :], []
    for step in range(options.steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype is torch.bfloat16):
            logits = wrapped(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = cross_entropy(logits[:, -(wanted.shape[1] + 1) : -1].flatten(0, 1).float(), wanted.flatten())
        times.append(clock(device))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if isinstance(adapter, AdaLoraConfig):
            wrapped.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
    return times


def measure(arm: str, adapter: Any, config: LlamaConfig, options: argparse.Namespace, device: torch.device) -> Any:
    """Return seconds a step and the peak of memory, or None where it ran out."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    step: Callable[..., list[float]] = alone if arm.endswith(ALONE) else ours
    found = None
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = step(build(config, device, dtype), adapter, options, device)
        spans = [after - before for before, after in pairwise(times)][options.warm_up :]
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        found = statistics.median(spans), peak
    except torch.OutOfMemoryError:
        pass
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def table(shape: str, options: argparse.Namespace, device: torch.device, rate: float) -> dict[str, float]:
    """Print a row for each arm, and return their tokens a second."""
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, bos_token_id=None, eos_token_id=None)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    speeds: dict[str, float] = {}
    print(f"\n{shape}, {options.batch} x {options.tokens} tokens, {dtype}, checkpointing {options.checkpointing}\n")
    print(
        "| arm | tokens/s | ms a step | peak memory | estimated | share of the matrix rate |\n|---|---|---|---|---|---|"
    )
    for arm, adapter in adapters(options.steps).items():
        sized = {"length": options.tokens, "dtype": dtype, "batch_size": options.batch}
        plain = estimate_training(config, adapter, **sized)
        kept = plain.activations[options.checkpointing]
        expected = sum(plain.memory.values()) - plain.memory["activations"] + kept
        found = measure(arm, adapter, config, options, device)
        if found is None:
            print(f"| {arm} | out of memory | - | - | {gib(expected)} | - |")
            continue
        seconds, peak = found
        speeds[arm] = options.batch * options.tokens / seconds
        told = "not measured" if peak is None else gib(peak)
        share = plain.flops / seconds / rate
        print(f"| {arm} | {speeds[arm]:,.0f} | {seconds * 1e3:.1f} | {told} | {gib(expected)} | {share:.1%} |")
    return speeds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["pico"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=3, help="steps that are not counted")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    options = parser.parse_args(arguments)
    if options.steps < options.warm_up + 4:
        parser.error(f"--steps {options.steps}: at least {options.warm_up + 4}, 4 more than --warm-up")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rate = matmul_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    print(f"{where}: {rate / 1e12:.3f} TFLOP/s in a large matrix product")
    for shape in options.shapes:
        speeds = table(shape, options, device, rate)
        pairs = [(form.format(OURS), form.format(ALONE)) for form in (LORA, ADALORA)] + [(MIXTURE, LORA.format(OURS))]
        ratios = (f"{a} / {b} {speeds[a] / speeds[b]:.2f}" for a, b in pairs if a in speeds and b in speeds)
        print(
            f"\n{datetime.date.today()}, train_gpu, {shape}, {options.batch} x {options.tokens} tokens, {where}, torch "
            f"{torch.__version__}; tokens/s: {'; '.join(ratios) or 'no pair ran'}"
        )


if __name__ == "__main__":
    main()
