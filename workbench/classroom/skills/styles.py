"""Preference pairs: two right answers, of which one has the wished style."""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import ask
from workbench.classroom.world import Condition

STYLES = ("concise", "detailed", "polite")
_WISHES = {
    "concise": ("be concise.", "answer briefly.", "use few words.", "keep it short."),
    "detailed": ("be detailed.", "answer at length.", "explain the background.", "tell more than the bare fact."),
    "polite": ("be polite.", "answer kindly.", "use courteous words.", "be friendly to the patient."),
}
_LEADS = {"test": "the test is", "treatment": "the first treatment is", "cause": "the main cause is"}


def _preference(r: Random, condition: Condition, style: str, pool: Pool) -> Draft:
    field = r.choice(list(_LEADS))
    choices = [_answer(condition, field, style), _answer(condition, field, r.choice([s for s in STYLES if s != style]))]
    better = choices[0]
    r.shuffle(choices)
    return Draft(
        query=f"{ask(r, field, condition)} {r.choice(_WISHES[style])} which answer is better?",
        answer=better,
        choices=tuple(choices),
        extra={"style": style},
    )


def _answer(condition: Condition, field: str, style: str) -> str:
    value = getattr(condition, field)
    if style == "concise":
        return f"{value}."
    if style == "detailed":
        return f"the organ system of {condition.name} is {condition.organ_system}. {_LEADS[field]} {value}."
    return f"thank you for asking. {_LEADS[field]} {value}. take care."


PREFERENCE = Task(name="preference", stage="broad", kinds=STYLES, draft=_preference, train=240)
