"""One stage under a trainer, from its last whole checkpoint to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainingArguments

from workbench.errors import ConfigError
from workbench.routing.find import inner_model
from workbench.training.encode import Encoded, collate
from workbench.training.resume import HISTORY, MARK, last_checkpoint, read_json, remove_broken
from workbench.training.settings import Batch
from workbench.training.stages import Part
from workbench.training.trainer import AnswerTrainer, ExtraLosses, trl_trainer
from workbench.training.watch import Watch


@dataclass(kw_only=True, eq=False)
class Hooks:
    """What the user hangs into a run; see `train`."""

    evaluate: Callable[[Any], Mapping[str, Any]] | None = None
    extra_losses: ExtraLosses | None = None
    on_batch: Callable[[Batch], Any] | None = None
    curriculum: Any = None
    validation: Encoded | None = None


def fit_part(
    run: Any,
    part: Part,
    index: int,
    offset: int,
    hooks: Hooks,
    record: Callable[[dict[str, Any]], None],
    *,
    progress: bool,
) -> int | None:
    """Train one stage, or what is left of it.

    Args:
        run: The run; its model is trained in place.
        part: The stage.
        index: Its place.
        offset: Optimiser steps of the stages before it.
        hooks: The user's.
        record: Called with each new row.
        progress: Show a bar.

    Returns:
        The steps it took in all, or None where it was stopped before its end.
    """
    folder = run.folder / "checkpoints" / f"stage-{index:02d}"
    if PartialState().is_main_process:
        remove_broken(folder)
    PartialState().wait_for_everyone()
    start = last_checkpoint(folder)
    # Trainers switch the cache off, and wrap what stands under the name `forward` in the instance.
    use_cache, models = run.model.config.use_cache, {run.model, inner_model(run.model)}
    forwards = [(model, vars(model).get("forward")) for model in models]
    trainer, watch = _trainer(run, part, index, offset, hooks, record, folder, progress=progress)
    try:
        mark = {} if start is None else read_json(start / MARK)
        if start is not None:
            _go_back(run, watch, mark, offset)
        if mark.get("ended"):
            trainer._load_from_checkpoint(str(start))
            return int(mark["step"])
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        ended = watch.ended or trainer.state.global_step >= part.steps
        return trainer.state.global_step if ended else None
    finally:
        trainer.hook.remove()
        watch.probe.detach()
        run.model.config.use_cache = use_cache
        for model, forward in forwards:
            vars(model).pop("forward", None)
            vars(model).update({} if forward is None else {"forward": forward})


def _trainer(
    run: Any, part: Part, index: int, offset: int, hooks: Hooks, record: Any, folder: Path, *, progress: bool
) -> tuple[Any, Watch]:
    settings, steps = run.settings, part.steps
    trl = settings.trainer == "trl"
    if trl:
        trainer_class = trl_trainer()
        from trl.trainer.sft_config import SFTConfig

        extra = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
        arguments: Any = partial(SFTConfig, **extra)
    else:
        trainer_class, arguments = AnswerTrainer, TrainingArguments
    tenth = max(1, steps // 10)
    args = arguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=part.lr,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=int(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed + index,
        bf16=settings.bf16 if settings.bf16 is not None else run.model.dtype is torch.bfloat16,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        train_sampling_strategy="random" if part.shuffle else "sequential",
        eval_strategy="no" if hooks.validation is None else "steps",
        eval_steps=settings.eval_every or tenth,
        prediction_loss_only=True,
        save_steps=settings.save_every or tenth,
        logging_steps=settings.log_every or max(1, steps // 100),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        include_num_input_tokens_seen="non_padding",
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=run.model.device.type == "cuda",
        use_cpu=run.model.device.type == "cpu",
        disable_tqdm=not progress,
        report_to="none",
    )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to one process, which would split batches among them; start with "
            "`accelerate launch`, or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    watch = Watch(
        part=part,
        offset=offset,
        record=record,
        curriculum=hooks.curriculum,
        stop=run.stopping,
        on_batch=hooks.on_batch,
        evaluate=hooks.evaluate,
        eval_every=settings.eval_every or tenth,
        keep=settings.save_total_limit,
    )
    trainer = trainer_class(
        part=part,
        offset=offset,
        extra=hooks.extra_losses,
        watch=watch,
        model=run.model,
        args=args,
        data_collator=partial(collate, pad=run.tokenizer.pad_token_id or 0),
        train_dataset=part.data.data,
        eval_dataset=hooks.validation.data if hooks.validation else None,
        processing_class=run.tokenizer,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    watch.trainer = trainer
    return trainer, watch


def _go_back(run: Any, watch: Watch, mark: dict[str, Any], offset: int) -> None:
    """Forget what happened after a checkpoint, so that it can happen again."""
    watch.rows = mark["rows"]
    for row in watch.rows:
        run.history.append(row)
    if PartialState().is_main_process:
        (run.folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in run.history), encoding="utf-8")
    if mark["curriculum"] is not None:
        watch.curriculum.load_state_dict(mark["curriculum"])
