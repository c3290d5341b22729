"""How much slower does generation become while its routers are recorded? Plain and recorded runs take turns.

    python benchmarks/capture.py [--model mixtral|lora_moe|all] [--device cuda] [--hidden 512] [--layers 8]

The model is random. Greedy generation with a cache; each round generates once without and once with `capture_routing`,
in changing order, and the figure is the median of the rounds' ratios. Goal: at most 1.05. The copy to the CPU at the
end of the block is counted. On the CPU the process's own time is taken, which busy neighbours distort less.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import workbench as wb


def build(kind: str, args: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 4096,
        "hidden_size": args.hidden,
        "intermediate_size": args.hidden * 2,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
        "num_key_value_heads": args.hidden // 64,
        "max_position_embeddings": 4096,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    if kind == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=args.experts, num_experts_per_tok=2))
    else:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = wb.LoraMoeConfig(r=8, num_experts=args.experts, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), config)
    dtype = torch.bfloat16 if args.device != "cpu" else torch.float32
    return model.to(args.device, dtype).eval()


def seconds(model: torch.nn.Module, ids: torch.Tensor, args: argparse.Namespace, *, record: bool) -> float:
    settings = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": False, "pad_token_id": 0}
    if args.device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    start = clock()
    if record:
        with wb.capture_routing(model) as trace:
            model.generate(input_ids=ids, **settings)
        assert len(trace) == ids.numel() + len(ids) * (args.tokens - 1)
    else:
        model.generate(input_ids=ids, **settings)
    if args.device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["mixtral", "lora_moe", "all"], default="all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    for name, value in {"hidden": 512, "layers": 8, "experts": 4, "batch": 1, "prompt": 32, "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    lines = []
    heads = ("model", "routers", "parameters", "plain, tok/s", "recorded, tok/s", "ratio (least to most)")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for kind in ("mixtral", "lora_moe") if args.model == "all" else (args.model,):
        model = build(kind, args)
        ids = torch.randint(5, 4000, (args.batch, args.prompt), device=args.device)
        seconds(model, ids, args, record=True)
        pairs = []
        for turn in range(args.rounds):
            took = {record: seconds(model, ids, args, record=record) for record in (turn % 2 == 0, turn % 2 == 1)}
            pairs.append((took[False], took[True]))
        with wb.capture_routing(model) as trace, torch.no_grad():
            model(input_ids=ids)
        ratios = sorted(recorded / plain for plain, recorded in pairs)
        plain, recorded = (args.batch * args.tokens / statistics.median(side) for side in zip(*pairs))
        size = sum(p.numel() for p in model.parameters()) / 1e6
        ratio = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"| {kind} | {len(trace.routers)} | {size:.0f} M | {plain:.0f} | {recorded:.0f} | {ratio} |", flush=True)
        lines.append(f"{kind} ({len(trace.routers)} routers, {size:.0f} M) {ratio}")
    print(
        f"\nFor docs/benchmarks.md: generation while recording every router, against plain, {args.device}, batch "
        f"{args.batch}, {args.tokens} tokens: {'; '.join(lines)}; goal at most 1.05."
    )


if __name__ == "__main__":
    main()
