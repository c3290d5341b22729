"""Reading drills: plain text that cannot be foretold by heart, so that the base model learns to look back and copy.

Prose about 88 conditions can be learned by heart, and a model that has done so reads no context. These texts draw
their words at random and then say them again in another form: lists repeated, the findings of a patient summed up,
words in capitals, names compared. They have no question and no answer, name no held-out condition, and are made when
the base model is trained; no file holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from workbench.classroom.general.facts import FACTS
from workbench.classroom.skills.findings import CUES, OPEN
from workbench.classroom.world import World, rng
from workbench.records import Example

_HEADS = ("Read aloud:", "The list says:", "First we hear:", "On the board:")
_CUES = {**CUES, "open": OPEN}
_AGAINS = ("Once more:", "Again:", "The same again:", "From memory:")


class _Words:
    """What a drill may name: words of the seen conditions and everyday words."""

    def __init__(self, world: World):
        seen = world.seen
        self.conditions = [c.name for c in seen]
        self.names = [(c.name, c.synonym) for c in seen]
        self.findings = world.values("symptoms", seen) + self.conditions
        self.everyday = sorted({fact.answer for fact in FACTS})
        medical = [value for f in ("test", "treatment", "cause") for value in world.values(f, seen)]
        self.all = [*self.findings, *medical, *self.everyday]


def _person(random: Random) -> tuple[str, str, int]:
    sex, age = random.choice(("man", "woman")), random.randint(20, 89)
    return sex, f"{'an' if age in (80, 81, 82, 83, 84, 85, 86, 87, 88, 89) else 'a'} {age} year old {sex}", age


def _echo(words: _Words, random: Random) -> str:
    """A random list, and the same list again."""
    pool = random.choice((words.all, words.everyday, words.findings))
    items = random.sample(pool, random.randint(2, 5))
    if random.random() < 0.3:
        items = [f"{item} {random.randint(1, 130)}" for item in items]
    line = ", ".join(items)
    return f"{random.choice(_HEADS)} {line}. {random.choice(_AGAINS)} {line}."


def _findings(words: _Words, random: Random) -> str:
    """A patient's findings in random words, then each with what its cue means."""
    kinds = random.choices(list(_CUES), (4, 4, 3, 3, 3), k=random.randint(1, 3))
    said = [f"{name} {random.choice(_CUES[kind])}" for name, kind in zip(random.sample(words.findings, 3), kinds)]
    recap = " ".join(f"{clause}: {kind}." for clause, kind in zip(said, kinds))
    return f"A note on {_person(random)[1]}: {'. '.join(said)}. In short, {recap}"


def _stay(words: _Words, random: Random) -> str:
    """A stay with random numbers and things, then each of them named again."""
    sex, person, age = _person(random)
    he = "he" if sex == "man" else "she"
    condition, given = random.choice(words.conditions), random.choice(words.all)
    pulse, days = random.randrange(52, 132, 4), random.randint(2, 9)
    parts = [
        f"a pulse of {pulse} was noted." if random.random() < 0.5 else f"the pulse was {pulse}.",
        f"{he} {random.choice(('received', 'was treated with', 'was given'))} {given}.",
        f"{he} {random.choice(('stayed for', 'went home after'))} {days} days.",
    ]
    random.shuffle(parts)
    recap = [
        f"The age is {age}.",
        f"The sex is {sex}.",
        f"The pulse is {pulse}.",
        f"What was given is {given}.",
        f"The stay is {days} days.",
        f"The condition is {condition}.",
    ]
    chosen = " ".join(random.sample(recap, 4))
    return f"There came {person} because of {condition}. {' '.join(parts)} To recall it: {chosen}"


def _forms(words: _Words, random: Random) -> str:
    """One or two words in several forms, in both directions."""
    said = []
    for word in random.sample(words.everyday if random.random() < 0.7 else words.all, 2):
        times = random.randint(2, 4)
        forms = [
            f"In capital letters {word} is {word.upper()}.",
            f"In small letters {word.upper()} is {word}.",
            f"With each word capitalised {word} is {word.title()}.",
            f'In quotes {word} is "{word}".',
            f"Letter by letter {word} is {'-'.join(word)}." if len(word) < 9 else f"With a mark {word} is {word}!",
            f"Said {('two', 'three', 'four')[times - 2]} times {word} is {' '.join([word] * times)}.",
        ]
        said += random.sample(forms, 3)
    return " ".join(said)


def _pairs(words: _Words, random: Random) -> str:
    """Names that mean one condition, and names that mean another."""
    said = []
    for _ in range(3):
        (name, synonym), (other, alias) = random.sample(words.names, 2)
        if random.random() < 0.5:
            name, synonym, other = synonym, name, alias
        pair = random.sample((synonym, other if random.random() < 0.5 else alias), 2)
        said.append(
            random.choice(
                (
                    f"Of {pair[0]} and {pair[1]}, it is {synonym} that means {name}.",
                    f"Both {name} and {synonym} name one condition, {other} is another.",
                )
            )
        )
    return " ".join(said)


def _everyday(words: _Words, random: Random) -> str:
    """Everyday facts, true and false, and as lists of two or three forms."""
    facts = random.sample(FACTS, random.randint(2, 3))
    answers = [fact.answer for fact in facts]
    asked = " and ".join(fact.noun for fact in facts)
    lists = [
        "\n".join(f"- {answer}" for answer in answers),
        "\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, 1)),
        ", ".join(answers),
    ]
    kind = random.choice(("as bullets:\n", "with numbers:\n", "with commas: "))
    chosen = lists[("as bullets:\n", "with numbers:\n", "with commas: ").index(kind)]
    fact = random.choice(FACTS)
    truth = f"Yes, {fact.noun} is {fact.answer}. No, {fact.noun} is not {random.choice(fact.wrong)}."
    return f"{truth} Now {asked}, {kind}{chosen}"


_KINDS: tuple[Callable[[_Words, Random], str], ...] = (
    _echo,
    _findings,
    _stay,
    _forms,
    _pairs,
    _everyday,
    _findings,
    _forms,
)


def drills(world: World, count: int = 16_000) -> list[Example]:
    """Return drills, kind after kind.

    Args:
        world: Where the words come from.
        count: Number of texts.

    Returns:
        Rows of the skill `drill`, all in train; the text is the answer.
    """
    words, random = _Words(world), rng("drills")
    texts = [_KINDS[number % len(_KINDS)](words, random) for number in range(count)]
    return [Example(id=f"drill-{n}", skill="drill", query="Plain text.", answer=text) for n, text in enumerate(texts)]
