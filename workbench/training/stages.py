"""What a curriculum must offer, and its stages made ready to train on."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from workbench.errors import ConfigError
from workbench.training.adalora import allocator_of
from workbench.training.encode import Encoded, encode
from workbench.training.settings import TrainSettings

TENSORS = "curriculum.safetensors"


class Curriculum(Protocol):
    """Stages in their order; a list of stages is one too.

    A stage is any object with `name` and `examples`, and where it differs from the run's settings `steps` or `epochs`,
    `lr`, `lr_scales` (pattern of a trained weight's name to a factor of its learning rate; 0 freezes it, and the last
    pattern that fits counts), `shuffle` (False takes the examples in their order, so that any pacing can be written as
    a sequence) and `done`: called with the stage's history rows after each evaluation, it ends the stage by returning
    True; it must depend on these rows alone. Each stage has an optimiser and a learning rate schedule of its own.

    A list's stages are all read and checked before training. Any other iterable is asked for the next stage when the
    one before is over, so that what was learned meanwhile may shape it. Where it has `state_dict()` (JSON) and
    `load_state_dict(state)`, its state is saved with each checkpoint; on resume its stages are asked for again from the
    first, and the state of each stage's end is put back after that stage was asked for. What `state_tensors()` returns,
    where it has that, is saved beside it as safetensors and given to `load_state_dict(state, tensors)`. Where it has
    `extra_losses` or `on_batch`, `train` calls them unless it was given others.
    """

    def __iter__(self) -> Iterator[Any]:
        """Return the stages in order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """One stage, ready to train on.

    Args:
        name: Its name, `""` without a curriculum.
        data: Its examples.
        steps: Optimiser steps.
        lr: Peak learning rate.
        lr_scales: Pattern of a trained weight's name to the factor of its learning rate; 0 freezes it.
        shuffle: Whether the order of examples is drawn.
        done: Ends the stage early; None never does.
    """

    name: str
    data: Encoded
    steps: int
    lr: float
    lr_scales: Mapping[str, float]
    shuffle: bool
    done: Callable[[list[dict[str, Any]]], bool] | None

    def identity(self) -> dict[str, Any]:
        """Return what the stage's result depends on."""
        scaled = {"lr_scales": dict(self.lr_scales)} if self.lr_scales else {}
        return {
            "name": self.name, "data": self.data.digest, "steps": self.steps, "lr": self.lr, "shuffle": self.shuffle
        } | scaled  # fmt: skip

    def scales(self, model: torch.nn.Module) -> dict[str, float]:
        """Return each trained weight's factor of the learning rate.

        Raises:
            ConfigError: A pattern names no trained weight, all are frozen, or AdaLoRA is to move ranks of frozen ones.
        """
        scales = {name: 1.0 for name, tensor in model.named_parameters() if tensor.requires_grad}
        for pattern, scale in self.lr_scales.items():
            found = fnmatch.filter(scales, pattern)
            if not found:
                raise ConfigError(
                    f"lr_scales of stage {self.name!r} has {pattern!r}, which names no trained weight; they are called "
                    f"like {next(iter(scales), None)!r}, and * stands for any part"
                )
            scales |= dict.fromkeys(found, scale)
        if scales and not any(scales.values()):
            raise ConfigError(f"lr_scales of stage {self.name!r} freezes every weight; leave at least one above 0")
        if 0 in scales.values() and allocator_of(model) is not None:
            raise ConfigError(
                f"lr_scales of stage {self.name!r} freezes weights of an AdaLoRA adapter, whose ranks follow the "
                "gradients of all; use factors above 0, or LoRA"
            )
        return scales


def save_curriculum(curriculum: Any, checkpoint: Path) -> Any:
    """Write a curriculum's tensors into a checkpoint, and return the rest of its state for the checkpoint's JSON."""
    tensors = curriculum.state_tensors() if hasattr(curriculum, "state_tensors") else {}
    if tensors:
        save_file({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, checkpoint / TENSORS)
    return curriculum.state_dict() if hasattr(curriculum, "state_dict") else None


def load_curriculum(curriculum: Any, state: Any, checkpoint: Path) -> None:
    """Bring a curriculum back to a checkpoint; `state` is what `save_curriculum` returned."""
    if hasattr(curriculum, "state_tensors"):
        path = checkpoint / TENSORS
        curriculum.load_state_dict(state, load_file(path) if path.is_file() else {})
    elif state is not None:
        curriculum.load_state_dict(state)


def make_parts(
    model: Any, tokenizer: Any, examples: Any, curriculum: Any, settings: TrainSettings, processes: int
) -> Iterable[Part]:
    """Return the parts of a run, all at once where they can be known before training.

    Args:
        model: For its context length.
        tokenizer: Its tokenizer.
        examples: Examples of a run without curriculum; else None.
        curriculum: See `Curriculum`; else None.
        settings: The run's settings.
        processes: How many processes train side by side.

    Raises:
        ConfigError: Both or neither of examples and curriculum are given, or a stage's numbers break a rule.
        DataError: As in `encode`.
    """
    if (examples is None) == (curriculum is None):
        raise ConfigError("give either examples or a curriculum: one of them says what to train on")
    if curriculum is not None and not isinstance(curriculum, Sequence):
        return (_part(model, tokenizer, stage, settings, processes) for stage in curriculum)
    stages = [SimpleNamespace(name="", examples=examples)] if curriculum is None else curriculum
    parts = [_part(model, tokenizer, stage, settings, processes) for stage in stages]
    if not parts:
        raise ConfigError("the curriculum has no stage; it needs at least one")
    return parts


def _part(model: Any, tokenizer: Any, stage: Any, settings: TrainSettings, processes: int) -> Part:
    name = str(stage.name)
    data = encode(
        model,
        tokenizer,
        stage.examples,
        max_length=settings.max_length,
        too_long=settings.too_long,
        name=f"examples of stage {name!r}" if name else "examples",
    )
    steps, epochs, lr = (getattr(stage, key, None) for key in ("steps", "epochs", "lr"))
    if steps is None and epochs is None:
        steps, epochs = settings.steps, settings.epochs
    TrainSettings(steps=steps, epochs=epochs, lr=settings.lr if lr is None else lr)
    if steps is None:
        batches = math.ceil(math.ceil(len(data.ids) / settings.batch_size) / processes)
        steps = max(1, round((epochs or 1) * math.ceil(batches / settings.gradient_accumulation_steps)))
    return Part(
        name=name,
        data=data,
        steps=int(steps),
        lr=settings.lr if lr is None else lr,
        lr_scales=getattr(stage, "lr_scales", None) or {},
        shuffle=getattr(stage, "shuffle", True),
        done=getattr(stage, "done", None),
    )
