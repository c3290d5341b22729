"""The numbers of a training run, and the protocol of what happens in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from workbench.errors import ConfigError, WorkbenchError

SCHEDULES = ("linear", "cosine", "constant")
TRAINERS = ("transformers", "trl")
OPTIMIZERS = ("adamw", "adamw_8bit")
_FREE = ("eval_every", "save_every", "save_total_limit", "log_every")
_AT_LEAST_ONE = ("steps", "epochs", "batch_size", "gradient_accumulation_steps", "max_length", *_FREE)


class TrainingFailed(WorkbenchError):
    """The loss or a gradient is no longer a number; the last good checkpoint is kept."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train; the last four arguments may change when a run is resumed, the others may not.

    Args:
        steps: Optimiser steps; a curriculum's stage may say its own.
        epochs: Passes over the examples where `steps` is not given; 1 where neither is.
        batch_size: Examples of one forward on one device.
        gradient_accumulation_steps: Batches of one optimiser step.
        lr: Peak learning rate of AdamW, above 0.
        schedule: What follows the warm-up: `linear` or `cosine` decay to 0, or `constant`.
        warmup: Share of the steps in which the learning rate rises from 0, at least 0 and below 1.
        weight_decay: AdamW's decoupled decay, at least 0.
        max_grad_norm: Gradients of a larger norm are scaled down to it; above 0.
        seed: Of a fresh adapter's numbers, the order of examples and dropout.
        max_length: Most tokens of an example with its answer; None takes the model's context.
        too_long: `error` refuses data with longer examples, `drop` leaves those out and names them.
        bf16: Compute in bfloat16 (autocast); None does so where the model's weights are bfloat16.
        gradient_checkpointing: Recompute activations in the backward pass (non-reentrant) to save memory.
        optimizer: `adamw`, or `adamw_8bit`, whose state takes about a quarter of the bytes (bitsandbytes, on a GPU).
        trainer: `transformers` (its Trainer) or `trl` (SFTTrainer); both see the same labels.
        eval_every: Steps between two evaluations; None makes about ten in a stage.
        save_every: Steps between two checkpoints; None makes about ten in a stage.
        save_total_limit: Most checkpoints of a stage to keep, the newest; None keeps all.
        log_every: Steps between two rows of the history; None makes about a hundred in a stage.

    Raises:
        ConfigError: A value is outside what is said above.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    lr: float = 2e-4
    schedule: str = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    max_length: int | None = None
    too_long: str = "error"
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    trainer: str = "transformers"
    eval_every: int | None = None
    save_every: int | None = None
    save_total_limit: int | None = 2
    log_every: int | None = None

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and not (value > 0 if name == "epochs" else value >= 1):
                raise ConfigError(f"{name}={value}: it must be {'above 0' if name == 'epochs' else 'at least 1'}")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"steps={self.steps} and epochs={self.epochs} say the length twice; give one of them")
        if not 0 < self.lr < math.inf or not self.max_grad_norm > 0:
            raise ConfigError(
                f"lr={self.lr}, max_grad_norm={self.max_grad_norm}: both must be above 0, e.g. 2e-4 and 1"
            )
        if not 0 <= self.warmup < 1 or self.weight_decay < 0:
            raise ConfigError(
                f"warmup={self.warmup}, weight_decay={self.weight_decay}: the first is a share of the steps, at least "
                "0 and below 1; the second is at least 0"
            )
        words = {"schedule": SCHEDULES, "trainer": TRAINERS, "optimizer": OPTIMIZERS, "too_long": ("error", "drop")}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; use one of {', '.join(known)}")

    def identity(self) -> dict[str, Any]:
        """Return what the resulting weights depend on."""
        # Runs from before there was a choice of optimiser go on.
        usual = ("optimizer",) if self.optimizer == "adamw" else ()
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_FREE, *usual)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What hooks see of one training batch; its tensors are on the model's device.

    Args:
        stage: Name of the stage, `""` without a curriculum.
        step: The optimiser step that it belongs to, from 1 over all stages.
        ids: Ids of the examples.
        inputs: `input_ids`, `attention_mask` and `labels`, each `(B, T)`, so that `model(**batch.inputs)` works; labels
            are -100 outside answers.
        losses: Mean cross-entropy of each example in nats per answer token, `(B,)`, without gradient.
        logits: What the forward said where an answer token comes next, row by row, `(answer tokens, V)`, with gradient;
            None where the trainer does not show them (TRL's).
    """

    stage: str
    step: int
    ids: tuple[str, ...]
    inputs: Mapping[str, Tensor] = field(repr=False)
    losses: Tensor
    logits: Tensor | None = field(default=None, repr=False)


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Return settings from keyword arguments.

    Raises:
        ConfigError: There is no such setting, a value is out of range, or the optimiser's package is not installed.
    """
    unknown = sorted(set(values) - {f.name for f in fields(TrainSettings)})
    if unknown:
        known = ", ".join(f.name for f in fields(TrainSettings))
        raise ConfigError(f"train has no argument {unknown[0]!r}; its settings are {known}")
    settings = TrainSettings(**values)
    if settings.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ConfigError(
            "optimizer='adamw_8bit' needs bitsandbytes, which is not installed: pip install bitsandbytes (on a machine "
            "with a GPU), or optimizer='adamw'"
        )
    return settings
