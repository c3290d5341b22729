"""Names of things: the entities of a sentence, and the other names of a condition."""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import person, strangers
from workbench.classroom.world import Condition

# The sentences only say what is there, never why: the entities belong to different conditions, so that nobody can
# list them from memory without reading.
_SENTENCES = {
    "condition, symptom": (
        "note: {p} with {c} reports {s}.",
        "note: {p} reports {s}. history of {c}.",
        "note: {s} in {p} with {c}.",
        "note: {p}. known {c}. new {s}.",
    ),
    "condition, treatment": (
        "note: {p} with {c} received {t}.",
        "note: {p} received {t}. history of {c}.",
        "note: {t} in {p} with {c}.",
        "note: {p}. known {c}. new {t}.",
    ),
    "symptom, treatment": (
        "note: {p} with {s} received {t}.",
        "note: {p} received {t}. reports {s}.",
        "note: {s} in {p} with {t}.",
        "note: {p}. known {t}. new {s}.",
    ),
    "condition, symptom, treatment": (
        "note: {p} with {c} reports {s} and received {t}.",
        "note: {p} received {t}. reports {s}. history of {c}.",
        "note: {s} in {p} with {c} and {t}.",
        "note: {p}. known {c}. new {s}. received {t}.",
    ),
}
_LIST = (
    "list the entities of the note.",
    "which entities does the note name?",
    "mark all entities with their type.",
    "find condition, symptom and treatment.",
)


def _ner(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft | None:
    symptoms, treatments = strangers(r, condition, pool, "symptoms", 1), strangers(r, condition, pool, "treatment", 1)
    if symptoms is None or treatments is None or treatments[0] == condition.contraindication:
        return None
    found = {"condition": condition.name, "symptom": symptoms[0], "treatment": treatments[0]}
    sentence = r.choice(_SENTENCES[kind]).format(
        p=person(r, condition).noun, c=condition.name, s=symptoms[0], t=treatments[0]
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
_WHICH = (
    "which of these means {c}: {a} or {b}?",
    "what is {c} also called, {a} or {b}?",
    "choose the other name of {c}: {a} or {b}.",
    "does {c} mean {a} or {b}?",
)


def _synonymy(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    field, own = ("synonym", condition.name) if "synonym" in kind else ("name", condition.synonym)
    answer = getattr(condition, field)
    if kind in ("synonym", "name"):
        return Draft(query=r.choice(_OTHER_NAME).format(c=own), answer=answer)
    pair = [answer, getattr(pool.other(r, condition), field)]
    r.shuffle(pair)
    return Draft(query=r.choice(_WHICH).format(c=own, a=pair[0], b=pair[1]), answer=answer)


NER = Task(name="ner", stage="specialist", kinds=tuple(_SENTENCES), draft=_ner)
ENTITY_SYNONYMY = Task(
    name="entity_synonymy", stage="broad", kinds=("synonym", "name", "which synonym", "which name"), draft=_synonymy
)
