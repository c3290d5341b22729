"""What lies in a run's folder: who it belongs to, and checkpoints that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from workbench.errors import ConfigError
from workbench.ops.processes import sharded
from workbench.training.adalora import allocation, restore_allocation

RUN, HISTORY, MARK, STATE = "run.json", "history.jsonl", "checkpoint.json", "training_state.safetensors"


def write_json(path: Path, value: Any) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1, default=_plain), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def claim(folder: Path, identity: dict[str, Any], *, resume: bool) -> dict[str, Any]:
    """Take a folder for a run, or find the same run in it.

    Args:
        folder: The run's folder.
        identity: What the result depends on.
        resume: Whether an earlier run may go on.

    Returns:
        The run's record: `identity`, and `stages`, a list of what was begun.

    Raises:
        ConfigError: The folder holds another run, or this one and `resume` is False, or other files.
    """
    identity = json.loads(json.dumps(identity, default=_plain))
    record = read_json(folder / RUN)
    if record is None:
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise ConfigError(f"{folder} holds files and no run; choose a new folder as output_dir")
        return {"identity": identity, "stages": []}
    if not resume:
        raise ConfigError(f"{folder} holds a run already; pass resume=True to go on with it, or a new output_dir")
    check_same(folder, record["identity"], identity)
    return record


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any], where: str = "") -> None:
    """Refuse to go on with a run under other settings.

    Raises:
        ConfigError: Something differs; the message names it with both values.
    """
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            check_same(folder, old, new, f"{where}{key}.")
        elif old != new:
            raise ConfigError(
                f"{folder} holds a run with {where}{key}={_short(old)}, and this one has {_short(new)}; "
                "resume with the same settings and data, or choose a new output_dir"
            )


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a stage; half-written ones do not count."""
    return next(reversed(checkpoints(folder)), None)


def checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints of a stage, the newest last."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / MARK).is_file()]
    return sorted(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def remove_broken(folder: Path) -> None:
    """Remove checkpoints that were being written when the process ended."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARK).is_file():
            shutil.rmtree(path)


def trained_state(model: Any) -> dict[str, Tensor]:
    """Return what a checkpoint of transformers leaves out of an adapter: pruned ranks, their importance, and queues.

    Every trained tensor and every buffer of the adapter is there as it is, AdaLoRA's allocator with them; nothing for a
    model without adapter. As in `full_state`, every process must call it.
    """
    if not isinstance(model, PeftModel):
        return {}
    return {f"model/{name}": tensor for name, tensor in _own(model).items()} | allocation(model)


def save_state(tensors: dict[str, Tensor], checkpoint: Path) -> None:
    """Save what `trained_state` returned."""
    if tensors:
        # Views and tied tensors share storage, which the format refuses.
        whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, checkpoint / STATE)


def full_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a model's state; of a sharded one process 0 gets it whole and others nothing, so that all must call it.

    What an adapter leaves frozen is not put together.
    """
    if not sharded(model):
        return model.state_dict()
    adapted = isinstance(model, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted)
    state: Any = get_model_state_dict(model, options=options)
    return state


def load_state(model: PeftModel, checkpoint: Path) -> None:
    """Bring an adapter back to a checkpoint, bit for bit."""
    saved = load_file(checkpoint / STATE)
    own: Any = {name.removeprefix("model/"): t for name, t in saved.items() if name.startswith("model/")}
    if sharded(model):
        set_model_state_dict(model, own, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        model.load_state_dict(own, strict=False)
    restore_allocation(model, saved, next(model.parameters()).device)


def model_digest(model: torch.nn.Module) -> str:
    """Hash the names and shapes of all weights and the first numbers of each, to tell models apart quickly."""
    named = sorted(model.named_parameters())
    heads = torch.cat([tensor.detach().reshape(-1)[:64].float() for _, tensor in named])
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in named])
    return hashlib.sha256(shapes.encode() + heads.cpu().numpy().tobytes()).hexdigest()


def _own(model: PeftModel) -> dict[str, Tensor]:
    prefix = getattr(model.base_model, "prefix", None)
    names = {name for name, tensor in model.named_parameters() if tensor.requires_grad}
    names |= {name for name, _ in model.named_buffers() if prefix and prefix in name}
    # Asked for its state, an adapter settles what it has put off, as queues do.
    return {name: tensor for name, tensor in full_state(model).items() if name in names}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
