"""Memory of a training step, with the expert memory queue and with the contrast within the batch.

    python benchmarks/routing_memory.py                                  # on a CPU
    python benchmarks/routing_memory.py --device cuda --hidden 4096 --tokens 1024 --batches 1 2 4 8 16

A stack of linear layers with a mixture each, trained for three steps; what is told is what a step takes beyond the same
step without a contrast. `outputs` is the contrast within the batch as it is usually written, which forms every expert's
output for every token; `in_batch` is ours, which needs their dot products only. On a GPU it is the allocator's peak; on
a CPU, where a process's peak moves with the allocator by more than that, all tensors that the graph holds when the
backward begins, at which moment the peak is, and the queues.
"""

from __future__ import annotations

import argparse

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.functional import normalize

from workbench.adapters import LoraMoeConfig, auxiliary_losses
from workbench.adapters.lora_moe.layer import LoraMoeLayer
from workbench.ops.routing import in_batch_contrastive

KINDS = ("none", "queue", "in_batch", "outputs")


class Stack(nn.Module):
    """Linear layers of one width, each with what passes by it."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return what comes out, of the shape of x."""
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x


def written_out(layer: LoraMoeLayer) -> Tensor:
    """Return the contrast of a layer's last forward over outputs that are formed, `(N, E, D)`."""
    note, rank = layer.notes["default"], layer.settings["default"].r
    hidden = nn.functional.linear(layer.seen, layer.lora_moe_A["default"]).unflatten(-1, (-1, rank)).flatten(0, 1)
    outputs = torch.einsum("ner,der->ned", hidden, layer.lora_moe_B["default"].unflatten(1, (-1, rank)))
    units = normalize(outputs, dim=-1)
    present = torch.ones(units.shape[:2], dtype=torch.bool, device=units.device)
    return in_batch_contrastive(units @ units.mT, note.output.selected_experts, present, 0.07)


def train(kind: str, batch: int, options: argparse.Namespace) -> float:
    """Return what three steps take at most, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = LoraMoeConfig(
        target_modules=r"layers\.\d+",
        num_experts=options.experts,
        queue_size=options.queue_size,
        contrastive="in_batch" if kind == "in_batch" else "queue",
        contrastive_loss_coef=0.01 if kind in ("queue", "in_batch") else 0.0,
    )
    with device:
        model = get_peft_model(Stack(options.hidden, options.layers), config).train()
        x = torch.randn(batch, options.tokens, options.hidden)
    mixtures = [module for module in model.modules() if isinstance(module, LoraMoeLayer)]
    for layer in mixtures:
        nn.init.normal_(layer.lora_moe_B["default"], std=0.01)
        layer.register_forward_pre_hook(lambda layer, args: setattr(layer, "seen", args[0]))
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(x).square().mean() + sum(auxiliary_losses(model).values())
            if kind == "outputs":
                loss = loss + 0.01 * torch.stack([written_out(layer) for layer in mixtures]).mean()
        loss.backward()
        model.zero_grad()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return (sum(held.values()) + sum(buffer.nbytes for buffer in model.buffers())) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--queue-size", type=int, default=256)
    options = parser.parse_args()
    kept = options.layers * options.experts * (options.queue_size + 1) * min(128, options.hidden) * 4 / 2**20
    print(f"{options.layers} layers of width {options.hidden}, {options.experts} experts, {options.device}")
    print(f"the queues hold {kept:.1f} MiB, whatever the batch\n")
    print("| sequences | step without contrast, MiB |" + "".join(f" + {kind} |" for kind in KINDS[1:]))
    print("|---|---|" + "---|" * (len(KINDS) - 1))
    for batch in options.batches:
        peaks = {kind: train(kind, batch, options) for kind in KINDS}
        extra = [peaks[kind] - peaks["none"] for kind in KINDS[1:]]
        print(f"| {batch} | {peaks['none']:.0f} |" + "".join(f" {value:.1f} |" for value in extra), flush=True)
    queue, in_batch, outputs = extra
    print(
        f"\ndocs/benchmarks.md: contrast at {options.batches[-1]} x {options.tokens} tokens, {options.layers} layers "
        f"of width {options.hidden}, {device_name(options.device)}: queue +{queue:.1f} MiB, of which the queues are "
        f"{kept:.1f}; within the batch +{in_batch:.1f} MiB, with outputs formed +{outputs:.1f} MiB"
    )


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
