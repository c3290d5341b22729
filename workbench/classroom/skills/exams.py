"""The exam, in the shape of MedQA and CMExam: a short vignette and four options.

Forward look-up goes from the condition to a fact, backward look-up from a fact to the condition; they are kept apart
because a model that learned one need not know the other.
"""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import condition_choices, listed, person, value_choices
from workbench.classroom.world import Condition

_VIGNETTES = (
    "{p} is found to have {c}.",
    "{p} with {s} is diagnosed with {c}.",
    "{p} comes to the clinic with known {c}.",
    "{p} reports {s}. the diagnosis is {c}.",
    "in the ward, {p} is treated for {c}.",
)

_FORWARD = {
    "test": ("which test confirms it?", "which of these tests settles the diagnosis?"),
    "treatment": ("which treatment comes first?", "which of these is the first treatment?"),
    "cause": ("which is the main cause?", "which of these causes it?"),
    "drug_class": ("which class of treatment is used first?", "to which class does the first treatment belong?"),
    "contraindication": ("which must be avoided?", "which of these is contraindicated?"),
}

_BACKWARD = {
    "test": ("which condition is confirmed by {v}?", "in which condition is {v} the confirming test?"),
    "treatment": ("which condition is first treated with {v}?", "for which condition is {v} the first treatment?"),
    "cause": ("which condition is caused by {v}?", "of which condition is {v} the main cause?"),
    "drug_class": (
        "in which condition is the first treatment of the class {v}?",
        "which condition needs this class: {v}?",
    ),
    "contraindication": ("in which condition must {v} be avoided?", "in which condition is {v} contraindicated?"),
    "symptoms": ("which condition shows {v}?", "which condition explains {v}?"),
}

_SETTINGS = ("", "exam question: ", "choose one: ", "a colleague asks: ", "on the ward round: ")


def _forward(r: Random, condition: Condition, field: str, pool: Pool) -> Draft | None:
    choices = value_choices(r, condition, field, pool)
    if choices is None:
        return None
    symptoms = listed(r.sample(condition.symptoms, 2))
    vignette = r.choice(_VIGNETTES).format(p=person(r, condition).noun, c=condition.name, s=symptoms)
    return Draft(query=f"{vignette} {r.choice(_FORWARD[field])}", answer=getattr(condition, field), choices=choices)


def _backward(r: Random, condition: Condition, field: str, pool: Pool) -> Draft | None:
    choices = condition_choices(r, condition, field, pool)
    if choices is None:
        return None
    value = getattr(condition, field)
    text = listed(r.sample(value, len(value))) if isinstance(value, tuple) else value
    query = r.choice(_SETTINGS) + r.choice(_BACKWARD[field]).format(v=text)
    return Draft(query=query, answer=condition.name, choices=choices)


EXAM_FORWARD = Task(name="exam_forward", stage="broad", kinds=tuple(_FORWARD), draft=_forward)
EXAM_BACKWARD = Task(name="exam_backward", stage="broad", kinds=tuple(_BACKWARD), draft=_backward)
