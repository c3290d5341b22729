"""What is measured: tasks with their metric and group, those of the classroom and those of the user's own data."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from workbench.data import load_examples
from workbench.errors import ConfigError
from workbench.evaluation.metrics import known_metric
from workbench.records import Example, Rows, records
from workbench.records import example_of as example_of

CLASSROOM: dict[str, tuple[str, str]] = {
    "question_answering": ("clinical", "exact_match"),
    "multiple_choice": ("clinical", "likelihood"),
    "conversation": ("clinical", "rouge_l"),
    "classification": ("clinical", "label_f1"),
    "reading_comprehension": ("clinical", "exact_match"),
    "inference": ("clinical", "exact_match"),
    "summarisation": ("clinical", "rouge_l"),
    "ner": ("clinical", "entity_f1"),
    "relation_extraction": ("clinical", "exact_match"),
    "entity_attribute": ("clinical", "exact_match"),
    "entity_synonymy": ("clinical", "exact_match"),
    "entity_relation": ("clinical", "exact_match"),
    "note_section": ("generation", "rouge_l"),
    "full_note": ("generation", "rouge_l"),
    "impression": ("generation", "rouge_l"),
    "discharge_summary": ("generation", "rouge_l"),
    "short_question": ("generation", "rouge_l"),
    "exam_forward": ("exam", "likelihood"),
    "exam_backward": ("exam", "likelihood"),
    "instruction": ("instructions", "checks"),
    "general_knowledge": ("general", "exact_match"),
    "both": ("both", "checks"),
    "preference": ("preference", "likelihood"),
    "abbreviation": ("unseen_task", "exact_match"),
    "referral": ("unseen_task", "exact_match"),
    "safety_check": ("unseen_task", "exact_match"),
}
"""Task of the classroom to its group and metric."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing that is measured.

    Args:
        name: Its name in the scores.
        examples: Examples, or rows with their columns, such as a `datasets.Dataset` from `load_examples`; at least one.
        metric: One of `METRICS`; without one the classroom's for a task of that name, else `likelihood` where every
            example has choices, else `exact_match`.
        group: The axis it counts towards; without one the classroom's for a task of that name, else `own`.
        max_new_tokens: Most tokens of an answer; without one, 8 more than the longest wanted answer of the task has, or
            256 where no answer is given.

    Raises:
        ConfigError: There is no example, no such metric, or `max_new_tokens` is below 1.
    """

    name: str
    examples: Rows
    metric: str = ""
    group: str = ""
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        examples = tuple(records(self.examples))
        if not examples:
            raise ConfigError(
                f"task {self.name!r} has no example; a task needs at least one: look at its file and split"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"task {self.name!r} has max_new_tokens={self.max_new_tokens}; it must be at least 1")
        usual = "likelihood" if all(example.choices for example in examples) else "exact_match"
        group, metric = CLASSROOM.get(self.name, ("own", usual))
        object.__setattr__(self, "examples", examples)
        object.__setattr__(self, "metric", known_metric(self.metric or metric))
        object.__setattr__(self, "group", self.group or group)

    def rows(self) -> tuple[Example, ...]:
        """Return the examples as records."""
        return self.examples  # pyright: ignore[reportReturnType]


Suite = str | Mapping[str, Rows] | Sequence[Task]


def resolve(
    suite: Suite, *, split: str, tasks: Sequence[str] | None = None, limit: int | None = None, seed: int = 0
) -> tuple[Task, ...]:
    """Return the tasks that a suite stands for.

    Args:
        suite: `"classroom"`; or task name to examples; or a list of `Task`.
        split: Which rows of the classroom; a user's own examples are taken as they come.
        tasks: Names to keep; None keeps all that have rows in the split.
        limit: Most examples of each task: the first of a random order that depends on seed and task name alone, so that
            a smaller limit is a part of a larger one. They stay in the order of the file.
        seed: Of that order.

    Raises:
        ConfigError: There is no such suite or task, a task is empty, or the limit is below 1.
        DataError: A classroom file cannot be read.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: it must be at least 1, or None for every example")
    found = _named(suite, split, None if tasks is None else set(tasks))
    return tuple(found if limit is None else (_subset(task, limit, seed) for task in found))


def _named(suite: Suite, split: str, wanted: set[str] | None) -> list[Task]:
    if isinstance(suite, str) and suite != "classroom":
        raise ConfigError(
            f"suite {suite!r} is not known; use 'classroom', a dict of examples by name, or a list of Task"
        )
    if isinstance(suite, str):
        names = list(CLASSROOM)
    elif isinstance(suite, Mapping):
        names = list(suite)
    else:
        names = [task.name for task in suite]
    if len(set(names)) < len(names) or not names:
        raise ConfigError(f"the suite's tasks are {names}; it needs at least one, each with a name of its own")
    if wanted is not None and not (wanted and wanted <= set(names)):
        raise ConfigError(f"tasks {sorted(wanted - set(names))} are not in the suite; it has {', '.join(names)}")
    kept = [name for name in names if wanted is None or name in wanted]
    if isinstance(suite, str):
        return _classroom_tasks(kept, split, everything=wanted is None)
    if isinstance(suite, Mapping):
        return [Task(name=name, examples=suite[name]) for name in kept]
    return [task for task in suite if task.name in kept]


def _classroom_tasks(names: Sequence[str], split: str, *, everything: bool) -> list[Task]:
    found = {name: records(load_examples(f"classroom/{name}").to_list()) for name in names}
    kept = {name: [row for row in rows if row.split == split] for name, rows in found.items()}
    lacking = [name for name in names if not kept[name]]
    if lacking and not (everything and len(lacking) < len(names)):
        there = ", ".join(sorted({row.split for name in lacking for row in found[name]}))
        raise ConfigError(f"tasks {', '.join(lacking)} have no row in split {split!r}; choose one of {there}")
    return [Task(name=name, examples=rows) for name, rows in kept.items() if rows]


def _subset(task: Task, limit: int, seed: int) -> Task:
    rows = task.rows()
    order = list(range(len(rows)))
    random.Random(f"{seed}/{task.name}").shuffle(order)
    return replace(task, examples=[rows[i] for i in sorted(order[:limit])])
