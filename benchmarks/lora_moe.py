"""Time a mixture of LoRA experts against PEFT's LoRA of the same active rank, and against a loop over the experts.

    python benchmarks/lora_moe.py --threads 2                            # classroom size and 84 M weights, on a CPU
    python benchmarks/lora_moe.py --device cuda --sizes 1b 8b            # in bfloat16

Random Llama models; mixtures with r 8 and 2 experts a token beside all linear layers of the decoder, against LoRA of
rank 16. Two loops: over each expert's own tokens, and over all tokens for each expert, as many LoRA mixtures do. Every
round times each arm once, in turn, so that a busy machine hurts all alike; the ratios are medians over the rounds' own
ratios, with the smallest and largest. With one CPU thread it is the CPU time that is taken, which neighbours on the
machine change least; else the wall's. All arms have random B, as after training.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.adapters import LoraMoeConfig, auxiliary_losses
from workbench.adapters.lora_moe.layer import LoraMoeLayer

SIZES = {
    "classroom": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "vocab_size": 1024},
    "84m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 14, "vocab_size": 16000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000},
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, CHOSEN = 8, 2
GOALS = {
    "train: mixture / LoRA": "<= 1.25",
    "train: loop / mixture": ">= 1.50",
    "train: loop over all tokens / mixture": ">= 1.50",
    "train: loop / mixture, both less the frozen model": "-",
    "train: queue / no contrast": "<= 1.10",
    "train: in-batch / no contrast": "-",
    "generate: mixture / LoRA": "<= 1.30",
}


class LoopLayer(LoraMoeLayer):
    """For each expert, pick its tokens, run them through its A and B, and add them back."""

    everywhere = False

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return what the grouped layer returns, up to rounding."""
        result = self.base_layer(x, *args, **kwargs)
        rows, flat = x.flatten(0, -2), result.flatten(0, -2)
        config = self.settings["default"]
        down, up = self.lora_moe_A["default"].split(config.r), self.lora_moe_B["default"].split(config.r, dim=1)
        rows = rows.to(down[0].dtype)
        output = self.lora_moe_router["default"](rows)
        for expert in range(config.num_experts):
            if self.everywhere:
                weight = (output.routing_weights * (output.selected_experts == expert)).sum(-1, keepdim=True)
                made = linear(linear(rows, down[expert]), up[expert]) * config.scaling
                flat = flat + (made * weight.to(made.dtype)).to(flat.dtype)
                continue
            token, place = (output.selected_experts == expert).nonzero(as_tuple=True)
            made = linear(linear(rows[token], down[expert]), up[expert]) * config.scaling
            weighted = made * output.routing_weights[token, place, None].to(made.dtype)
            flat = flat.index_add(0, token, weighted.to(flat.dtype))
        return flat.view(result.shape)


class DenseLoopLayer(LoopLayer):
    """For each expert, run all tokens through its A and B, and add the result times its weight, mostly 0."""

    everywhere = True


def mixture(experts: int, **changes: object) -> LoraMoeConfig:
    settings = {"contrastive_loss_coef": 0.0, "num_experts": experts, "num_experts_per_tok": CHOSEN} | changes
    return LoraMoeConfig(r=RANK, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)


def arms(base: LlamaForCausalLM, experts: int) -> dict[str, nn.Module]:
    """Every arm has a base of its own, which shares its weights with the others."""
    configs = {
        "LoRA": LoraConfig(r=RANK * CHOSEN, target_modules=TARGETS, task_type="CAUSAL_LM"),
        "mixture": mixture(experts),
        "queue": mixture(experts, contrastive_loss_coef=0.01),
        "in-batch": mixture(experts, contrastive_loss_coef=0.01, contrastive="in_batch"),
        "loop": mixture(experts, router_aux_loss_coef=0.0),
        "loop over all tokens": mixture(experts, router_aux_loss_coef=0.0),
    }
    found = {name: get_peft_model(shared_copy(base), config) for name, config in configs.items()}
    for name, kind in (("loop", LoopLayer), ("loop over all tokens", DenseLoopLayer)):
        for module in found[name].modules():
            if isinstance(module, LoraMoeLayer):
                module.__class__ = kind
    for model in found.values():
        for name, tensor in model.named_parameters():
            if "_B" in name:
                nn.init.normal_(tensor, std=0.01)
    return found


def shared_copy(base: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(base, {id(tensor): tensor for tensor in base.parameters()})


@torch.no_grad()
def check(models: dict[str, nn.Module], device: torch.device) -> None:
    """Stop where the loops do not compute what the grouped layer does."""
    ids = torch.arange(3, 19, device=device)[None]
    for name in ("loop", "loop over all tokens"):
        models[name].load_state_dict(models["mixture"].state_dict())
        mine, theirs = (models[kind].eval()(input_ids=ids).logits.float() for kind in ("mixture", name))
        assert (mine - theirs).abs().max() <= 0.05 * mine.abs().max(), name


def stepper(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained or [torch.zeros(1)], lr=1e-5)

    def step() -> None:
        model.train()
        loss = model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss
        loss = loss + sum(auxiliary_losses(model).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generator(model: nn.Module, ids: Tensor, tokens: int) -> Callable[[], None]:
    def run() -> None:
        model.eval()
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return run


def timed(runs: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                times[name].append(clock() - started)
    return times


def measure(size: str, options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=2048, **SIZES[size])
    torch.manual_seed(0)
    with device:
        base = LlamaForCausalLM(config).to(dtype)
    print(f"\n{size}: {sum(tensor.numel() for tensor in base.parameters()) / 1e6:.1f} M weights, {dtype}")
    models = arms(base, options.experts)
    check(models, device)
    frozen = shared_copy(base).requires_grad_(False)
    frozen.enable_input_require_grads()  # a backward goes through it, as through those with adapters
    ids = torch.randint(3, config.vocab_size, (options.batch, options.tokens), device=device)
    steps = {name: stepper(model, ids) for name, model in (models | {"frozen": frozen}).items()}
    train = timed(steps, options.rounds, device)
    some = {name: generator(models[name], ids[:, :32], options.new_tokens) for name in ("LoRA", "mixture")}
    told = timed(some, options.rounds, device)
    for name, seconds in [*train.items(), *((f"generate, {name}", seconds) for name, seconds in told.items())]:
        print(f"  {name}: {statistics.median(seconds) * 1e3:.0f} ms")

    def less(seconds: list[float]) -> list[float]:
        return [mine - bare for mine, bare in zip(seconds, train["frozen"])]

    pairs = {
        "train: mixture / LoRA": (train["mixture"], train["LoRA"]),
        "train: loop / mixture": (train["loop"], train["mixture"]),
        "train: loop over all tokens / mixture": (train["loop over all tokens"], train["mixture"]),
        "train: loop / mixture, both less the frozen model": (less(train["loop"]), less(train["mixture"])),
        "train: queue / no contrast": (train["queue"], train["mixture"]),
        "train: in-batch / no contrast": (train["in-batch"], train["mixture"]),
        "generate: mixture / LoRA": (told["mixture"], told["LoRA"]),
    }
    return {name: [mine / peer for mine, peer in zip(*pair)] for name, pair in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["classroom", "84m"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    found = {size: measure(size, options, device) for size in options.sizes}
    print("\n| ratio | goal |" + "".join(f" {size} |" for size in found) + "\n|---|---|" + "---|" * len(found))
    for name, goal in GOALS.items():
        cells = (found[size][name] for size in found)
        shown = (f" {statistics.median(cell):.2f} ({min(cell):.2f} to {max(cell):.2f}) |" for cell in cells)
        print(f"| {name} | {goal} |" + "".join(shown))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    last = options.sizes[-1]
    ratios = ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in found[last].items())
    setting = f"{options.experts} experts, {last}, {options.batch} x {options.tokens} tokens, {where}"
    print(f"\ndocs/benchmarks.md: LoRA mixture, {setting}, torch {torch.__version__}: {ratios}")


if __name__ == "__main__":
    main()
