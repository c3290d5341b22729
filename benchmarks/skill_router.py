"""Time a bank of frozen skills against one LoRA of the summed rank, a loop over the skills, and PEFT's own adapters.

    python benchmarks/skill_router.py --threads 1                        # classroom size and 84 M weights, on a CPU
    python benchmarks/skill_router.py --device cuda --sizes 1b 8b        # in bfloat16

A random Llama model and twelve random skills of rank 4 beside all linear layers of its decoder, against a LoRA of rank
48. The loop runs each skill's A and B by itself, twelve pairs of products a layer; PEFT's own arm is a model with the
twelve adapters active at once. Every round times each arm once, in turn, so that a busy machine hurts all alike; the
ratios are medians over the rounds' own ratios, with the smallest and largest. With one CPU thread it is the CPU time
that is taken, which neighbours on the machine change least; else the wall's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.adapters import SkillRouterConfig, auxiliary_losses, set_skill_weights
from workbench.adapters.skill_router.layer import SkillRouterLayer

SIZES = {
    "classroom": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4, "vocab_size": 1024},
    "84m": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 14, "vocab_size": 16000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000},
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAIRS = {
    "forward: static router / LoRA": ("forward", "static router", "LoRA", "<= 1.30"),
    "forward: input gate / LoRA": ("forward", "input gate", "LoRA", "<= 1.30"),
    "forward: loop / static router": ("forward", "loop", "static router", "-"),
    "forward: PEFT's adapters / static router": ("forward", "PEFT's adapters", "static router", "-"),
    "train: static router / LoRA": ("train", "static router", "LoRA", "-"),
    "train: loop / static router": ("train", "loop", "static router", "-"),
}


class LoopLayer(SkillRouterLayer):
    """Each skill by itself: its A, its B, its weight."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return what the bank returns, up to rounding."""
        result, config = self.base_layer(x, *args, **kwargs), self.settings["default"]
        weights = self.leaders["default"].skill_router_gate["default"]()
        rank = len(self.skill_router_A["default"]) // len(config.skills)
        x = x.to(self.skill_router_A["default"].dtype)
        downs = self.skill_router_A["default"].split(rank)
        for weight, down, up in zip(weights, downs, self.skill_router_B["default"].split(rank, dim=1)):
            result = (result + linear(linear(x, down), up) * weight).to(result.dtype)
        return result


def shared_copy(base: LlamaForCausalLM) -> LlamaForCausalLM:
    return copy.deepcopy(base, {id(tensor): tensor for tensor in base.parameters()})


def lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, task_type="CAUSAL_LM")


def make_skills(base: LlamaForCausalLM, root: Path, count: int, rank: int) -> dict[str, str]:
    folders = {}
    for number in range(count):
        model = get_peft_model(shared_copy(base), lora(rank))
        randomise(model)
        folders[f"skill{number}"] = str(root / f"skill{number}")
        model.save_pretrained(folders[f"skill{number}"])
    return folders


def randomise(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(tensor, std=0.01)


def arms(base: LlamaForCausalLM, folders: dict[str, str], rank: int) -> dict[str, nn.Module]:
    """Every arm has a base of its own, which shares its weights with the others."""

    def router(gate: str) -> nn.Module:
        return get_peft_model(shared_copy(base), SkillRouterConfig(skills=folders, gate=gate, initial_weights=1.0))

    found: dict[str, nn.Module] = {"LoRA": get_peft_model(shared_copy(base), lora(rank * len(folders)))}
    randomise(found["LoRA"])
    found |= {"static router": router("static"), "input gate": router("input"), "loop": router("static")}
    for module in found["loop"].modules():
        if isinstance(module, SkillRouterLayer):
            module.__class__ = LoopLayer
    (first, folder), *others = folders.items()
    found["PEFT's adapters"] = PeftModel.from_pretrained(shared_copy(base), folder, first)
    for name, folder in others:
        found["PEFT's adapters"].load_adapter(folder, name)
    found["PEFT's adapters"].base_model.set_adapter(list(folders))
    return found


@torch.no_grad()
def check(models: dict[str, nn.Module], device: torch.device) -> None:
    """Stop where the arms with these skills do not compute the same."""
    ids = torch.arange(3, 19, device=device)[None]
    wanted, *others = (
        models[name].eval()(input_ids=ids).logits.float()
        for name in ("static router", "input gate", "loop", "PEFT's adapters")
    )
    assert all((wanted - other).abs().max() <= 0.05 * wanted.abs().max() for other in others)


def reader(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    def read() -> None:
        with torch.no_grad():
            model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))

    return read


def stepper(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-5)

    def step() -> None:
        loss = model.train()(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss
        (loss + sum(auxiliary_losses(model).values())).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


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
    with tempfile.TemporaryDirectory() as root:
        folders = make_skills(base, Path(root), options.skills, options.rank)
        models = arms(base, folders, options.rank)
    check(models, device)
    ids = torch.randint(3, config.vocab_size, (options.batch, options.tokens), device=device)
    times = {"forward": timed({name: reader(model, ids) for name, model in models.items()}, options.rounds, device)}
    learning = {name: stepper(models[name], ids) for name in ("LoRA", "static router", "loop")}
    times["train"] = timed(learning, options.rounds, device)
    for kind, told in times.items():
        for name, seconds in told.items():
            print(f"  {kind}, {name}: {statistics.median(seconds) * 1e3:.1f} ms")
    moves = timed({"move": lambda: set_skill_weights(models["static router"], {"skill0": 0.5})}, 20, device)
    print(f"  set_skill_weights: {statistics.median(moves['move']) * 1e3:.2f} ms")
    return {
        name: [mine / peer for mine, peer in zip(times[kind][one], times[kind][other])]
        for name, (kind, one, other, _) in PAIRS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["classroom", "84m"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skills", type=int, default=12)
    parser.add_argument("--rank", type=int, default=4, help="of each skill")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # PEFT warns of its own names, and of several adapters on one base.
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device(options.device)
    found = {size: measure(size, options, device) for size in options.sizes}
    print("\n| ratio | goal |" + "".join(f" {size} |" for size in found) + "\n|---|---|" + "---|" * len(found))
    for name, (*_, goal) in PAIRS.items():
        cells = (found[size][name] for size in found)
        shown = (f" {statistics.median(cell):.2f} ({min(cell):.2f} to {max(cell):.2f}) |" for cell in cells)
        print(f"| {name} | {goal} |" + "".join(shown))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{options.threads} CPU threads"
    last = options.sizes[-1]
    ratios = ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in found[last].items())
    setting = (
        f"{options.skills} skills of rank {options.rank}, {last}, {options.batch} x {options.tokens} tokens, {where}"
    )
    print(f"\ndocs/benchmarks.md: skill router, {setting}, torch {torch.__version__}: {ratios}")


if __name__ == "__main__":
    main()
