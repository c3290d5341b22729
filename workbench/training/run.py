"""train: one call that adapts a model to examples, and the run that it returns."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from peft import AdaLoraConfig, PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import set_seed

from workbench.errors import ConfigError
from workbench.training.encode import encode
from workbench.training.fit import fit_part
from workbench.training.resume import HISTORY, RUN, check_same, claim, full_state, model_digest, write_json
from workbench.training.settings import Batch, TrainSettings, make_settings
from workbench.training.stages import Part, make_parts
from workbench.training.watch import Hooks


class Run:
    """A training run: its model at once, its history while it grows.

    Args:
        model: The model that is trained, a `PeftModel` where there is an adapter.
        tokenizer: Its tokenizer.
        folder: Where the run writes: the adapter (or model) when it is finished, `history.jsonl`, checkpoints.
        settings: Its settings.
        steps: Optimiser steps of all stages; None where a curriculum has not said them all.
    """

    def __init__(self, model: Any, tokenizer: Any, folder: Path, settings: TrainSettings, *, steps: int | None) -> None:
        self.model, self.tokenizer, self.folder, self.settings, self.steps = model, tokenizer, folder, settings, steps
        self.history: list[dict[str, Any]] = []
        self.dropped: tuple[str, ...] = ()
        self.state = "running"
        self.error: BaseException | None = None
        self.stopping, self._over = threading.Event(), threading.Event()
        self._watchers: list[Callable[[Run], Any]] = []

    def __repr__(self) -> str:
        loss = next((f", loss {row['loss']:.3f}" for row in self.history[::-1] if "loss" in row), "")
        return f"Run({self.folder}: {self.state}, step {self.step} of {self.steps or '?'}{loss})"

    @property
    def step(self) -> int:
        """The optimiser step of the newest row."""
        return self.history[-1]["step"] if self.history else 0

    def stop(self) -> None:
        """End after the step under way, with a checkpoint; the same call of `train` goes on from there."""
        self.stopping.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until training is over and raise what it raised; False when `timeout` seconds passed first."""
        over = self._over.wait(timeout)
        if over and self.error is not None:
            raise self.error
        return over

    def watch(self, callback: Callable[[Run], Any]) -> None:
        """Call `callback(run)` after each new row and at the end, on the thread that trains."""
        self._watchers.append(callback)

    def add(self, row: dict[str, Any]) -> None:
        """Take a new row of the history, and tell the watchers."""
        self.history.append(row)
        if PartialState().is_main_process:
            with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        self._tell()

    def rewind(self, rows: list[dict[str, Any]]) -> None:
        """Take a stage's rows from its checkpoint, and forget on disk what came after them."""
        self.history += rows
        if PartialState().is_main_process:
            text = "".join(json.dumps(row) + "\n" for row in self.history)
            (self.folder / HISTORY).write_text(text, encoding="utf-8")

    def finish(self, state: str, error: BaseException | None = None) -> None:
        """Note how training ended: `finished`, `stopped` or `failed`."""
        self.state, self.error = state, error
        self._tell()
        self._over.set()

    def _tell(self) -> None:
        for callback in list(self._watchers):
            callback(self)


def train(
    model: Any,
    tokenizer: Any,
    examples: Iterable[Any] | None = None,
    *,
    output_dir: str | Path,
    adapter: PeftConfig | None = None,
    validation: Iterable[Any] | None = None,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    curriculum: Any = None,
    extra_losses: Callable[[Any, Batch], Mapping[str, Tensor]] | None = None,
    on_batch: Callable[[Batch], Any] | None = None,
    on_log: Callable[[dict[str, Any]], Any] | None = None,
    resume: bool = True,
    stop: threading.Event | None = None,
    wait: bool = True,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train a model, or an adapter on it, on the answers of examples.

    Prompts are written in the model's chat template and masked; the loss counts answer tokens and the end token. Every
    loss term of the adapter stands in a column of its own in the history: a LoRA mixture's `balance`, `z` and
    `contrastive`, AdaLoRA's `orthogonal`, and what `extra_losses` returns. AdaLoRA's ranks are allocated after each
    step (`total_step` is set here for examples and for a list of stages) and logged.

    The same call with the same `output_dir` goes on where an earlier one ended, killed or stopped, and gives the
    unbroken run's weights, on a CPU bit for bit.

    Under `accelerate launch` (DDP, or FSDP of version 2) nothing changes. N processes with `batch_size` b learn what
    one with N b learns: answers, routing losses, queues and memories are those of the whole batch (dropout and jitter
    are drawn by each process, and where the examples fill no last batch the first ones fill it up). Process 0 writes;
    each saves the state of its random numbers beside a checkpoint. All must make the same call, and `evaluate`,
    `extra_losses` and the other hooks are called in each. After FSDP the returned model is in shards: load the folder.

    Args:
        model: A causal language model of transformers, or a `PeftModel` whose trainable adapter goes on learning. With
            `adapter` its layers are wrapped in place, as PEFT does.
        tokenizer: Its tokenizer.
        examples: Examples, or rows with their columns, as `load_examples` returns; None with a curriculum.
        output_dir: A new folder, or that of the same run. A finished one holds a plain PEFT adapter (or model).
        adapter: Any PEFT configuration (`LoraConfig`, `AdaLoraConfig`, `LoraMoeConfig`); None trains what is trainable.
        validation: Examples whose loss is measured while training, as `eval_loss`.
        evaluate: Called with the model in evaluation mode, e.g. `lambda m: workbench.evaluate(m, tokenizer, limit=20)`;
            its numbers (or scores) are logged as `eval_<name>`.
        curriculum: Stages, see `workbench.training.stages.Curriculum`.
        extra_losses: Called as `extra_losses(model, batch)` after the forward of each batch; returns named scalars that
            are added to the loss (averaged over processes). The model may be run inside it, e.g. for a consistency
            loss. None takes the
            curriculum's own, where it has one; what is given stands in its place and must call it.
        on_batch: Called with each `Batch`: ids and losses of its examples. None takes the curriculum's own likewise.
        on_log: Called with each new row of the history.
        resume: Go on with the run in `output_dir`; False refuses a folder that holds one.
        stop: Set it from any thread to end after the step under way, with a checkpoint.
        wait: False trains on a thread of its own and returns at once, so that a notebook stays usable; see `Run.wait`.
        progress: Show a bar.
        **settings: The fields of `TrainSettings`: steps or epochs, batch_size, gradient_accumulation_steps, lr,
            schedule, warmup, weight_decay, max_grad_norm, seed, max_length, too_long, bf16, gradient_checkpointing,
            optimizer, trainer, eval_every, save_every, log_every.

    Returns:
        The run: `.model`, `.tokenizer`, `.history`, `.folder`, `.dropped` (ids of too long examples), `.state`.

    Raises:
        ConfigError: An argument is out of range; the model has no trainable weight, or carries an adapter already; or
            `output_dir` holds another run or other files.
        DataError: There is no example, one lacks an answer, or some are too long.
        TrainingFailed: The loss or a gradient is no number; the message names the step and the examples.

    Source: AdaLoRA's allocation, arXiv 2303.10512, as PEFT has it.
    """
    chosen, world = make_settings(settings), PartialState(cpu=model.device.type == "cpu")
    parts = make_parts(model, tokenizer, examples, curriculum, chosen, world.num_processes)
    known = sum(part.steps for part in parts) if isinstance(parts, list) else None
    config = _ready(adapter, known)
    _check_model(model, config)
    if world.num_processes > 1 and model.device != world.device:
        # Each process opened the model on the first device; a note of that would keep the trainer from moving it.
        vars(model).pop("hf_device_map", None)
        model.to(world.device)
    folder = Path(output_dir).expanduser()
    limits: Any = {"max_length": chosen.max_length, "too_long": chosen.too_long, "name": "validation examples"}
    held_out = None if validation is None else encode(model, tokenizer, validation, **limits)
    hooks = Hooks(
        evaluate=evaluate, curriculum=curriculum, validation=held_out, progress=progress and wait,
        extra_losses=extra_losses or getattr(curriculum, "extra_losses", None),
        on_batch=on_batch or getattr(curriculum, "on_batch", None),
    )  # fmt: skip
    identity = {
        "settings": chosen.identity(), "adapter": config.to_dict() if config else None, "model": model_digest(model),
        "processes": world.num_processes,
    }  # fmt: skip
    with world.main_process_first():
        record = claim(folder, identity, resume=resume)
        if world.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RUN, record)
    set_seed(chosen.seed)
    run = Run(_wrapped(model, config), tokenizer, folder, chosen, steps=known)
    if stop is not None:
        run.stopping = stop
    if on_log is not None:
        run.watch(lambda run: on_log(run.history[-1]) if run.state == "running" else None)
    work = threading.Thread(target=_train, args=(run, parts, record, hooks), name="workbench-train", daemon=True)
    if not wait:
        work.start()
        return run
    work.run()
    run.wait()
    return run


def _ready(adapter: PeftConfig | None, steps: int | None) -> PeftConfig | None:
    """Return a copy of the configuration, fit to train on so many steps."""
    if adapter is None:
        return None
    config: Any = copy.deepcopy(adapter)
    config.task_type = config.task_type or "CAUSAL_LM"
    if isinstance(config, AdaLoraConfig):
        total = config.total_step = steps or config.total_step or 0
        if config.tinit + config.tfinal >= total or config.target_r >= config.init_r:
            raise ConfigError(
                f"AdaLoRA has tinit={config.tinit}, tfinal={config.tfinal} for {total} steps, and "
                f"target_r={config.target_r} for init_r={config.init_r}; between both phases there must be a step, and "
                "target_r must be smaller than init_r"
            )
    return config


def _check_model(model: Any, config: PeftConfig | None) -> None:
    if config is not None and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            "the model carries an adapter already, perhaps of an earlier call, as PEFT wraps layers in place; load the "
            "model anew or take run.model.unload(), or leave adapter out to go on with the one it has"
        )
    if config is None and not any(tensor.requires_grad for tensor in model.parameters()):
        raise ConfigError(
            "no weight of the model is trainable; give adapter=, or load the adapter with is_trainable=True"
        )


def _wrapped(model: Any, config: PeftConfig | None) -> Any:
    """Put the adapter on the model; without one the model stays as it is."""
    if config is None:
        return model
    with warnings.catch_warnings():
        # PEFT reads an old name of a transformers property, which the reader of a notebook can do nothing about.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        wrapped = get_peft_model(model, config)
    for name, tensor in wrapped.named_parameters():
        if "ranknum" in name.split("."):  # PEFT freezes AdaLoRA's rank, and loses that when it casts a bfloat16 base
            tensor.requires_grad_(False)
    return wrapped


def _train(run: Run, parts: Iterable[Part], record: dict[str, Any], hooks: Hooks) -> None:
    main, offset, stages = PartialState().is_main_process, 0, record["stages"]
    try:
        # A layer whose rank AdaLoRA brought to 0 looks to PEFT like a lost shard.
        warnings.filterwarnings("ignore", message=r"Adapter .* have invalid shape")
        # Accelerate passes it on under torch's old name.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        for index, part in enumerate(parts):
            run.dropped += part.data.dropped
            now = part.identity()
            if index < len(stages):
                check_same(run.folder, stages[index], now, f"stage {index}: ")
            else:
                stages.append(now)
                if main:
                    write_json(run.folder / RUN, record)
            taken = fit_part(run, part, index, offset, hooks)
            if taken is None:
                run.finish("stopped")
                return
            offset += taken
        state = full_state(run.model)
        if main:
            _publish(run, state)
        PartialState().wait_for_everyone()
        run.finish("finished")
    except BaseException as error:
        run.finish("failed", error)
    finally:
        run.model.eval()


def _publish(run: Run, state: dict[str, Tensor]) -> None:
    """Put the result into the run's folder, file by file under its final name when it is whole."""
    partial = run.folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    run.model.save_pretrained(partial, state_dict=state)
    run.tokenizer.save_pretrained(partial)
    for path in sorted(partial.iterdir()):
        path.replace(run.folder / path.name)
    partial.rmdir()
