"""What a note affirms, denies, or leaves open: inference and the status of an entity.

The word right after a finding gives its status, as in the shorthand of notes, and the answer quotes the evidence before
it rules: a very small model can look a finding up, read on and copy, and judge what it has just written.
"""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import person, strangers
from workbench.classroom.world import Condition

CUES = {
    "present": ("reported", "found", "noted"),
    "absent": ("denied", "excluded", "missing"),
    "past": ("resolved", "healed", "earlier"),
    "family": ("in father", "in mother", "in brother"),
}

_LABELS = {"present": "entailment", "absent": "contradiction", "unmentioned": "neutral"}
"""Status of the claimed finding in the note, to the label of the claim."""

_RULINGS = (
    "entailment, contradiction or neutral?",
    "does the note support the claim?",
    "how does the claim relate to the note?",
    "judge the claim by the note.",
)


def _inference(r: Random, condition: Condition, status: str, pool: Pool) -> Draft | None:
    strange = strangers(r, condition, pool, "symptoms", 3)
    if strange is None:
        return None
    present, absent, unmentioned = r.sample(condition.symptoms, 2), strange[:2], strange[2]
    finding = {"present": present[0], "absent": absent[0], "unmentioned": unmentioned}[status]
    clauses = {s: _clause(r, "present", s) for s in present} | {s: _clause(r, "absent", s) for s in absent}
    return Draft(
        context=f"note: {person(r, condition).noun}. {_shuffled(r, clauses)}",
        query=f"claim: the patient has {finding}. {r.choice(_RULINGS)}",
        answer=f"{clauses.get(finding, f'{finding} unmentioned')}: {_LABELS[status]}",
    )


_STATUS = (
    "what is the status of {e}?",
    "is {e} present, absent, past or family?",
    "name the status of {e}.",
    "which status does the note give to {e}?",
)


def _attribute(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft | None:
    field = r.choice(("symptoms", "name"))
    strange = strangers(r, condition, pool, field, len(CUES) - 1)
    if strange is None:
        return None
    own = r.choice(condition.symptoms) if field == "symptoms" else condition.name
    findings = {kind: own, **dict(zip([status for status in CUES if status != kind], strange))}
    clauses = {finding: _clause(r, status, finding) for status, finding in findings.items()}
    return Draft(
        context=f"note: {person(r, condition).noun}. {_shuffled(r, clauses)}",
        query=r.choice(_STATUS).format(e=own),
        answer=f"{clauses[own]}: {kind}",
    )


def _clause(r: Random, status: str, finding: str) -> str:
    return f"{finding} {r.choice(CUES[status])}"


def _shuffled(r: Random, clauses: dict[str, str]) -> str:
    return " ".join(f"{clause}." for clause in r.sample(list(clauses.values()), len(clauses)))


INFERENCE = Task(name="inference", stage="specialist", kinds=tuple(_LABELS), draft=_inference)
ENTITY_ATTRIBUTE = Task(name="entity_attribute", stage="specialist", kinds=tuple(CUES), draft=_attribute)
