"""Words that several tasks share: how a fact is asked for, who the patient is, how choices are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from workbench.classroom.skills.task import Pool
from workbench.classroom.world import Condition

FACTS = ("test", "treatment", "cause", "drug_class", "organ_system", "contraindication")
"""Fields with one short value for each condition."""

# No template begins with a condition: the tokens of a name then always follow a space.
ASK = {
    "test": (
        "which test confirms {c}?",
        "what test do we order to confirm {c}?",
        "name the test that confirms {c}.",
        "by which test is {c} confirmed?",
        "we suspect {c}. which test settles it?",
    ),
    "treatment": (
        "what is the first treatment of {c}?",
        "how do we first treat {c}?",
        "name the first treatment for {c}.",
        "what is given first to treat {c}?",
        "someone has {c}. which treatment comes first?",
    ),
    "cause": (
        "what causes {c}?",
        "what is the main cause of {c}?",
        "name the main cause of {c}.",
        "by what is {c} caused?",
        "why does {c} arise, what is the cause?",
    ),
    "drug_class": (
        "which class of treatment is used first in {c}?",
        "what is the class of the first treatment of {c}?",
        "name the treatment class used in {c}.",
        "to which class does the treatment of {c} belong?",
        "someone has {c}. which treatment class is chosen?",
    ),
    "organ_system": (
        "which organ system does {c} affect?",
        "what organ system is affected by {c}?",
        "name the organ system of {c}.",
        "to which organ system does {c} belong?",
        "someone has {c}. which organ system is ill?",
    ),
    "contraindication": (
        "what must be avoided in {c}?",
        "what is contraindicated in {c}?",
        "name what is contraindicated in {c}.",
        "what should people with {c} avoid?",
        "someone has {c}. what is harmful and must be avoided?",
    ),
}


def ask(r: Random, field: str, condition: Condition) -> str:
    """Return one phrasing of the question for a fact of a condition."""
    return r.choice(ASK[field]).format(c=condition.name)


@dataclass(frozen=True, kw_only=True)
class Person:
    """A patient of the closed vocabulary: age 20 to 89, `man` or `woman`."""

    age: int
    sex: str

    @property
    def noun(self) -> str:
        """For example `a 54 year old man`."""
        article = "an" if 80 <= self.age <= 89 else "a"
        return f"{article} {self.age} year old {self.sex}"

    @property
    def pronoun(self) -> str:
        """`he` or `she`."""
        return "he" if self.sex == "man" else "she"


_FEMALE = ("missed periods", "pregnan", "ovar", "uter", "menstr")
_MALE = ("prostat", "testic")


def person(r: Random, condition: Condition) -> Person:
    """Draw a patient; a condition whose words name an organ of one sex gets a patient of that sex."""
    words = " ".join([condition.name, condition.synonym, *condition.symptoms])
    age, sex = r.randrange(20, 90), r.choice(("man", "woman"))
    if any(part in words for part in _FEMALE):
        return Person(age=20 + age % 30, sex="woman")
    return Person(age=age, sex="man" if any(part in words for part in _MALE) else sex)


def listed(items: Sequence[str]) -> str:
    """Join as `a, b and c`."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def value_choices(r: Random, condition: Condition, field: str, pool: Pool) -> tuple[str, ...] | None:
    """Draw four values of a field, of which one, at a random place, is the condition's; None where too few exist."""
    return _four(r, getattr(condition, field), pool.world.values(field, _rivals(condition, field, pool)))


def condition_choices(r: Random, condition: Condition, field: str, pool: Pool) -> tuple[str, ...] | None:
    """Draw four names, of which only the condition's has its value (or all its symptoms); None where too few exist."""
    return _four(r, condition.name, [c.name for c in _rivals(condition, field, pool)])


def _rivals(condition: Condition, field: str, pool: Pool) -> list[Condition]:
    """Return the conditions that make clearly wrong choices: another organ system, and no word of the fact in common.

    Treatments must differ in class too: where one corticosteroid helps, another is a near miss and not an error.
    """
    others = [c for c in pool.others if c.organ_system != condition.organ_system]
    if field == "symptoms":
        return [c for c in others if not set(condition.symptoms) <= set(c.symptoms)]
    fields = ("treatment", "drug_class") if field in ("treatment", "drug_class") else (field,)
    return [c for c in others if all(apart(getattr(c, f), getattr(condition, f)) for f in fields)]


def _four(r: Random, right: str, wrong: Sequence[str]) -> tuple[str, ...] | None:
    if len(wrong) < 3:
        return None
    choices = [right, *r.sample(wrong, 3)]
    r.shuffle(choices)
    return tuple(choices)


def apart(first: str, second: str) -> bool:
    """Tell whether two terms share no word: where `dry cough` is present, `cough` is neither absent nor unmentioned."""
    return not set(first.split()) & set(second.split())


def strangers(r: Random, condition: Condition, pool: Pool, field: str, count: int) -> list[str] | None:
    """Draw values of a field of other conditions, without a word of this one's name or symptoms, nor of each other."""
    own = [*condition.symptoms, condition.name]
    rest = [c for c in pool.others if c.name != condition.name]
    values = pool.world.values(field, rest)
    r.shuffle(values)
    drawn: list[str] = []
    for value in values:
        if len(drawn) < count and all(apart(value, taken) for taken in [*own, *drawn]):
            drawn.append(value)
    return drawn if len(drawn) == count else None
