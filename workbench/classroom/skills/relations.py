"""How two entities are related: read from a note, or known by heart."""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import person
from workbench.classroom.world import Condition

FIELD_OF = {
    "treats": "treatment",
    "causes": "cause",
    "confirms": "test",
    "contraindicated": "contraindication",
    "symptom of": "symptoms",
}
"""Relation of an entity to a condition, to the field that holds the entity."""

_KNOWN_FIELDS = {**FIELD_OF, "same as": "synonym"}

# The word right before the entity tells the relation.
_STATEMENTS = {
    "treats": ("the {c} was treated with {e}.", "the {c} was eased using {e}.", "against {c} we gave {e}."),
    "causes": ("the {c} arose from {e}.", "behind {c} we found {e}.", "the {c} followed {e}."),
    "confirms": ("the {c} was proven by {e}.", "we saw {c} through {e}.", "to settle {c} we ordered {e}."),
    "contraindicated": ("in {c} we avoid {e}.", "because of {c} we stopped {e}.", "the {c} forbids {e}."),
    "symptom of": ("the {c} showed {e}.", "the {c} brought {e}.", "from {c} the patient felt {e}."),
}
_READ = (
    "in the note, how is {e} related to {c}?",
    "which relation does the note give from {e} to {c}?",
    "read the note: what is {e} to {c}?",
    "name the relation of {e} to {c} in the note.",
)
_KNOW = (
    "how is {e} related to {c}?",
    "what is the relation of {e} to {c}?",
    "name the relation between {e} and {c}.",
    "how are {e} and {c} related?",
    "consider {c} and {e}. what is the relation?",
    "given {e} and {c}, which relation holds?",
)


def _entity(r: Random, condition: Condition, relation: str) -> str | None:
    """Draw the entity in a relation to the condition; None where the word has two roles in it."""
    value = getattr(condition, _KNOWN_FIELDS[relation])
    entity = r.choice(value) if isinstance(value, tuple) else value
    return entity if _entities(condition).count(entity) == 1 else None


def _entities(condition: Condition) -> list[str]:
    values = [getattr(condition, field) for field in _KNOWN_FIELDS.values()]
    return [entity for value in values for entity in (value if isinstance(value, tuple) else (value,))]


def _extraction(r: Random, condition: Condition, relation: str, pool: Pool) -> Draft | None:
    second = r.choice([name for name in FIELD_OF if name != relation])
    entities = [_entity(r, condition, name) for name in (relation, second)]
    if None in entities:
        return None
    statements = [
        r.choice(_STATEMENTS[name]).format(e=entity, c=condition.name)
        for name, entity in zip((relation, second), entities)
    ]
    r.shuffle(statements)
    return Draft(
        context=f"note: {person(r, condition).noun}. {' '.join(statements)}",
        query=r.choice(_READ).format(e=entities[0], c=condition.name),
        answer=relation,
    )


def _relation(r: Random, condition: Condition, relation: str, pool: Pool) -> Draft | None:
    entity = _entity(r, condition, relation)
    if entity is None:
        return None
    return Draft(query=r.choice(_KNOW).format(e=entity, c=condition.name), answer=relation)


RELATION_EXTRACTION = Task(name="relation_extraction", stage="specialist", kinds=tuple(FIELD_OF), draft=_extraction)
ENTITY_RELATION = Task(name="entity_relation", stage="broad", kinds=tuple(_KNOWN_FIELDS), draft=_relation)
