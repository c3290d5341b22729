"""Measuring one model: answers in batches, one value for each example, an interval for each task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from workbench.errors import ConfigError, WorkbenchError
from workbench.evaluation.intervals import interval
from workbench.evaluation.likelihood import choice_ids, choice_scores
from workbench.evaluation.metrics import METRICS, score
from workbench.evaluation.suites import CLASSROOM, Suite, Task, resolve
from workbench.generation import context_length, encode_prompt, generate_batch
from workbench.records import Example, Output, Score, Scores

_OPEN_ENDED = 256


class EvaluationStopped(WorkbenchError):
    """The stop event was set before all examples were scored."""


def evaluate(
    model: Any,
    tokenizer: Any,
    suite: Suite = "classroom",
    *,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    on_long: str = "error",
    progress: bool | Callable[[int], Any] = True,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> Scores:
    """Score a model on the tasks of a suite, greedily, each with its 95 % interval and n.

    Every example is one request in the model's chat template. Choices are compared by likelihood, other answers are
    written and compared by the task's metric.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        suite: `"classroom"`; or task name to examples, as `load_examples` returns them; or a list of `Task`.
        split: Which rows of the classroom: train, validation, test, or test_unseen where a task has it.
        tasks: Names of the tasks to score; None scores all that have rows in the split.
        limit: Most examples of each task, a random part that depends on `seed` and the task's name alone.
        batch_size: Most sequences computed together.
        on_long: What to do with an example that, with its answer, exceeds the model's context: `error` says how many
            there are, `skip` leaves them out and counts them in the settings.
        progress: Show a bar; or a function that gets the number of examples just scored.
        seed: Of the limited part and of the bootstrap; greedy answers need none.
        stop: Set it from any thread to end early.

    Returns:
        Scores by task. `settings` says what they depend on, `outputs` holds every answer with its value.

    Raises:
        ConfigError: An argument is out of range, a task or suite is unknown or empty, or examples are too long.
        DataError: An example lacks what its metric needs.
        ModelError: The model's scores are not numbers.
        EvaluationStopped: `stop` was set.
    """
    if on_long not in ("error", "skip"):
        raise ConfigError(f"on_long={on_long!r}; use 'error' or 'skip'")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: it must be at least 1")
    chosen = resolve(suite, split=split, tasks=tasks, limit=limit, seed=seed)
    chosen, skipped = _fit(model, tokenizer, [with_length(tokenizer, task) for task in chosen], skip=on_long == "skip")
    outputs: dict[str, tuple[Output, ...]] = {}
    with tqdm(total=sum(len(task.rows()) for task in chosen), unit="ex", disable=progress is not True) as bar:
        for task in chosen:
            bar.set_description(task.name)
            advance = _advance(bar, progress if callable(progress) else None, stop)
            outputs[task.name] = _score_task(model, tokenizer, task, batch_size, advance)
    settings = {
        "suite": suite if isinstance(suite, str) else "own",
        "split": split if isinstance(suite, str) else None,
        "limit": limit,
        "seed": seed,
        "chat_template": bool(tokenizer.chat_template),
        "decoding": "greedy",
        "dtype": str(model.dtype).removeprefix("torch."),
        "metrics": {name: METRICS[name].version for name in sorted({task.metric for task in chosen})},
        "max_new_tokens": {task.name: task.max_new_tokens for task in chosen if task.metric != "likelihood"},
        "too_long_skipped": skipped,
        "tasks_without_rows": _lacking(suite, tasks, chosen),
    }
    return Scores(
        tasks={task.name: summary(task, outputs[task.name], seed) for task in chosen},
        settings=settings,
        outputs=outputs,
    )


def _score_task(
    model: Any, tokenizer: Any, task: Task, batch_size: int, progress: Callable[[int], Any]
) -> tuple[Output, ...]:
    examples = task.rows()
    if task.metric == "likelihood":
        texts = _likeliest(model, tokenizer, examples, batch_size, progress)
    else:
        texts = generate_batch(
            model,
            tokenizer,
            [example.prompt() for example in examples],
            max_new_tokens=task.max_new_tokens or 1,
            batch_size=batch_size,
            progress=progress,
        )
    return tuple(
        Output(id=example.id, text=text, value=score(example, text, task.metric))
        for example, text in zip(examples, texts, strict=True)
    )


def _likeliest(
    model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int, progress: Callable[[int], Any]
) -> list[str]:
    scores = choice_scores(model, tokenizer, examples, batch_size=batch_size, progress=progress)
    return [
        (example.choices or ())[max(range(len(values)), key=values.__getitem__)]
        for example, values in zip(examples, scores, strict=True)
    ]


def summary(task: Task, outputs: Sequence[Output], seed: int) -> Score:
    """Return the mean value of a task's outputs with its 95 % interval."""
    values = [output.value for output in outputs]
    value, low, high = interval(values, graded=METRICS[task.metric].graded, seed=seed)
    return Score(value=value, low=low, high=high, n=len(values), metric=task.metric, group=task.group)


def _lacking(suite: Suite, tasks: Sequence[str] | None, chosen: Sequence[Task]) -> list[str]:
    whole = isinstance(suite, str) and tasks is None
    return sorted(set(CLASSROOM) - {task.name for task in chosen}) if whole else []


def with_length(tokenizer: Any, task: Task) -> Task:
    """Give a task its room for answers: what no wanted answer needs cannot raise a value, and costs time."""
    if task.max_new_tokens is not None or task.metric == "likelihood":
        return task
    answers = [example.answer for example in task.rows()]
    longest = max(len(ids) for ids in tokenizer(answers, add_special_tokens=False)["input_ids"])
    return replace(task, max_new_tokens=longest + 8 if longest else _OPEN_ENDED)


def _fit(model: Any, tokenizer: Any, tasks: Sequence[Task], *, skip: bool) -> tuple[list[Task], dict[str, int]]:
    """Find the examples that exceed the context together with their answer; leave them out, or say so."""
    limit = context_length(model)
    if limit is None:
        return list(tasks), {}
    kept, skipped = [], {}
    for task in tasks:
        lengths = [_length(tokenizer, task, example) for example in task.rows()]
        places = fitting(task.name, lengths, limit, skip=skip)
        over = len(lengths) - len(places)
        if over:
            skipped[task.name] = over
        kept.append(replace(task, examples=[task.rows()[place] for place in places]) if over else task)
    return kept, skipped


def fitting(task: str, lengths: Sequence[int], limit: int, *, skip: bool) -> list[int]:
    """Return the places of the examples that fit the model's context.

    Args:
        task: Its name.
        lengths: Of its examples with their answers, in tokens.
        limit: Of the model's context.
        skip: Leave out the others.

    Raises:
        ConfigError: One does not fit and may not be left out, or none fits.
    """
    places = [place for place, length in enumerate(lengths) if length <= limit]
    if len(places) < len(lengths) and not (skip and places):
        raise ConfigError(
            f"{len(lengths) - len(places)} of {len(lengths)} examples of task {task!r} need up to {max(lengths)} "
            f"tokens with their answer, and the model's context holds {limit}; take a model with a longer context, "
            "shorten them, or give on_long='skip' to leave them out of a task that has shorter ones"
        )
    return places


def _length(tokenizer: Any, task: Task, example: Example) -> int:
    prompt = len(encode_prompt(tokenizer, example.prompt()))
    if task.metric == "likelihood":
        return prompt + max(len(ids) for ids in choice_ids(tokenizer, example)) - 1
    return prompt + (task.max_new_tokens or 1) - 1


def _advance(bar: Any, tell: Callable[[int], Any] | None, stop: threading.Event | None) -> Callable[[int], Any]:
    def advance(count: int) -> None:
        bar.update(count)
        if tell is not None:
            tell(count)
        if stop is not None and stop.is_set():
            raise EvaluationStopped("stopped before the last example, as was asked; evaluate again for scores")

    return advance
