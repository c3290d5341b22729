"""What a training step takes, before any weight is loaded: a step of the very model on tensors without content."""

from __future__ import annotations

import copy
import shutil
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory
from peft import AdaLoraConfig, PeftConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from workbench.adapters import auxiliary_losses
from workbench.adapters.lora_moe.queue import _projection
from workbench.errors import ConfigError
from workbench.training.settings import TrainSettings

RESERVE = 0.1
"""Share of the memory that is added for what no tensor shows: libraries, and gaps between tensors."""

_DEPTHS = 2, 4
_BLOCK, _SMALL = 256, 4096  # bitsandbytes: numbers that share a scale, and tensors that stay in 32 bits


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a training run takes on one device.

    Args:
        memory: Bytes by what they hold: weights, adapter, gradients, optimiser, activations (with all that a step
            holds besides, the loss's tables too).
        activations: Bytes of activations by whether they are recomputed (`gradient_checkpointing`).
        parameters: Numbers of the model, its adapter counted.
        trained: Those of them that are trained.
        flops: Operations of matrix products in one optimiser step, recomputed ones counted.
        tokens: Of one optimiser step, padding counted.
        disk: Bytes of what is written: checkpoints and the result.
    """

    memory: Mapping[str, int]
    activations: Mapping[bool, int]
    parameters: int
    trained: int
    flops: int
    tokens: int
    disk: int

    @property
    def total(self) -> int:
        """Bytes of memory, with the reserve."""
        return round(sum(self.memory.values()) * (1 + RESERVE))

    def __str__(self) -> str:
        share = self.trained / max(1, self.parameters)
        lines = [f"{self.parameters:,} parameters, {self.trained:,} trained ({share:.2%})"]
        lines += [f"  {name:<12} {gib(size):>10}" for name, size in self.memory.items()]
        lines += [f"  {'reserve':<12} {gib(self.total - sum(self.memory.values())):>10}  ({RESERVE:.0%}, assumed)"]
        lines += [f"  {'memory':<12} {gib(self.total):>10}", f"  {'disk':<12} {gib(self.disk):>10}"]
        kept, again = (gib(self.activations[which]) for which in (False, True))
        return "\n".join([*lines, f"  activations without gradient checkpointing {kept}, with {again}"])

    def check(self, device: str | torch.device, folder: str | Path) -> None:
        """Compare with what is free: memory of the device, and disk where the folder will be.

        Raises:
            ConfigError: There is too little; the message says of what, how much, and what would help.
        """
        place, where = torch.device(device), Path(folder).expanduser().absolute()
        room = get_max_memory()
        free = room.get(place.index or 0 if place.type == "cuda" else "cpu", 0)
        if self.total > free:
            spared = f" (activations {gib(self.activations[True])}, not {gib(self.memory['activations'])})"
            told = spared if self.activations[True] < self.memory["activations"] else ""
            raise ConfigError(
                f"this needs about {gib(self.total)} of memory and {place} has {gib(free)} free; take a smaller "
                f"batch_size with more gradient_accumulation_steps, or gradient_checkpointing=True{told}"
            )
        there = next(path for path in (where, *where.parents) if path.exists())
        if self.disk > (left := shutil.disk_usage(there).free):
            raise ConfigError(
                f"this writes about {gib(self.disk)} and {there} has {gib(left)} free; free some space, choose another "
                "folder, or keep fewer checkpoints (save_total_limit=1)"
            )


def gib(size: float) -> str:
    """Write a number of bytes for a reader."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def estimate_training(
    config: Any,
    adapter: PeftConfig | None = None,
    *,
    length: int,
    dtype: torch.dtype = torch.bfloat16,
    **settings: Any,
) -> Footprint:
    """Estimate memory, work and disk of `train` on one device; no weight is needed and none is made.

    Parameters, gradients and AdamW's state are counted. Activations are the peak of a step on tensors that have shapes
    and no content, by the model's own code, with two and four layers of it and a straight line from there to its own
    depth, so that layers are taken to be alike; all tokens count as answers. The work is counted in the same step.

    Args:
        config: A transformers configuration of a causal or an encoder-decoder model.
        adapter: A PEFT configuration; None trains every weight.
        length: Tokens of each row, padding counted; of encoder and decoder each, where there are two.
        dtype: Of the frozen weights.
        **settings: Of `TrainSettings`; batch_size, gradient_accumulation_steps, gradient_checkpointing, bf16, optimizer
            and save_total_limit count.

    Returns:
        The footprint. What several devices share among them (FSDP) or copy (DDP's buckets) is not in it.

    Raises:
        ConfigError: A setting is out of range, or `length` is below 2.
    """
    chosen = TrainSettings(**settings)
    if length < 2:
        raise ConfigError(f"length={length}: a row has at least 2 tokens, one to read and one to learn")
    whole = _shapes(config, adapter, dtype)
    trained = [tensor for tensor in whole.parameters() if tensor.requires_grad]
    gradients = _bytes(trained)
    held = _bytes([*whole.parameters(), *whole.buffers()])
    ours = gradients if adapter is not None else 0
    state = sum(_state_bytes(tensor, chosen.optimizer) for tensor in trained)
    # AdaLoRA's importance of each number, its mean, and the mean's uncertainty.
    state += 3 * ours if isinstance(adapter, AdaLoraConfig) else 0
    steps = {again: _step(config, adapter, dtype, chosen, length, again) for again in (False, True)}
    kept, work = steps[chosen.gradient_checkpointing]
    memory = {"weights": held - ours, "adapter": ours, "gradients": gradients, "optimiser": state, "activations": kept}
    rows = chosen.batch_size * chosen.gradient_accumulation_steps
    copies = (chosen.save_total_limit or 10) + 1  # one more while the oldest is not yet gone
    return Footprint(
        memory=memory,
        activations={again: peak for again, (peak, _) in steps.items()},
        parameters=sum(tensor.numel() for tensor in whole.parameters()),
        trained=sum(tensor.numel() for tensor in trained),
        flops=work * chosen.gradient_accumulation_steps,
        tokens=rows * length,
        disk=gradients + copies * (gradients + state),
    )


def matmul_rate(device: str | torch.device, dtype: torch.dtype = torch.bfloat16, seconds: float = 0.5) -> float:
    """Measure how many operations a second this device does in a large matrix product, the best of several."""
    place = torch.device(device)
    size = 8192 if place.type == "cuda" else 1024
    left = torch.randn(size, size, device=place, dtype=dtype)
    best, ends = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < ends:
        began = time.perf_counter()
        left @ left
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def _shapes(config: Any, adapter: PeftConfig | None, dtype: torch.dtype) -> Any:
    """Return the model without content, as `train` makes it."""
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    chosen: Any = copy.deepcopy(adapter)
    if isinstance(chosen, AdaLoraConfig):
        chosen.total_step = chosen.total_step or 10**9
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        model: Any = kind.from_config(config, dtype=dtype, trust_remote_code=False)
        return model.train() if chosen is None else get_peft_model(model, chosen).train()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_bytes(tensor: Tensor, optimizer: str) -> int:
    """AdamW keeps two numbers for each trained one and counts its steps."""
    if optimizer == "adamw_8bit":
        size = tensor.numel()
        return 2 * (size + 4 * -(-size // _BLOCK)) if size >= _SMALL else 8 * size
    return 2 * tensor.numel() * tensor.element_size() + 4


def _step(
    config: Any, adapter: Any, dtype: torch.dtype, settings: TrainSettings, length: int, again: bool
) -> tuple[int, int]:
    """Return the peak of bytes beside the weights, and the operations, of one batch's forward and backward."""
    depth = config.num_hidden_layers
    found = [
        _measured(_shapes(_cut(config, layers), adapter, dtype), settings, length, again, dtype)
        for layers in sorted({min(layers, depth) for layers in _DEPTHS})
    ]
    (kept, peak, work), more = found[-1], max(0, depth - _DEPTHS[1]) / (_DEPTHS[1] - _DEPTHS[0])
    # What the forward leaves is a straight line in the depth; the peak is not where it lies at different places.
    return round(peak + more * (kept - found[0][0])), round(work + more * (work - found[0][2]))


def _cut(config: Any, layers: int) -> Any:
    """Return the same model with fewer layers."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = layers
    if getattr(cut, "num_decoder_layers", None):
        cut.num_decoder_layers = layers
    if getattr(cut, "layer_types", None):
        cut.layer_types = cut.layer_types[:layers]
    return cut


def _measured(model: Any, settings: TrainSettings, length: int, again: bool, dtype: torch.dtype) -> tuple[int, ...]:
    """Return the bytes that a forward leaves for the backward, the peak of both, and their operations."""
    if again:
        # Random numbers have no state here to be kept.
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    half = settings.bf16 if settings.bf16 is not None else dtype is torch.bfloat16
    with _without_content(model) as known, _Watch(known) as watch:
        ids = torch.zeros(settings.batch_size, length, dtype=torch.long)
        decoded = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(input_ids=ids, use_cache=False, **decoded).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss = sum(auxiliary_losses(model).values(), loss)
        kept = watch.now
        loss.backward()
    return kept, watch.peak, watch.flops


@contextmanager
def _without_content(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a model, and its gradients, tensors that have shapes alone, say they are on a CPU, and do all it does."""
    made: dict[int, Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for held in (part for module in model.modules() for part in (module._parameters, module._buffers)):
            for name, old in held.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                held[name] = old if old is None else made[id(old)]  # pyright: ignore[reportArgumentType]
        for tensor in (trained := [tensor for tensor in model.parameters() if tensor.requires_grad]):
            tensor.grad = torch.empty_like(tensor)  # of the batch before, so that the peak is that of all else
        try:
            yield [*made.values(), *(tensor.grad for tensor in trained if tensor.grad is not None)]
        finally:
            _projection.cache_clear()  # it would hand a matrix without content to the next training


class _Watch(TorchDispatchMode):
    """Count the bytes that live beside what is known already, and the operations of matrix products."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := (store := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = store.nbytes()
                self.now += self.sizes[key]
                self.peak = max(self.peak, self.now)
                weakref.finalize(store, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)
