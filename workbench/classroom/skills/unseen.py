"""Unseen tasks: kinds of exercise that no skill trains on, for few-shot composition."""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import listed, person
from workbench.classroom.world import Condition

_EXPAND = (
    "what does {x} stand for?",
    "expand the abbreviation {x}.",
    "write {x} in full.",
    "which condition is meant by {x}?",
)
_ABBREVIATE = (
    "what is the abbreviation of {x}?",
    "abbreviate {x}.",
    "write the short form of {x}.",
    "which short form does {x} have?",
)
_CHART = ("", "chart: {p}. ", "letter about {p}. ", "handover: {p}. ")


def _abbreviation(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft | None:
    if not condition.abbreviation:
        return None
    names = {
        "expand": condition.abbreviation,
        "abbreviate name": condition.name,
        "abbreviate synonym": condition.synonym,
    }
    wording = r.choice(_EXPAND if kind == "expand" else _ABBREVIATE)
    return Draft(
        context=r.choice(_CHART).format(p=person(r, condition).noun).strip(),
        query=wording.format(x=names[kind]),
        answer=condition.name if kind == "expand" else condition.abbreviation,
    )


_SEEN = (
    "{p} has {x}.",
    "{p} comes with {x}.",
    "a letter tells of {p} with {x}.",
    "{p} asks for help because of {x}.",
)
_REFER = (
    "which specialty should see this patient?",
    "to which specialty do we refer?",
    "name the specialty for the referral.",
    "who should see the patient next?",
)


def _referral(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    symptoms = r.sample(condition.symptoms, len(condition.symptoms))
    return Draft(
        context=r.choice(_SEEN).format(
            p=person(r, condition).noun, x=condition.name if kind == "condition" else listed(symptoms)
        ),
        query=r.choice(_REFER),
        answer=condition.specialty,
    )


_KNOWN = ("{p} has {c}.", "{p} is known for {c}.", "the chart of {p} says {c}.", "{p} lives with {c}.")
_SAFE = ("is the use of {x} safe?", "may we allow {x}?", "can the patient have {x}?", "is {x} fine here?")


def _safety(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft | None:
    if condition.treatment == condition.contraindication:
        return None
    subject = condition.treatment if kind == "yes" else condition.contraindication
    return Draft(
        context=r.choice(_KNOWN).format(p=person(r, condition).noun, c=condition.name),
        query=r.choice(_SAFE).format(x=subject),
        answer=kind,
        extra={"entities": [subject]},
    )


ABBREVIATION = Task(
    name="abbreviation",
    stage="broad",
    kinds=("expand", "abbreviate name", "abbreviate synonym"),
    draft=_abbreviation,
    train=240,
)
REFERRAL = Task(name="referral", stage="specialist", kinds=("condition", "symptoms"), draft=_referral, train=240)
SAFETY_CHECK = Task(name="safety_check", stage="specialist", kinds=("yes", "no"), draft=_safety, train=240)
