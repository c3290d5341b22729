"""What a note affirms, denies, or leaves open: inference and the status of an entity.

A note names one finding, with its status in the words right after it, among clauses that say nothing of findings: which
of several statuses belongs to the finding asked for is more than models this small learn to look up. The answer quotes
the evidence before it rules.
"""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import person
from workbench.classroom.world import Condition

CUES = {
    "present": ("reported", "found", "noted"),
    "absent": ("denied", "excluded", "missing"),
    "past": ("resolved", "healed", "earlier"),
    "family": ("in father", "in mother", "in brother"),
}

OPEN = ("unclear", "not asked", "untested")
"""Cues that neither affirm nor deny."""

_CLAIMS = {True: "the patient has {e}", False: "the patient is free of {e}"}

_RULINGS = (
    "entailment, contradiction or neutral?",
    "does the note support the claim?",
    "how does the claim relate to the note?",
    "judge the claim by the note.",
)


def _inference(r: Random, condition: Condition, label: str, pool: Pool) -> Draft:
    finding, affirms = r.choice(condition.symptoms), r.random() < 0.5
    status = "present" if (label == "entailment") is affirms else "absent"
    clause = f"{finding} {r.choice(OPEN if label == 'neutral' else CUES[status])}"
    return Draft(
        context=_note(r, condition, clause),
        query=f"claim: {_CLAIMS[affirms].format(e=finding)}. {r.choice(_RULINGS)}",
        answer=f"{clause}: {label}",
    )


_HOMES = ("alone", "with family", "abroad")

_STATUS = (
    "what is the status of {e}?",
    "is {e} present, absent, past or family?",
    "name the status of {e}.",
    "which status does the note give to {e}?",
)


def _attribute(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    own = r.choice((*condition.symptoms, condition.name))
    clause = f"{own} {r.choice(CUES[kind])}"
    return Draft(context=_note(r, condition, clause), query=r.choice(_STATUS).format(e=own), answer=f"{clause}: {kind}")


def _note(r: Random, condition: Condition, clause: str) -> str:
    """A note of one finding, with one or two of the clauses that a note has besides."""
    beside = (f"pulse {r.randrange(52, 132, 4)}", f"stays {r.randint(2, 9)} days", f"lives {r.choice(_HOMES)}")
    clauses = [clause, *r.sample(beside, r.randint(1, 2))]
    return f"note: {person(r, condition).noun}. {' '.join(f'{part}.' for part in r.sample(clauses, len(clauses)))}"


INFERENCE = Task(
    name="inference", stage="specialist", kinds=("entailment", "contradiction", "neutral"), draft=_inference
)
ENTITY_ATTRIBUTE = Task(name="entity_attribute", stage="specialist", kinds=tuple(CUES), draft=_attribute)
