"""Facts of everyday life, each with one short answer, and the ways to ask for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One question with one right answer, general or clinical.

    Args:
        topic: What the fact is filed under, e.g. `capital`.
        noun: The fact as a noun phrase in small letters, e.g. `the capital of France`.
        questions: Ways to ask it, the plain one first; each starts with a capital and ends with a mark.
        answer: The right answer, in small letters.
        wrong: Answers of other facts of the same topic; a claim to be denied is made of the first.
    """

    topic: str
    noun: str
    questions: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]


_TOPICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "capital": (
        "the capital of {x}",
        ("Which city is the capital of {x}?", "Name the capital city of {x}."),
        "France paris|Italy rome|Spain madrid|Japan tokyo|China beijing|Egypt cairo|Greece athens|Russia moscow|"
        "England london|Germany berlin|Austria vienna|Norway oslo",
    ),
    "colour": (
        "the colour of {x}",
        ("Which colour is {x}?", "Name the colour of {x}."),
        "snow white|grass green|coal black|the sky blue|a banana yellow|a carrot orange|chocolate brown|"
        "a flamingo pink|a tomato red",
    ),
    "opposite": (
        "the opposite of {x}",
        ("Which word is the opposite of {x}?", "Name the opposite of {x}."),
        "big small|up down|day night|rich poor|happy sad|open closed|old young|near far|full empty|"
        "hard soft|loud quiet",
    ),
    "young": (
        "the young of a {x}",
        ("What do we call a young {x}?", "Name the young of a {x}."),
        "dog puppy|cat kitten|sheep lamb|horse foal|lion cub|hen chick|pig piglet",
    ),
    "sound": (
        "the sound of a {x}",
        ("Which sound does a {x} make?", "Name the sound that a {x} makes."),
        "dog bark|cat meow|cow moo|lion roar|bee buzz|duck quack|owl hoot",
    ),
    "home": (
        "the home of a {x}",
        ("Where does a {x} live?", "Name the home of a {x}."),
        "bee hive|bird nest|spider web|king palace|bear den",
    ),
    "day": (
        "the day after {x}",
        ("Which day comes after {x}?", "Name the day that follows {x}."),
        "Monday tuesday|Tuesday wednesday|Wednesday thursday|Thursday friday|Friday saturday|Saturday sunday|"
        "Sunday monday",
    ),
    "worker": (
        "the worker who {x}",
        ("Who {x}?", "Name the worker who {x}."),
        "bakes bread baker|grows corn farmer|flies planes pilot|catches fish fisher|teaches children teacher",
    ),
}
"""Topic to its noun phrase, its further questions, and its facts as `subject answer`."""


def _facts() -> tuple[Fact, ...]:
    facts = []
    for topic, (noun, questions, table) in _TOPICS.items():
        pairs = [entry.rsplit(" ", 1) for entry in table.split("|")]
        answers = [answer for _, answer in pairs]
        facts += [
            Fact(
                topic=topic,
                noun=noun.format(x=subject),
                questions=(
                    f"{'Who' if topic == 'worker' else 'What'} is {noun.format(x=subject)}?",
                    *(question.format(x=subject) for question in questions),
                ),
                answer=answer,
                wrong=(*answers[place + 1 :], *answers[:place]),
            )
            for place, (subject, answer) in enumerate(pairs)
        ]
    return tuple(facts)


FACTS = _facts()
"""All general facts; answers are one word each."""
