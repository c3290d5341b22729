"""How one task's drafts become the rows of four splits: rounds over all facts, no prompt twice, nothing held out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from workbench.classroom.world import Condition, World, rng
from workbench.records import Example

SIZES = {"train": 400, "validation": 60, "test": 120, "test_unseen": 60}
"""Rows of each split; `train` grows until it holds every fact once."""

_MAX_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a task says about one condition, before it has a split and an id.

    Args:
        query: The request.
        answer: The wanted output, a function of all else.
        context: Text that the query is about, or `""`.
        choices: Options that hold `answer`, or None.
        extra: Further keys of the row's `meta`.
    """

    query: str
    answer: str
    context: str = ""
    choices: tuple[str, ...] | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All words of the draft, for the search of held-out names."""
        return "\n".join([self.context, self.query, self.answer, *(self.choices or ()), json.dumps(dict(self.extra))])


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The conditions that rows may be about, and those that their distractors come from.

    Args:
        world: All conditions; what identifies a condition is decided over all of them.
        conditions: What rows are about.
        others: Where second conditions, wrong choices and absent findings come from.
    """

    world: World
    conditions: tuple[Condition, ...]
    others: tuple[Condition, ...]

    def other(self, r: Random, condition: Condition) -> Condition:
        """Draw a condition of another organ system (of any, where the world has one system only)."""
        rest = [c for c in self.others if c.name != condition.name]
        return r.choice([c for c in rest if c.organ_system != condition.organ_system] or rest)


DraftRow = Callable[[Random, Condition, str, Pool], Draft | None]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of exercise.

    Args:
        name: Task name, the `skill` of its rows.
        stage: `general`, `broad` or `specialist`.
        kinds: Sub-kinds, drawn equally often; a *fact* is a condition and a kind.
        draft: Writes one row about a condition, or None where the kind does not apply to it.
        train: Fewest training rows; more where that is what it takes to state every fact.
    """

    name: str
    stage: str
    kinds: tuple[str, ...]
    draft: DraftRow
    train: int = SIZES["train"]

    def examples(self, world: World) -> list[Example]:
        """Return the rows of all splits in the order of `SIZES`; a small world gives fewer rows.

        No prompt occurs twice (whatever its choices), and every fact of `validation` and `test` is in `train`.
        """
        seen = Pool(world=world, conditions=world.seen, others=world.seen)
        unseen = Pool(world=world, conditions=world.unseen, others=world.conditions)
        parts = self._seen_splits(seen)
        parts["test_unseen"] = [item for _, item in islice(self._deck(unseen, "unseen"), SIZES["test_unseen"])]
        return [
            self._example(split, index, *item) for split, items in parts.items() for index, item in enumerate(items)
        ]

    def _seen_splits(self, pool: Pool) -> dict[str, list[tuple[Condition, str, Draft]]]:
        train: list[tuple[Condition, str, Draft]] = []
        rest: list[tuple[Condition, str, Draft]] = []
        facts: set[tuple[str, str]] = set()
        leaks = held_out_names(pool.world)
        for number, item in self._deck(pool, "seen"):
            condition, kind, draft = item
            if leaks.search(draft.text):
                continue
            if number == 0 or len(train) < self.train:
                train.append(item)
                facts.add((condition.name, kind))
            elif (condition.name, kind) in facts:
                rest.append(item)
            if len(rest) == SIZES["validation"] + SIZES["test"]:
                break
        return {"train": train, "validation": rest[: SIZES["validation"]], "test": rest[SIZES["validation"] :]}

    def _deck(self, pool: Pool, key: str) -> Iterator[tuple[int, tuple[Condition, str, Draft]]]:
        r = rng("skills", self.name, key)
        prompts: set[tuple[str, str, str]] = set()
        for number in range(_MAX_ROUNDS):
            # One column per kind, read row by row: any prefix of a round holds all kinds about equally often.
            columns = [r.sample(pool.conditions, len(pool.conditions)) for _ in self.kinds]
            for row in zip(*columns):
                for condition, kind in zip(row, self.kinds):
                    draft = self.draft(r, condition, kind, pool)
                    if draft is None:
                        continue
                    # Backward questions on a shared fact read alike; their choices, with one right each, differ.
                    prompt = (draft.context, draft.query, condition.name if draft.choices else "")
                    if prompt not in prompts:
                        prompts.add(prompt)
                        yield number, (condition, kind, draft)

    def _example(self, split: str, index: int, condition: Condition, kind: str, draft: Draft) -> Example:
        meta = {"condition": condition.name, "organ_system": condition.organ_system, "kind": kind, **draft.extra}
        return Example(
            id=f"{self.name}-{split}-{index:04d}",
            skill=self.name,
            stage=self.stage,
            split=split,
            context=draft.context,
            query=draft.query,
            choices=draft.choices,
            answer=draft.answer,
            source="classroom",
            meta=json.dumps(meta, separators=(",", ":")),
        )


def held_out_names(world: World) -> re.Pattern[str]:
    """Return a pattern for the names and synonyms (any case) and abbreviations (exact case) of held-out conditions."""
    names = sorted({re.escape(n) for c in world.unseen for n in (c.name, c.synonym) if n})
    short = sorted({re.escape(c.abbreviation) for c in world.unseen if c.abbreviation})
    parts = [f"(?i:{name})" for name in names] + short
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)" if parts else r"(?!)")
