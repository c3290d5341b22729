"""Read a saved PEFT adapter as weight updates: LoRA, rsLoRA, DoRA and AdaLoRA, tensor by tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.deltas.files import open_adapter
from workbench.deltas.terms import Dense, Factors, Term, wide
from workbench.deltas.weights import Weights
from workbench.errors import MergeError, ModelError

_PART = re.compile(r"(.+)\.lora_(A|B|E|embedding_A|embedding_B|magnitude_vector)(?:\.(weight|bias))?")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    """The tensors that an adapter has for one module, by their short names (A, B, B.bias, E, m)."""

    adapter: str
    module: str
    parts: Mapping[str, Tensor]
    config: Mapping[str, Any]
    base: Weights

    @property
    def weight(self) -> str:
        return f"{self.module}.weight"

    @property
    def transposed(self) -> bool:
        return "embedding_A" in self.parts or self.module in self.base.transposed

    def part(self, name: str) -> Tensor:
        if name not in self.parts:
            raise ModelError(
                f"{self.adapter!r} has no tensor lora_{name} for {self.module!r}; it holds "
                f"{', '.join(f'lora_{part}' for part in sorted(self.parts))}. Save the whole adapter again."
            )
        return self.parts[name]


def read_adapter(folder: Path, base: Weights) -> dict[str, tuple[Term, ...]]:
    """Return what an adapter adds to each tensor of its base.

    LoRA adds s B A with s = alpha / r, or alpha / sqrt(r) for rsLoRA. DoRA makes the weight m (W + s B A) / n with
    n the norm of each output's row of W + s B A; so it adds (m/n - 1) W + (m/n) s B A. AdaLoRA adds
    alpha / (init_r + 1e-5) B (E A), with the rank that pruning left. `lora_bias` adds s b to the bias;
    `modules_to_save` and trained biases add their difference to the base's tensor.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors, as PEFT saves them.
        base: The model that it was trained on; DoRA and replaced tensors are read from it.

    Returns:
        Tensor name of the base to the terms of its update.

    Raises:
        ModelError: The adapter cannot be read, lacks a tensor, holds NaN, or is of a kind that is no weight update.
        MergeError: It does not fit the base.

    Source: LoRA (arXiv 2106.09685), section 4.1; rsLoRA (arXiv 2312.03732), equation 4; DoRA (arXiv 2402.09353),
    equation 5; AdaLoRA (arXiv 2303.10512), equation 3.
    Deviates: AdaLoRA is scaled by the rank before pruning, as PEFT does it.
    """
    config, tensors = open_adapter(folder)
    layers: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.")
        match = _PART.fullmatch(name)
        if match:
            part = "B.bias" if match[3] == "bias" else match[2]
            layers.setdefault(match[1], {})[part] = tensor
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    updates: dict[str, tuple[Term, ...]] = {}
    for module, parts in layers.items():
        layer = _Layer(adapter=str(folder), module=module, parts=parts, config=config, base=base)
        updates |= _layer_updates(layer)
    for name, tensor in replaced.items():
        _check_place(str(folder), base.first(name), tuple(tensor.shape), config, base)
        before = base.read(base.first(name))
        # PEFT also saves embeddings that were not trained.
        if not torch.equal(tensor.to(before.device, before.dtype), before):
            _check_tied(str(folder), name, base)
            updates[name] = (*updates.get(name, ()), Dense(read=partial(change, tensor.clone, base, name)))
    _check_complete(str(folder), set(layers) | {name.rpartition(".")[0] for name in replaced}, config, base)
    return updates


def change(after: Any, base: Weights, name: str) -> Tensor:
    """Return after() - base, at least in float32, on the base's device."""
    before = wide(base.read(name))
    return wide(after()).to(before.device) - before


def _layer_updates(layer: _Layer) -> dict[str, tuple[Term, ...]]:
    left, right, scale = _product(layer)
    _check_tied(layer.adapter, layer.weight, layer.base)
    rows, columns = left.shape[0], right.shape[1]
    stored = (columns, rows) if layer.transposed else (rows, columns)
    _check_place(layer.adapter, layer.weight, stored, layer.config, layer.base)
    updates: dict[str, tuple[Term, ...]] = {}
    if layer.config.get("use_dora"):
        updates[layer.weight] = _dora(layer, left, right, scale)
    else:
        updates[layer.weight] = (_factors(layer, left, right, scale),)
    if "B.bias" in layer.parts:
        bias = layer.parts["B.bias"]
        _check_place(layer.adapter, f"{layer.module}.bias", tuple(bias.shape), layer.config, layer.base)
        updates[f"{layer.module}.bias"] = (Dense(read=bias.clone, scale=scale),)
    return updates


def _product(layer: _Layer) -> tuple[Tensor, Tensor, float]:
    """Return B, A and s, for an update s B A of a weight seen as `(out, in)`."""
    config = layer.config
    kind = "embedding_" if any(part.startswith("embedding") for part in layer.parts) else ""
    left, right = layer.part(f"{kind}B"), layer.part(f"{kind}A")
    rank = right.shape[0]
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != rank:
        raise ModelError(
            f"{layer.adapter!r} has lora_{kind}B of shape {tuple(left.shape)} and lora_{kind}A of shape "
            f"{tuple(right.shape)} for {layer.module!r}; they must be (out, r) and (r, in). Only linear and embedding "
            "layers are read; save the whole adapter again if it was cut."
        )
    if config["peft_type"] == "ADALORA":
        singular = layer.part("E")
        if singular.shape != (rank, 1):
            raise ModelError(
                f"{layer.adapter!r} has lora_E of shape {tuple(singular.shape)} for {layer.module!r}, whose lora_A has "
                f"rank {rank}; it must be ({rank}, 1). Save the whole adapter again."
            )
        return left, wide(right) * wide(singular), float(config["lora_alpha"]) / (float(config["init_r"]) + 1e-5)
    expected = _by_pattern(config.get("rank_pattern"), layer.module, config["r"])
    if rank != expected:
        raise ModelError(
            f"{layer.adapter!r} has rank {rank} for {layer.module!r}, its adapter_config.json says {expected}; the "
            "scale follows from the rank. Copy both files from the same adapter."
        )
    alpha = _by_pattern(config.get("alpha_pattern"), layer.module, config["lora_alpha"])
    return left, right, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: float) -> float:
    # PEFT's rule: the first pattern that is the name, or the end of it after a dot, as a regular expression.
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _factors(layer: _Layer, left: Tensor, right: Tensor, scale: float) -> Factors:
    if layer.transposed:
        return Factors(left=right.T, right=left.T, scale=scale)
    return Factors(left=left, right=right, scale=scale)


def _dora(layer: _Layer, left: Tensor, right: Tensor, scale: float) -> tuple[Term, ...]:
    weight = wide(layer.base.read(layer.weight))
    weight = weight.T if layer.transposed else weight
    left, right = wide(left).to(weight.device), wide(right).to(weight.device)
    norms = torch.linalg.vector_norm(weight + scale * (left @ right), dim=1)
    magnitude = wide(layer.part("magnitude_vector")).flatten().to(weight.device)
    if magnitude.shape != norms.shape:
        raise ModelError(
            f"{layer.adapter!r} has {len(magnitude)} magnitudes for {layer.module!r}, which has {len(norms)} outputs; "
            "DoRA has one for each. Save the whole adapter again."
        )
    gain = (magnitude / norms)[:, None]
    if not torch.isfinite(gain).all():
        raise MergeError(
            f"Row {int((~torch.isfinite(gain)).nonzero()[0, 0])} of {layer.weight!r} has norm 0 or NaN in "
            f"{layer.base.label!r} with the adapter {layer.adapter!r}; DoRA divides by it. Use the base that the "
            "adapter was trained on."
        )
    rest = (gain - 1).T if layer.transposed else gain - 1
    return (
        _factors(layer, gain * left, right, scale),
        Dense(read=partial(_gained, rest, layer.base, layer.weight)),
    )


def _gained(gain: Tensor, base: Weights, name: str) -> Tensor:
    return gain * wide(base.read(name))


def _trained_on(config: Mapping[str, Any]) -> str:
    name = config.get("base_model_name_or_path")
    return f" It was trained on {name!r}." if name else ""


def _check_place(adapter: str, name: str, shape: tuple[int, ...], config: Mapping[str, Any], base: Weights) -> None:
    if name not in base.shapes:
        reason = ""
        if name.endswith(".bias") and name.replace(".bias", ".weight") in base.shapes:
            reason = " A bias cannot be added to a layer that has none."
        raise MergeError(
            f"The adapter {adapter!r} changes tensor {name!r}, which {base.label!r} does not have.{reason}"
            f"{_trained_on(config)} Pass that base, as the bare transformers model or its folder."
        )
    if base.shapes[name] != shape:
        raise MergeError(
            f"The adapter {adapter!r} is for a tensor {name!r} of shape {shape}, in {base.label!r} it has shape "
            f"{base.shapes[name]}.{_trained_on(config)} Pass that base; where tokens were added, resize its embeddings "
            "first."
        )


def _check_complete(adapter: str, found: set[str], config: Mapping[str, Any], base: Weights) -> None:
    """Refuse a file that lacks layers which its configuration names, where the configuration says so plainly."""
    targets = config.get("target_modules")
    excluding = any(config.get(key) is not None for key in ("layers_to_transform", "exclude_modules"))
    if excluding or not isinstance(targets, list):
        return
    saved = tuple(config.get("modules_to_save") or ())
    for module in (name.removesuffix(".weight") for name in base.shapes if name.endswith(".weight")):
        targeted = any(module == target or module.endswith(f".{target}") for target in targets)
        if targeted and module not in found and not any(part in saved for part in module.split(".")):
            raise ModelError(
                f"{adapter!r} has no tensors for {module!r}, which its adapter_config.json targets."
                f"{_trained_on(config)} Copy the whole adapter, or pass the base that it was trained on."
            )


def _check_tied(adapter: str, name: str, base: Weights) -> None:
    others = [other for other in base.tied.get(name, ()) if other != name]
    if others:
        raise MergeError(
            f"The adapter {adapter!r} changes {name!r}, which is one tensor with {others[0]!r} in {base.label!r}; PEFT "
            "changes only one of the two. Save the base untied first: tie_word_embeddings=False, with a copy of the "
            "embedding as lm_head."
        )
