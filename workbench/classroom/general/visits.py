"""Made-up visits to a doctor, told as dialogues, and the notes that follow from them word by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from workbench.classroom.general.rows import Row, clinical_task
from workbench.classroom.world import Condition, World
from workbench.records import Example

NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_ABSENT = ("fever", "a rash", "a cough", "a headache", "chest pain", "back pain")


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What was said in one visit; every note is a function of it.

    Args:
        condition: The diagnosis.
        age: In years.
        sex: `man` or `woman`.
        symptoms: Two symptoms of the condition, joined by `and`.
        absent: A complaint that the patient does not have, and that is none of the condition's symptoms.
        days: How long the complaint has lasted, a number word.
        stay: Days in hospital, a number word.
        weeks: Until the next visit, a number word.
    """

    condition: Condition
    age: int
    sex: str
    symptoms: str
    absent: str
    days: str
    stay: str
    weeks: str

    @property
    def patient(self) -> str:
        """For example `54 year old woman`."""
        return f"{self.age} year old {self.sex}"

    def words(self) -> dict[str, str]:
        """Return the fields by the names that frames use."""
        c = self.condition
        article = "an" if 80 <= self.age <= 89 else "a"
        return {
            "patient": self.patient,
            "a_patient": f"{article} {self.patient}",
            "s": self.symptoms,
            "absent": self.absent,
            "no": self.absent.removeprefix("a "),
            "days": self.days,
            "stay": self.stay,
            "weeks": self.weeks,
            "c": c.name,
            "test": c.test,
            "treatment": c.treatment,
            "avoid": c.contraindication,
            "specialty": c.specialty,
        }

    def entities(self, answer: str) -> list[str]:
        """Return the facts that an answer states, out of all that can be stated."""
        c = self.condition
        facts = [c.name, *self.symptoms.split(" and "), c.test, c.treatment, c.contraindication]
        return [fact for fact in dict.fromkeys(facts) if fact in answer]


def sexes(condition: Condition) -> tuple[str, ...]:
    """Return who can have a condition, judged by the organs and complaints that its facts name."""
    text = " ".join([condition.name, condition.test, *condition.symptoms])
    if any(part in text for part in ("prostat", "testic", "scrotal")):
        return ("man",)
    if any(part in text for part in ("period", "uter", "ovar", "vagin", "pregnan")):
        return ("woman",)
    return ("man", "woman")


def visit(condition: Condition, random: Random) -> Visit:
    """Draw a visit for a condition."""
    own = " ".join(condition.symptoms).split()
    return Visit(
        condition=condition,
        age=random.randrange(20, 90),
        sex=random.choice(sexes(condition)),
        symptoms=" and ".join(random.sample(condition.symptoms, 2)),
        absent=random.choice([a for a in _ABSENT if not set(a.split()[-2:]) & set(own)]),
        days=random.choice(NUMBERS),
        stay=random.choice(NUMBERS),
        weeks=random.choice(NUMBERS),
    )


def told(v: Visit, random: Random, frames: Sequence[str], query: str, answer: str) -> Row:
    """Tell a visit in one of the frames and write the answer that belongs to it."""
    text = answer.format(**v.words())
    return Row(
        context=random.choice(frames).format(**v.words()),
        query=query,
        answer=text,
        meta={
            "condition": v.condition.name,
            "organ_system": v.condition.organ_system,
            "entities": v.entities(text),
        },
    )


DIALOGUES = (
    "nurse: next is {a_patient}.\n"
    "doctor: what brings you in?\n"
    "patient: i have had {s} for {days} days.\n"
    "doctor: any {no}?\n"
    "patient: no.\n"
    "doctor: this looks like {c}. {test} will confirm it, and we will treat it with {treatment}. "
    "please avoid {avoid} and come back in {weeks} weeks.",
    "doctor: how are you today?\n"
    "patient: {days} days ago it began with {s}.\n"
    "doctor: and {absent}?\n"
    "patient: not at all.\n"
    "doctor: you are {a_patient}, so i think of {c}. you need {test}, and {treatment} is what helps, "
    "but never {avoid}. we meet again in {weeks} weeks.",
    "patient: hello, i am worried about {s}. it is {days} days now, but i do not have {absent}.\n"
    "doctor: for my notes: {a_patient}. i believe that it is {c}. first we do {test}.\n"
    "patient: and then?\n"
    "doctor: then {treatment}. stay away from {avoid}. your next visit is in {weeks} weeks.",
    "doctor: let me sum up. {a_patient}, {s}, no {no}. since when?\n"
    "patient: {days} days, and my sister told me to come.\n"
    "doctor: it fits with {c}. we plan {test}.\n"
    "patient: will i get something?\n"
    "doctor: yes, {treatment}, but not {avoid}. see me in {weeks} weeks.",
)
"""Ways a visit goes; each tells everything that any note states."""

_SECTIONS = {
    "history of present illness": ("history of present illness: {patient} with {s} for {days} days. no {no}."),
    "assessment": "assessment: {s} for {days} days in {a_patient}, most likely {c}.",
    "plan": "plan: confirm with {test}. treat with {treatment}. avoid {avoid}. return in {weeks} weeks.",
}

_NOTE = (
    "subjective: {patient} with {s} for {days} days, no {no}.\n"
    "assessment: {c}.\n"
    "plan: {test}, {treatment}, avoid {avoid}.\n"
    "follow up: {weeks} weeks."
)


def _section_row(condition: Condition, random: Random) -> Row:
    name = random.choice(list(_SECTIONS))
    query = random.choice(("Write the {}.", "Note section: {}.", "From this visit, write the {}.")).format(name)
    return told(visit(condition, random), random, DIALOGUES, query, _SECTIONS[name])


def _note_row(condition: Condition, random: Random) -> Row:
    query = random.choice(("Write the full note.", "Write a note of this visit.", "Turn the visit into a note."))
    return told(visit(condition, random), random, DIALOGUES, query, _NOTE)


def note_section(world: World) -> list[Example]:
    """Build dialogue -> one section of the note."""
    return clinical_task("note_section", _section_row, world)


def full_note(world: World) -> list[Example]:
    """Build dialogue -> a note of four labelled lines."""
    return clinical_task("full_note", _note_row, world)
