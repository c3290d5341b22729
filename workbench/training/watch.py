"""What happens beside the steps of a stage: rank allocation, stop, history, checkpoints that are whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback

from workbench.ops.processes import average
from workbench.training.adalora import allocate, ranks
from workbench.training.encode import Encoded
from workbench.training.resume import (
    MARK,
    checkpoints,
    last_checkpoint,
    save_state,
    trained_state,
    write_json,
)
from workbench.training.routing import RoutingProbe
from workbench.training.settings import Batch
from workbench.training.stages import Part, save_curriculum

_NOISE = ("total_flos", "train_loss", "_runtime", "_per_second", "num_tokens")


@dataclass(frozen=True, kw_only=True, eq=False)
class Hooks:
    """What the user hangs into a run; see `train`."""

    evaluate: Callable[[Any], Mapping[str, Any]] | None = None
    extra_losses: Callable[[Any, Batch], Mapping[str, Tensor]] | None = None
    on_batch: Callable[[Batch], Any] | None = None
    curriculum: Any = None
    validation: Encoded | None = None
    progress: bool = True


class Watch(TrainerCallback):
    """Runs beside one stage.

    Args:
        run: Takes each new row of the history; its stop event ends the stage, with a checkpoint.
        part: The stage.
        offset: Optimiser steps of the stages before it.
        hooks: The user's; a curriculum's state, if it has one, is saved with each checkpoint.
        eval_every: Steps between two calls of the user's measure.
    """

    def __init__(self, run: Any, part: Part, offset: int, hooks: Hooks, *, eval_every: int) -> None:
        self.run, self.part, self.offset, self.hooks, self.eval_every = run, part, offset, hooks, eval_every
        self.rows: list[dict[str, Any]] = []
        self.ended = False
        self.trainer: Any = None
        self.probe = RoutingProbe()

    def last_good(self) -> str:
        """Say where the last good weights are."""
        kept = last_checkpoint(Path(self.trainer.args.output_dir))
        return f"The last good checkpoint is {kept}." if kept else "No checkpoint of this stage was written yet."

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the routers in the steps that are logged."""
        if (state.global_step + 1) % args.logging_steps == 0 or state.global_step == 0:
            self.probe.attach(self.trainer.model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse gradients that are no numbers before they reach the weights."""
        self.probe.detach()
        grads = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        if grads and not bool(torch.isfinite(torch.stack([grad.float().sum() for grad in grads])).all()):
            self.trainer.fail("a gradient is not a number", self.trainer.step_ids)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let AdaLoRA allocate its ranks while the gradients are there."""
        allocate(self.trainer.model, self.trainer.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate where it is due; stop when asked; log before each checkpoint, so that resumed rows are the same."""
        last, due = state.global_step >= state.max_steps, control.should_log
        if self.hooks.evaluate is not None and (last or state.global_step % self.eval_every == 0):
            model = self.trainer.model
            model.eval()
            self.trainer.log({f"eval_{name}": _number(value) for name, value in self.hooks.evaluate(model).items()})
        # Whichever process was asked to stop, all do.
        asked = average(torch.tensor(float(self.run.stopping.is_set()), device=args.device))
        if asked > 0 and not last:
            control.should_training_stop = control.should_save = True
        # A stage that its own rule ends must end in a checkpoint.
        control.should_save |= self.ended or (control.should_evaluate and self.part.done is not None)
        control.should_log = due or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a row: where the run stands, the losses, AdaLoRA's ranks, and what the routers did."""
        values = {name: value for name, value in kwargs["logs"].items() if not name.endswith(_NOISE)}
        values["tokens"] = values.pop("num_input_tokens_seen", 0)
        if not any(name == "loss" or name.startswith("eval_") for name in values):
            return
        row = {"stage": self.part.name, "step": self.offset + state.global_step, **values}
        if "loss" in values:
            row |= ranks(self.trainer.model) | self.probe.read()
        self.rows.append(row)
        self.run.add(row)
        if self.part.done is not None and any(name.startswith("eval_") for name in values):
            self.ended = bool(self.part.done(self.rows))
            control.should_training_stop |= self.ended

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add what is missing to a checkpoint, and mark it as whole when everything is written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        PartialState().wait_for_everyone()
        tensors = trained_state(self.trainer.model)
        if not state.is_world_process_zero:
            return
        save_state(tensors, folder)
        # A pickle that nothing here reads.
        (folder / "training_args.bin").unlink(missing_ok=True)
        held = save_curriculum(self.hooks.curriculum, folder)
        ended = self.ended or state.global_step >= state.max_steps
        write_json(
            folder / MARK,
            {"step": state.global_step, "ended": ended, "curriculum": held, "rows": self.rows},
        )
        keep = self.run.settings.save_total_limit
        # Only now, when the new one is whole, may old ones go.
        for old in checkpoints(folder.parent)[:-keep] if keep else ():
            shutil.rmtree(old)


def _number(value: Any) -> float:
    return float(getattr(value, "value", value))
