"""One stage under a trainer, from its last whole checkpoint to its end."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainingArguments

from workbench.errors import ConfigError
from workbench.ops.processes import sharded
from workbench.routing.find import inner_model
from workbench.training.encode import collate
from workbench.training.resume import MARK, last_checkpoint, read_json, remove_broken
from workbench.training.stages import Part, load_curriculum
from workbench.training.trainer import AnswerTrainer, trl_parts
from workbench.training.watch import Hooks, Watch


def fit_part(run: Any, part: Part, index: int, offset: int, hooks: Hooks) -> int | None:
    """Train one stage, or what is left of it.

    Args:
        run: The run; its model is trained in place, its history grows.
        part: The stage.
        index: Its place.
        offset: Optimiser steps of the stages before it.
        hooks: The user's.

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
    scales = part.scales(run.model)
    frozen = [tensor for name, tensor in run.model.named_parameters() if scales.get(name) == 0]
    for tensor in frozen:
        tensor.requires_grad_(False)
    trainer, watch = _trainer(run, part, index, offset, hooks, folder)
    trainer.scales = scales
    try:
        mark = {} if start is None else read_json(start / MARK)
        if start is not None:
            watch.rows = mark["rows"]
            run.rewind(mark["rows"])
            load_curriculum(hooks.curriculum, mark["curriculum"], start)
        if mark.get("ended"):
            trainer._load_from_checkpoint(str(start))
            return int(mark["step"])
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        ended = watch.ended or trainer.state.global_step >= part.steps
        return trainer.state.global_step if ended else None
    finally:
        for tensor in frozen:
            tensor.requires_grad_(True)
        trainer.hook.remove()
        watch.probe.detach()
        run.model.config.use_cache = use_cache
        for model, forward in forwards:
            vars(model).pop("forward", None)
            vars(model).update({} if forward is None else {"forward": forward})


def _trainer(run: Any, part: Part, index: int, offset: int, hooks: Hooks, folder: Path) -> tuple[Any, Watch]:
    settings, steps, on_cpu = run.settings, part.steps, run.model.device.type == "cpu"
    trainer_class, arguments = (AnswerTrainer, TrainingArguments) if settings.trainer == "transformers" else trl_parts()
    tenth = max(1, steps // 10)
    optimizer: Any = {"optim": "adamw_bnb_8bit"} if settings.optimizer == "adamw_8bit" else {}
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
        **optimizer,
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
        dataloader_pin_memory=not on_cpu,
        # The processes' buffers agree, those of frozen weights from the start and queues by what they are given.
        ddp_broadcast_buffers=False,
        use_cpu=on_cpu,
        disable_tqdm=not hooks.progress,
        report_to="none",
    )
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to one process, which would split batches among them; start with "
            "`accelerate launch`, or show it one: CUDA_VISIBLE_DEVICES=0"
        )
    watch = Watch(run, part, offset, hooks, eval_every=settings.eval_every or tenth)
    trainer = trainer_class(
        watch=watch,
        model=run.model,
        args=args,
        data_collator=partial(collate, pad=run.tokenizer.pad_token_id or 0),
        train_dataset=part.data.data,
        eval_dataset=hooks.validation.data if hooks.validation else None,
        processing_class=run.tokenizer,
        callbacks=[watch],
    )
    if trainer.is_fsdp_enabled:
        plugin: Any = trainer.accelerator.state.fsdp_plugin
        _check_sharding(plugin)
        if sharded(run.model):
            # An earlier stage has split the layers, whose classes now bear other names than those to look for.
            plugin.auto_wrap_policy = None
    trainer.remove_callback(PrinterCallback)
    watch.trainer = trainer
    return trainer, watch


def _check_sharding(plugin: Any) -> None:
    if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            f"FSDP was asked for with fsdp_version={plugin.fsdp_version}, fsdp_cpu_ram_efficient_loading="
            f"{plugin.cpu_ram_efficient_loading}; train shards in version 2 what each process has opened. Start with "
            "`accelerate launch --use_fsdp --fsdp_version 2 --fsdp_cpu_ram_efficient_loading false`"
        )
