"""What all builders share: finished rows, and splits that never share a prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

from workbench.classroom.world import Condition, World, rng
from workbench.records import Example

SIZES = {"train": 280, "validation": 60, "test": 100, "test_unseen": 40}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt and its answer before a split and an id are given to it."""

    query: str
    answer: str
    context: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


Draft = Callable[[Condition, Random], Row]


def finish(skill: str, stage: str, split: str, rows: Sequence[Row]) -> list[Example]:
    """Number rows of one split and write them as examples."""
    return [
        Example(
            id=f"{skill}-{split}-{number}",
            skill=skill,
            stage=stage,
            split=split,
            context=row.context,
            query=row.query,
            answer=row.answer,
            source="classroom",
            meta=json.dumps(row.meta, separators=(",", ":")),
        )
        for number, row in enumerate(rows)
    ]


def take(rows: Sequence[Row], sizes: Mapping[str, int], used: dict[tuple[str, str], str]) -> dict[str, list[Row]]:
    """Deal rows out to splits in order; a prompt that was dealt before is passed over.

    Args:
        rows: Candidates, best first.
        sizes: Split name to the number of rows wanted.
        used: Prompts dealt so far, with their split; it grows.

    Returns:
        Split name to its rows; fewer than asked for, in the later splits, where a small world has no more.
    """
    fresh = []
    for row in rows:
        prompt = (row.context, row.query)
        if prompt not in used:
            used[prompt] = row.answer
            fresh.append(row)
    dealt, start = {}, 0
    for split, size in sizes.items():
        dealt[split] = fresh[start : start + size]
        start += size
    return dealt


def held_out_names(world: World) -> re.Pattern[str]:
    """Return what finds a name, synonym or abbreviation of a held-out condition as whole words, in any case."""
    names = [n for c in world.unseen for n in (c.name, c.synonym, c.abbreviation) if n]
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names)) or '(?!)'})(?!\w)", re.IGNORECASE)


def rounds(skill: str, split: str, conditions: Sequence[Condition], draft: Draft) -> Iterator[Row]:
    """Yield drafts forever, every condition once before any comes again, in a shuffled order each time."""
    random = rng(skill, split)
    while conditions:
        for condition in random.sample(conditions, len(conditions)):
            yield draft(condition, random)


def clinical_task(skill: str, draft: Draft, world: World) -> list[Example]:
    """Build the four splits of a task that is about one condition a row.

    Args:
        skill: Task name.
        draft: `(condition, generator)` to a row.
        world: Held-out conditions appear in `test_unseen` alone; a draft that names one elsewhere is drawn again.
    """
    leak = held_out_names(world)
    used: dict[tuple[str, str], str] = {}
    seen = (row for row in rounds(skill, "seen", world.seen, draft) if not leak.search(f"{row.context}\n{row.answer}"))
    unseen = rounds(skill, "unseen", world.unseen, draft)
    examples = []
    for split, size in SIZES.items():
        source = unseen if split == "test_unseen" else seen
        examples += finish(skill, "specialist", split, _fresh(source, size, used))
    return examples


def _fresh(rows: Iterator[Row], size: int, used: dict[tuple[str, str], str]) -> list[Row]:
    """Take the next rows whose prompts were not used; give up after many repetitions, as tiny worlds must."""
    taken: list[Row] = []
    for row in islice(rows, 50 * size):
        if (row.context, row.query) not in used:
            used[row.context, row.query] = row.answer
            taken.append(row)
            if len(taken) == size:
                break
    return taken
