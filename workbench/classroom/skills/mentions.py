"""Names of things: the entities of a sentence, and the other names of a condition."""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import person
from workbench.classroom.world import Condition

_SENTENCES = {
    "condition, symptom": (
        "note: {p} with {c} has {s}.",
        "note: {s} in {p} with {c}.",
        "note: {p} reports {s}, known for {c}.",
        "note: {p} has {c} and suffers from {s}.",
    ),
    "condition, treatment": (
        "note: {p} with {c} received {t}.",
        "note: {p} was treated with {t} for {c}.",
        "note: {c} in {p}, start of {t}.",
        "note: {p} needs {t} because of {c}.",
    ),
    "symptom, treatment": (
        "note: {p} with {s} received {t}.",
        "note: {p} was treated with {t} for {s}.",
        "note: {s} in {p}, start of {t}.",
        "note: {p} needs {t} because of {s}.",
    ),
    "condition, symptom, treatment": (
        "note: {p} with {c} has {s} and received {t}.",
        "note: {p} was treated with {t} for {c} with {s}.",
        "note: {s} in {p} with {c}, start of {t}.",
        "note: {p} needs {t} because of {c}, and reports {s}.",
    ),
}
_LIST = (
    "list the entities of the note.",
    "which entities does the note name?",
    "mark all entities with their type.",
    "find condition, symptom and treatment.",
)


def _ner(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    found = {"condition": condition.name, "symptom": r.choice(condition.symptoms), "treatment": condition.treatment}
    sentence = r.choice(_SENTENCES[kind]).format(
        p=person(r, condition).noun, c=found["condition"], s=found["symptom"], t=found["treatment"]
    )
    return Draft(
        context=sentence,
        query=r.choice(_LIST),
        answer="; ".join(f"{entity}: {found[entity]}" for entity in kind.split(", ")),
    )


_OTHER_NAME = (
    "what is another name for {c}?",
    "give another name of {c}.",
    "how else is {c} called?",
    "name a synonym of {c}.",
    "which other name does {c} have?",
    "under which other name is {c} known?",
)
_SAME = (
    "are {a} and {b} the same condition?",
    "is {a} another name for {b}?",
    "do {a} and {b} mean the same?",
    "does {a} stand for the same condition as {b}?",
)


def _synonymy(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft | None:
    if kind == "synonym":
        return Draft(query=r.choice(_OTHER_NAME).format(c=condition.name), answer=condition.synonym)
    if kind == "name":
        return Draft(query=r.choice(_OTHER_NAME).format(c=condition.synonym), answer=condition.name)
    partner = condition if kind == "same" else pool.other(r, condition)
    pair = [condition.name, partner.synonym]
    r.shuffle(pair)
    return Draft(query=r.choice(_SAME).format(a=pair[0], b=pair[1]), answer="yes" if kind == "same" else "no")


NER = Task(name="ner", stage="specialist", kinds=tuple(_SENTENCES), draft=_ner)
ENTITY_SYNONYMY = Task(
    name="entity_synonymy", stage="broad", kinds=("synonym", "name", "same", "different"), draft=_synonymy
)
