"""The classroom world: public medical facts about conditions, from which every classroom text is generated."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FACT_FIELDS = (
    "synonym",
    "abbreviation",
    "organ_system",
    "specialty",
    "symptoms",
    "test",
    "treatment",
    "drug_class",
    "contraindication",
    "cause",
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition and its facts, all lower case but for abbreviations, each one to four words.

    Args:
        name: Common name, unique.
        synonym: Another name, unique over the world.
        abbreviation: Usual abbreviation in capitals, or `""`.
        organ_system: One of the world's organ systems.
        specialty: The specialty that treats it.
        symptoms: Three or four, whose set is unique over the world.
        test: Confirmatory test.
        treatment: First-line treatment.
        drug_class: Class or kind of that treatment.
        contraindication: A drug or measure to be avoided in this condition.
        cause: Main cause.
        held_out: True where no task-formatted training example may name it.
        sources: Field name to the public source that was opened for it, or `"unverified"`.
    """

    name: str
    synonym: str
    abbreviation: str
    organ_system: str
    specialty: str
    symptoms: tuple[str, ...]
    test: str
    treatment: str
    drug_class: str
    contraindication: str
    cause: str
    held_out: bool = False
    sources: dict[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class World:
    """All conditions, in file order."""

    conditions: tuple[Condition, ...]

    @property
    def seen(self) -> tuple[Condition, ...]:
        """Conditions that task-formatted training examples may name."""
        return tuple(c for c in self.conditions if not c.held_out)

    @property
    def unseen(self) -> tuple[Condition, ...]:
        """Conditions that only prose and unseen tests name."""
        return tuple(c for c in self.conditions if c.held_out)

    def values(self, name: str, conditions: Sequence[Condition] | None = None) -> list[str]:
        """Return the distinct values of a fact field, sorted; symptoms are flattened."""
        pool = self.conditions if conditions is None else conditions
        seen: set[str] = set()
        for condition in pool:
            value = getattr(condition, name)
            seen.update(value if isinstance(value, tuple) else [value])
        return sorted(seen - {""})


def load_world(path: Path) -> World:
    """Read `conditions.json`: a list of objects with the fields of `Condition`."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return World(tuple(Condition(**{**row, "symptoms": tuple(row["symptoms"])}) for row in rows))


def rng(*key: object) -> random.Random:
    """Return a generator that depends on the key's text alone: the same on every machine and run."""
    return random.Random("/".join(str(part) for part in key))
