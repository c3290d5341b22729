"""Open the two files of a saved PEFT adapter, and refuse what is no weight update; PEFT itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.errors import ModelError
from workbench.paths import read_json_object

KINDS = ("LORA", "ADALORA")

# Settings under which what is added to a weight is not s B A, or depends on the input.
_NOT_AN_UPDATE = (
    "target_parameters",
    "layer_replication",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
)
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def open_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an adapter's configuration and tensors.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.

    Raises:
        ModelError: A file is missing, damaged or pickle; the kind or a setting is not supported; a tensor holds NaN.
    """
    config = _open_config(folder)
    _check_kind(folder, config)
    return config, _open_tensors(folder)


def _open_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        whole = " It holds a whole model: use Delta.between." if (folder / "config.json").is_file() else ""
        raise ModelError(
            f"{str(folder)!r} has no adapter_config.json; an adapter's folder holds one, as PEFT's save_pretrained "
            f"writes it.{whole or ' Check the path.'}"
        )
    return read_json_object(path)


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise ModelError(
            f"{str(folder)!r} is an adapter of peft_type {kind!r}; those that are read as weight updates are "
            f"{', '.join(KINDS)} (rsLoRA and DoRA are LORA). Merge it into its base with PEFT, save that, and use "
            "Delta.between."
        )
    for key in _NOT_AN_UPDATE:
        if config.get(key):
            raise ModelError(
                f"{str(folder)!r} has {key}={config[key]!r}, under which the adapter is not one low-rank update for "
                "each weight. Where PEFT can merge it, do that, save the model, and use Delta.between."
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        raise ModelError(
            f"{str(folder)!r} has init_lora_weights={start!r}, which changed the base before training, so the adapter "
            "does not fit the base as published. Save it with PEFT's path_initial_model_for_weight_conversion first."
        )
    for key in ("init_r" if kind == "ADALORA" else "r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ModelError(
                f"{str(folder)!r} has {key}={value!r} in adapter_config.json; the scale of the update follows from it "
                "and it must be a number above 0. Copy the configuration that was saved with the adapter."
            )


def _open_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickles = sorted(file.name for end in ("*.bin", "*.pt", "*.pth") for file in folder.glob(end))
        if pickles:
            raise ModelError(
                f"{str(folder)!r} has its tensors only as pickle ({pickles[0]}), which can run code when opened; only "
                "safetensors are read. Where you trust the file, load it with PEFT and save_pretrained it anew."
            )
        raise ModelError(f"{str(folder)!r} has no adapter_model.safetensors. Copy the whole adapter.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is damaged or cut short ({path.stat().st_size:,} bytes; {error}). Copy or download it again."
        ) from error
    if not tensors:
        raise ModelError(f"{path} holds no tensors. Copy the whole adapter, or save it again.")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(
                f"Tensor {name!r} of {str(folder)!r} holds NaN or infinity; every number of an adapter must be finite. "
                "The training diverged, or the file is damaged: use an earlier checkpoint."
            )
    return tensors
