"""The frozen records that cross rooms; standard library only."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SKILLS = (
    "question_answering",
    "multiple_choice",
    "conversation",
    "classification",
    "reading_comprehension",
    "inference",
    "summarisation",
    "ner",
    "relation_extraction",
    "entity_attribute",
    "entity_synonymy",
    "entity_relation",
)
"""The twelve skills of SA-MDKIF (arXiv 2402.00474), in its order."""

SPLITS = ("train", "validation", "test", "test_unseen")
"""`test_unseen` holds conditions that appear in no task-formatted training example."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training or test item; input = context + query, output = answer.

    Args:
        id: Unique within its source.
        skill: Task name, one of `SKILLS` or any other word.
        stage: Tier of a curriculum, `""` where none was given.
        split: One of `SPLITS`, or any word of the user's.
        context: Text that the query is about; may be empty.
        query: The request itself; never empty.
        choices: Options of an exam or preference question, which hold `answer`; else None.
        answer: The wanted output.
        source: Where the row came from, `file:row` or a name.
        meta: A JSON object as text: constraint checks, condition, organ system, entities, further references.

    Source: SA-MDKIF (arXiv 2402.00474), the common instruction format.
    """

    id: str
    skill: str
    query: str
    answer: str
    context: str = ""
    choices: tuple[str, ...] | None = None
    stage: str = ""
    split: str = "train"
    source: str = ""
    meta: str = "{}"

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict in the column order of `EXAMPLE_COLUMNS`."""
        row = asdict(self)
        row["choices"] = None if self.choices is None else list(self.choices)
        return {name: row[name] for name in EXAMPLE_COLUMNS}

    def prompt(self) -> str:
        """Return what a model is asked: context, query, and one lettered line for each choice."""
        lines = [self.context, self.query] if self.context else [self.query]
        lines += [
            f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, self.choices or (), strict=False)
        ]
        return "\n".join(lines)

    def details(self) -> dict[str, Any]:
        """Return `meta` parsed."""
        return json.loads(self.meta)


EXAMPLE_COLUMNS = ("id", "skill", "stage", "split", "context", "query", "choices", "answer", "source", "meta")
assert set(EXAMPLE_COLUMNS) == {f.name for f in fields(Example)}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One task's value between 0 and 1 with its 95 % interval.

    Args:
        value: Mean of the per-example metric, 0 to 1.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Number of examples scored.
        metric: Name of the per-example metric, e.g. `exact_match`.
        group: The axis it counts towards, e.g. `clinical` or `instructions`.
    """

    value: float
    low: float
    high: float
    n: int
    metric: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Scores(Mapping[str, Score]):
    """Scores by task, with the macro average of each group.

    Args:
        tasks: Task name to its `Score`.
        settings: What the figures depend on: suite, split, limit, chat template, decoding.
    """

    tasks: Mapping[str, Score]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, task: str) -> Score:
        return self.tasks[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)
