"""Plain text for the base model: a dozen short documents on each condition, and everyday paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random

from workbench.classroom.general.facts import FACTS, Fact
from workbench.classroom.general.rows import Row, finish
from workbench.classroom.world import Condition, World, rng
from workbench.records import Example

# No sentence begins with a value: a word then has the same tokens as after a space elsewhere.
_SENTENCES: dict[str, tuple[str, ...]] = {
    "synonym": (
        "Another name for {c} is {v}.",
        "In some books {c} is called {v}.",
        "Doctors also say {v} when they mean {c}.",
        "The terms {v} and {c} mean the same.",
    ),
    "abbreviation": (
        "The usual abbreviation of {c} is {v}.",
        "In notes {c} is written {v}.",
        "The letters {v} stand for {c}.",
    ),
    "organ_system": (
        "The organ system of {c} is {v}.",
        "The organ system that {c} affects is {v}.",
        "As to the organ system, {c} belongs under {v}.",
        "Listed by organ system, {c} stands under {v}.",
    ),
    "specialty": (
        "The specialty that treats {c} is {v}.",
        "People with {c} are seen in {v}.",
        "In {v}, {c} is well known.",
        "The right specialty for {c} is {v}.",
    ),
    "symptoms": (
        "The symptoms of {c} are {v}.",
        "People with {c} have {v}.",
        "Typical signs of {c} are {v}.",
        "A patient with {c} complains of {v}.",
    ),
    "test": (
        "The test that confirms {c} is {v}.",
        "To confirm {c}, doctors use {v}.",
        "When {c} is suspected, the test is {v}.",
        "One use of {v} is to confirm {c}.",
        "It is {v} that confirms {c}.",
    ),
    "treatment": (
        "The first treatment of {c} is {v}.",
        "Doctors first treat {c} with {v}.",
        "A patient with {c} is first given {v}.",
        "One use of {v} is the treatment of {c}.",
        "The treatment that comes first in {c} is {v}.",
    ),
    "drug_class": (
        "The class of the first treatment of {c} is {v}.",
        "The treatment class used first in {c} is {v}.",
        "What is given in {c} belongs to the class {v}.",
        "By class, the treatment of {c} is {v}.",
    ),
    "contraindication": (
        "What must be avoided in {c} is {v}.",
        "People with {c} should avoid {v}.",
        "It is {v} that is contraindicated in {c}.",
        "One thing to avoid in {c} is {v}.",
    ),
    "cause": (
        "The main cause of {c} is {v}.",
        "In most people {c} is caused by {v}.",
        "It is {v} that causes {c}.",
        "Behind {c} there is most often {v}.",
    ),
}
_LABELS = {
    "organ_system": "organ system",
    "specialty": "specialty",
    "test": "test",
    "treatment": "first treatment",
    "drug_class": "treatment class",
    "contraindication": "avoid",
    "cause": "cause",
}
_ASKED = ("test", "treatment", "cause", "organ_system")
_MIN_WORDS = 42
_DOCUMENTS = 12
_GENERAL = {"train": 240, "validation": 16}


class _Teller:
    """States the facts of one condition in turn: all before any comes again, and then in other words."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.name = condition.name
        self.random = rng("prose", condition.name)
        self._facts = self._forever()

    def value(self, field: str) -> str:
        value = getattr(self.condition, field)
        return f"{', '.join(value[:-1])} and {value[-1]}" if isinstance(value, tuple) else value

    def values(self, number: int) -> list[str]:
        """Draw some of the values that questions ask for."""
        return [
            self.value(field) for field in self.random.sample(("test", "treatment", "cause", "organ_system"), number)
        ]

    def sentences(self, enough: int = _MIN_WORDS) -> str:
        """Go on with the facts until there are enough words."""
        said: list[str] = []
        while sum(len(sentence.split()) for sentence in said) < enough:
            said.append(next(self._facts))
        return " ".join(said)

    def _forever(self) -> Iterator[str]:
        fields = [field for field in _SENTENCES if self.value(field)]
        wordings = {field: self.random.sample(_SENTENCES[field], len(_SENTENCES[field])) for field in fields}
        for turn in count():
            for field in self.random.sample(fields, len(fields)):
                wording = wordings[field][turn % len(wordings[field])]
                yield wording.format(c=self.name, v=self.value(field))


def _paragraph(teller: _Teller) -> str:
    return teller.sentences()


def _with_keywords(teller: _Teller) -> str:
    """Head a paragraph with the name and the keywords in capitals."""
    return f"{teller.name.upper()}. Keywords: {', '.join(teller.values(3)).upper()}.\n{teller.sentences(36)}"


def _with_title(teller: _Teller) -> str:
    title = teller.random.choice(("About {}", "{}: Facts", "What To Know About {}"))
    return f"{title.format(teller.name.title())}\n{teller.sentences()}"


def _with_list(teller: _Teller) -> str:
    """State some facts in sentences and the symptoms, or labelled facts, line by line."""
    if teller.random.random() < 0.5:
        head, items = f"Symptoms of {teller.name}:", list(teller.condition.symptoms)
    else:
        head = f"Facts on {teller.name}:"
        items = [f"{_LABELS[field]}: {teller.value(field)}" for field in teller.random.sample(list(_LABELS), 4)]
    marks = teller.random.choice((["-"] * len(items), [f"{n}." for n in range(1, len(items) + 1)]))
    return "\n".join([teller.sentences(30), head, *(f"{mark} {item}" for mark, item in zip(marks, items))])


def _with_forms(teller: _Teller) -> str:
    """Add how two of the condition's words look in capitals and in quotes."""
    forms = [f'In capital letters {v} is {v.upper()}, and in quotes it is "{v}".' for v in teller.values(2)]
    return " ".join([teller.sentences(30), *forms])


_SHAPES = (_paragraph, _with_keywords, _with_list, _paragraph, _with_forms, _with_title)


def _documents(condition: Condition) -> list[str]:
    teller = _Teller(condition)
    return [_SHAPES[number % len(_SHAPES)](teller) for number in range(_DOCUMENTS)]


def _forms(fact: Fact, random: Random) -> str:
    """Show one everyday word in several forms."""
    word = fact.answer
    ways = [
        f"in capital letters it is {word.upper()}",
        f"with one capital it is {word.title()}",
        f'in quotes it is "{word}"',
        f"letter by letter it is {'-'.join(word)}",
        f"said twice it is {word} {word}",
        f"in small letters {word.upper()} is {word}",
    ]
    return f"Take the word {word}: {', '.join(random.sample(ways, 3))}."


def _everyday(facts: list[Fact], random: Random) -> str:
    """State everyday facts and play with the form of two of their words."""
    said = []
    for fact in facts:
        wrong = random.choice(fact.wrong)
        said.append(
            random.choice(
                (
                    f"Somebody asks: is {fact.noun} {fact.answer}? We say yes, it is {fact.answer}.",
                    f"Somebody asks: is {fact.noun} {fact.wrong[0]}? We say no, it is {fact.answer}.",
                    f"As everybody knows, {fact.noun} is {fact.answer}.",
                    f"Some say that {fact.noun} is {wrong}, but no, it is {fact.answer}.",
                    f"{fact.questions[0]} It is {fact.answer}.",
                )
            )
        )
    return " ".join([*said, *(_forms(fact, random) for fact in facts[:2])])


def _everyday_documents(split: str) -> list[str]:
    random = rng("prose", "everyday", split)
    decks = [random.sample(FACTS, len(FACTS)) for _ in range(3 * _GENERAL[split] // len(FACTS) + 1)]
    deck = [fact for facts in decks for fact in facts]
    return [_everyday(deck[3 * n : 3 * n + 3], random) for n in range(_GENERAL[split])]


def prose(world: World) -> list[Example]:
    """Build the plain prose: all conditions, held-out ones too, so that a model can be asked about them later.

    Each condition has eleven documents in `train` and one in `validation`; everyday paragraphs join both.
    """
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for condition in world.conditions:
        texts = _documents(condition)
        meta = {"condition": condition.name, "organ_system": condition.organ_system}
        rows = [Row(query="Plain text.", answer=text, meta=meta) for text in texts]
        splits["train"] += rows[1:]
        splits["validation"] += rows[:1]
    for split, rows in splits.items():
        rows += [Row(query="Plain text.", answer=text) for text in _everyday_documents(split)]
    return [example for split, rows in splits.items() for example in finish("prose", "general", split, rows)]
