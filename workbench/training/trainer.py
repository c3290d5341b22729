"""The step of transformers' and of TRL's trainer with our losses in it: answers, routing, AdaLoRA, the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import Trainer

from workbench.adapters import auxiliary_losses
from workbench.errors import ConfigError
from workbench.ops.processes import average, gather_objects
from workbench.routing.find import inner_model
from workbench.training.adalora import allocator_of, orthogonality, unpruned
from workbench.training.encode import shown
from workbench.training.resume import load_state
from workbench.training.settings import Batch, TrainingFailed

# At run time `Trainer` follows in the method order; its types say less than is known here.
_Base: Any = object


class AnswerSteps(_Base):
    """What both trainers share; the class that follows in the method order is `Trainer` or a child of it.

    L = sum of cross-entropy over the step's answer tokens / their number + sum of the terms, where the terms are the
    adapter's auxiliary losses, AdaLoRA's orthogonality and the user's extra losses, each a mean over micro-batches.

    Where processes train side by side, gradients and terms are averaged over them. The trainer multiplies the answers'
    part by their number, as its divisor counts the tokens of all; a term is not multiplied.
    """

    def __init__(self, *, watch: Any, **kwargs: Any) -> None:
        self.watch, self.part, self.hooks = watch, watch.part, watch.hooks
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.step_ids: tuple[str, ...] = ()
        self.token_losses = torch.empty(0)
        self.answer_logits: Tensor | None = None
        self.scales: Mapping[str, float] = {}
        super().__init__(**kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add the terms to the answers' loss while training; refuse a loss that is no number."""
        rows = inputs.pop("row")
        self.watch.probe.mask = inputs["attention_mask"]
        batch_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        result = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        self.watch.probe.mask = None
        if not self.model.training:
            return result
        loss = result[0] if return_outputs else result
        batch = self._batch(rows, batch_inputs)
        terms = self._terms(batch)
        counted = (batch.inputs["labels"] != -100).sum()
        total, tokens = average(torch.stack([self.token_losses.sum(), counted.float()]))
        answers = total / tokens
        # With the number of tokens given, the trainer leaves accumulation to the loss.
        parts = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        loss = loss + sum(terms.values()) / parts if terms else loss
        if not math.isfinite(float(loss.detach())):
            named = "".join(f", {name} {float(value.detach()):.3g}" for name, value in terms.items())
            self.fail(f"the loss is {float(loss.detach())} (answers {float(answers):.3g}{named})", batch.ids)
        self._add({"answer_loss": answers, **terms} if terms else {})
        if self.hooks.on_batch is not None:
            self.hooks.on_batch(batch)
        return (loss, result[1]) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Give each weight its factor of the learning rate; the schedule then moves all alike."""
        optimizer = super().create_optimizer(model)
        factor = {tensor: self.scales.get(name, 1.0) for name, tensor in self.model.named_parameters()}
        scales = sorted({*factor.values()} - {0.0}, key=lambda scale: (scale != 1, scale))
        if scales != [1.0]:
            optimizer.param_groups[:] = [
                group | {"params": members, "lr": group["lr"] * scale}
                for group in optimizer.param_groups
                for scale in scales
                if (members := [tensor for tensor in group["params"] if factor[tensor] == scale])
            ]
        return optimizer

    def fail(self, what: str, ids: tuple[str, ...]) -> None:
        """Stop a run whose numbers are broken.

        Raises:
            TrainingFailed: Always.
        """
        raise TrainingFailed(
            f"{what} at step {self.step} on the examples {shown(ids)}; training stopped before this step changed "
            f"a weight. {self.watch.last_good()} Look at these examples, or lower lr or max_grad_norm."
        )

    @property
    def step(self) -> int:
        """The optimiser step under way, from 1 over all stages."""
        return self.watch.offset + self.state.global_step + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last row, over all processes."""
        if "loss" in logs:
            parts: Any = gather_objects((self.count, {name: float(total) for name, total in self.sums.items()}))
            count = sum(count for count, _ in parts)
            # A hook of the user's may have had a term for some processes' examples only.
            for name in dict.fromkeys(name for _, sums in parts for name in sums):
                logs[name] = sum(sums.get(name, 0.0) for _, sums in parts) / count
            self.sums, self.count = {}, 0
        super().log(logs, start_time)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        with unpruned(self.model):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Bring back an adapter bit for bit; PEFT's own file has pruned ranks cut out."""
        target = model if model is not None else self.model
        if isinstance(target, PeftModel):
            load_state(target, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _batch(self, rows: Tensor, inputs: Mapping[str, Tensor]) -> Batch:
        counts = (inputs["labels"][:, 1:] != -100).sum(-1)
        ids = tuple(self.part.data.ids[row] for row in rows.tolist())
        self.step_ids = ids
        losses = self.token_losses.sum(-1) / counts
        # Let go of here: the logits hold the whole graph.
        logits, self.answer_logits = self.answer_logits, None
        return Batch(stage=self.part.name, step=self.step, ids=ids, inputs=inputs, losses=losses, logits=logits)

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        model = self.model
        terms = dict(auxiliary_losses(model)) | orthogonality(model)
        terms |= self.hooks.extra_losses(model, batch) if self.hooks.extra_losses is not None else {}
        for name, value in terms.items():
            # Reentrant checkpointing detaches such a loss without a word; a constant 0 is a loss that was skipped.
            if not value.requires_grad and float(value) != 0:
                raise ConfigError(
                    f"the loss {name!r} is {float(value):.3g} and has no gradient, so it would train nothing; compute "
                    "it with gradients on (not under no_grad or reentrant checkpointing), or leave it out"
                )
        return terms

    def _add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.count += bool(values)


class _PlainStep(_Base):
    """transformers' step, but the loss is formed here: the model reads the labels and leaves its own loss out."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        loss = self.answer_loss(outputs, inputs["labels"], num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def answer_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the cross-entropy over answer tokens, and keep each token's for `Batch.losses`."""
        counted = labels[:, 1:] != -100
        logits = outputs.logits[:, :-1][counted]
        self.answer_logits = logits if self.model.training else None
        flat = F.cross_entropy(logits.float(), labels[:, 1:][counted], reduction="none")
        self.token_losses = flat.new_zeros(counted.shape).masked_scatter(counted, flat.detach())
        return flat.sum() / (counted.sum() if num_items_in_batch is None else num_items_in_batch)


class AnswerTrainer(AnswerSteps, _PlainStep, Trainer):
    """transformers' Trainer on answers."""

    def __init__(self, **kwargs: Any) -> None:
        # It need not see the tokenizer, which it would make the model's settings follow.
        del kwargs["processing_class"]
        # Given a loss function, it counts the answer tokens of a whole step, over batches and processes.
        super().__init__(compute_loss_func=self.answer_loss, **kwargs)
        # AdaLoRA's tuner passes hooks of the model by; of other models the routers read the labels first.
        wrapped: Any = self.model
        reader = wrapped.base_model if allocator_of(wrapped) is not None else inner_model(wrapped)
        self.hook = reader.register_forward_pre_hook(_without_labels, with_kwargs=True)


def _without_labels(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "labels"}


@cache
def trl_parts() -> tuple[Any, Any]:
    """Return TRL's SFTTrainer on answers, and what makes its arguments; TRL is imported here alone.

    Raises:
        ConfigError: TRL is not installed.
    """
    try:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as error:
        raise ConfigError(
            "trainer='trl' needs TRL: pip install 'workbench[train]', or trainer='transformers'"
        ) from error

    class AnswerSFTTrainer(AnswerSteps, SFTTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.hook = kwargs["model"].register_forward_hook(self._keep)

        def _keep(self, _module: Any, _inputs: Any, outputs: Any) -> None:
            if getattr(outputs, "log_probs", None) is not None:
                self.token_losses = -outputs.log_probs.detach()

    return AnswerSFTTrainer, partial(SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
