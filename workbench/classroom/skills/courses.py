"""What happens to one patient: the visit, the note, the ward course, and its one-line summary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import listed, person
from workbench.classroom.world import Condition

_COMPLAINTS = (
    "patient: i am {age} years old. i have {s}.",
    "patient: hello doctor, i suffer from {s}. i am {age}.",
    "patient: for some days i have had {s}. my age is {age}.",
    "patient: i am {age} and i noticed {s}.",
    "patient: please help me, i have {s}. i am {age} years old.",
)
_REPLIES = (
    "what does the doctor answer?",
    "write the answer of the doctor.",
    "answer as the doctor.",
    "how does the doctor reply?",
)


def _conversation(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft | None:
    options = [condition.symptoms] if kind == "all" else identifying(condition, pool.world.conditions)
    if not options:
        return None
    chosen = r.choice(options)
    symptoms = r.sample(chosen, len(chosen))
    return Draft(
        context=r.choice(_COMPLAINTS).format(age=person(r, condition).age, s=listed(symptoms)),
        query=r.choice(_REPLIES),
        answer=f"this may be {condition.name}. the test is {condition.test}.",
    )


def identifying(condition: Condition, conditions: Sequence[Condition]) -> list[tuple[str, ...]]:
    """Return the pairs of symptoms that only this condition has, in the order of its symptoms."""
    others = [set(c.symptoms) for c in conditions if c.name != condition.name]
    pairs = combinations(condition.symptoms, 2)
    return [pair for pair in pairs if not any(set(pair) <= symptoms for symptoms in others)]


_NOTES = (
    "note: {p} with {c}.",
    "note: {p} is seen today for {c}.",
    "note: the chart of {p} lists {c}.",
    "note: {p}, history of {c}.",
    "note: {p} is followed for {c}.",
)
_SYSTEMS = (
    "which organ systems are affected?",
    "list the organ systems of the note.",
    "classify the note by organ system.",
    "to which organ systems does the note belong?",
)


def _classification(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    named = [condition] if kind == "one" else [condition, pool.other(r, condition)]
    # The note follows the order of the answer: sorting is not what this skill is about.
    named.sort(key=lambda c: c.organ_system)
    names = [c.name for c in named]
    return Draft(
        context=r.choice(_NOTES).format(p=person(r, condition).noun, c=" and ".join(names)),
        query=r.choice(_SYSTEMS),
        answer=", ".join(dict.fromkeys(c.organ_system for c in named)),
        extra={"entities": names},
    )


_PULSES = (56, 64, 72, 84, 96, 108, 112, 124)
_DAYS = (2, 3, 4, 5, 6, 7, 8, 9)
_ADMITTED = (
    "{p} came to the ward with {c}.",
    "{p} was admitted for {c}.",
    "the ward took in {p} because of {c}.",
)
_STAY = (
    ("the pulse was {pulse}.", "a pulse of {pulse} was noted."),
    ("{he} received {t}.", "{he} was treated with {t}."),
    ("{he} stayed for {days} days.", "{he} went home after {days} days."),
)
_ABOUT_STAY = {
    "age": ("how old is the patient?", "what is the age of the patient?", "give the age in years."),
    "sex": ("is the patient a man or a woman?", "what is the sex of the patient?", "give the sex."),
    "condition": ("which condition does the patient have?", "what is the diagnosis?", "why was the patient admitted?"),
    "treatment": ("which treatment was given?", "what did the patient receive?", "name the treatment."),
    "pulse": ("what was the pulse?", "which pulse was noted?", "give the pulse."),
    "days": (
        "how many days did the stay last?",
        "after how many days did the patient leave?",
        "give the days of stay.",
    ),
}


def _reading(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    who = person(r, condition)
    pulse, days = r.choice(_PULSES), r.choice(_DAYS)
    answers = {
        "age": str(who.age),
        "sex": who.sex,
        "condition": condition.name,
        "treatment": condition.treatment,
        "pulse": str(pulse),
        "days": str(days),
    }
    stay = [r.choice(group) for group in _STAY]
    r.shuffle(stay)
    passage = " ".join([r.choice(_ADMITTED), *stay]).format(
        p=who.noun, c=condition.name, he=who.pronoun, t=condition.treatment, pulse=pulse, days=days
    )
    return Draft(context=passage, query=r.choice(_ABOUT_STAY[kind]), answer=answers[kind])


_COURSE = (
    ("{he} had {c}.", "the diagnosis was {c}.", "doctors found {c}."),
    ("confirmation came from {test}.", "the finding was confirmed by {test}.", "proof came from {test}."),
    ("{he} received {t}.", "the treatment was {t}.", "{he} improved after {t}."),
)
_OPENINGS = (
    "{p} came with {s}.",
    "the ward saw {p} with {s}.",
    "because of {s}, {p} was admitted.",
)
_SUMMARISE = ("summarise the course.", "write a one line summary.", "give the summary.", "sum up the stay in one line.")


def _summarisation(r: Random, condition: Condition, kind: str, pool: Pool) -> Draft:
    who = person(r, condition)
    sentences = [r.choice(group) for group in _COURSE]
    r.shuffle(sentences)
    symptoms = r.sample(condition.symptoms, 1 if kind == "one symptom" else 2)
    text = " ".join([r.choice(_OPENINGS), *sentences])
    facts = {"c": condition.name, "test": condition.test, "t": condition.treatment, "s": listed(symptoms)}
    return Draft(
        context=text.format(p=who.noun, he=who.pronoun, **facts),
        query=r.choice(_SUMMARISE),
        answer=(
            f"{who.age} year old {who.sex} with {condition.name}, "
            f"confirmed by {condition.test}, treated with {condition.treatment}"
        ),
    )


CONVERSATION = Task(name="conversation", stage="specialist", kinds=("all", "part"), draft=_conversation)
CLASSIFICATION = Task(name="classification", stage="specialist", kinds=("one", "two"), draft=_classification)
READING_COMPREHENSION = Task(name="reading_comprehension", stage="specialist", kinds=tuple(_ABOUT_STAY), draft=_reading)
SUMMARISATION = Task(
    name="summarisation", stage="specialist", kinds=("one symptom", "two symptoms"), draft=_summarisation
)
