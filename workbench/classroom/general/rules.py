"""The rules of each kind of constraint: how it is asked for, met and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.classroom.general.facts import Fact
from workbench.classroom.general.rows import Row

Checks = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one kind of constraint is asked for, met and checked.

    Args:
        texts: Phrasings; `{Q}` is the question, `{q}` the same with a small first letter, `{a}` the answer, `{A}` the
            answer in capitals, `{noun}` and `{other}` the noun phrases of the fact and its partner, `{w}` the word.
        write: `(answer, partner's answer, word)` to the reference answer.
        checks: `(answer, partner's answer, word)` to the checks of form and content.
        words: Words that the constraint can be about, for a fact.
    """

    texts: tuple[str, ...]
    write: Callable[[str, str, str], str]
    checks: Callable[[str, str, str], Checks]
    words: Callable[[Fact], tuple[str, ...]] = lambda fact: ("",)


def _one_of(*words: str) -> Callable[[Fact], tuple[str, ...]]:
    return lambda fact: words


def _with_answer(kind: str, argument: str = "") -> Callable[[str, str, str], Checks]:
    """Check a form, whose argument is the rule's word where one is named, and that the answer is in it."""
    return lambda a, b, w: [{"kind": kind, **({argument: w} if argument else {})}, {"kind": "mentions", "value": a}]


def _with_both(kind: str) -> Callable[[str, str, str], Checks]:
    return lambda a, b, w: [
        {"kind": kind, "count": 2},
        {"kind": "mentions", "value": a},
        {"kind": "mentions", "value": b},
    ]


_NUMBER = {"two": 2, "three": 3, "four": 4}
_MARK = {"an exclamation mark": "!", "a question mark": "?", "a full stop": "."}
_OF_LENGTH = {"two": "just {}", "three": "it is {}", "four": "the answer is {}"}

RULES: dict[str, Rule] = {
    "upper_case": Rule(
        texts=(
            "{Q} Answer in upper case.",
            "{Q} Use capital letters only.",
            "In capital letters: {q}",
        ),
        write=lambda a, b, w: a.upper(),
        checks=_with_answer("upper_case"),
    ),
    "lower_case": Rule(
        texts=(
            "Write {A} in lower case.",
            "{A} in lower case, please.",
            "Change {A} to small letters.",
        ),
        write=lambda a, b, w: a,
        checks=lambda a, b, w: [{"kind": "lower_case"}, {"kind": "exact_repeat", "value": a}],
    ),
    "title_case": Rule(
        texts=(
            "{Q} Answer in title case.",
            "{Q} Start each word with a capital.",
            "In title case: {q}",
        ),
        write=lambda a, b, w: a.title(),
        checks=_with_answer("title_case"),
    ),
    "exact_repeat": Rule(
        texts=(
            "Repeat the word {a} {w} times.",
            "Say {a} {w} times.",
            "Answer {w} times: {q}",
        ),
        words=_one_of("two", "three"),
        write=lambda a, b, w: " ".join([a] * _NUMBER[w]),
        checks=lambda a, b, w: [{"kind": "exact_repeat", "value": a, "times": _NUMBER[w]}],
    ),
    "ends_with": Rule(
        texts=(
            "{Q} End with the word {w}.",
            "{Q} Let {w} be the last word.",
            "End with {w}: {q}",
        ),
        words=_one_of("thanks", "friend", "today"),
        write=lambda a, b, w: f"{a} {w}",
        checks=_with_answer("ends_with", "value"),
    ),
    "starts_with": Rule(
        texts=(
            "{Q} Start with the word {w}.",
            "{Q} Let {w} be the first word.",
            "Start with {w}: {q}",
        ),
        words=_one_of("well", "surely", "clearly"),
        write=lambda a, b, w: f"{w} {a}",
        checks=_with_answer("starts_with", "value"),
    ),
    "bullets": Rule(
        texts=(
            "Name {noun} and {other} as bullets.",
            "As two bullets: {noun} and {other}.",
            "Give {noun} and {other}. Use two bullets.",
        ),
        write=lambda a, b, w: f"- {a}\n- {b}",
        checks=_with_both("bullets"),
    ),
    "yes_no": Rule(
        texts=(
            "Yes or no only: is {noun} {w}?",
            "Is {noun} {w}? Answer yes or no only.",
            "Answer yes or no: is {noun} {w}?",
        ),
        words=lambda fact: (fact.answer, fact.wrong[0]),
        write=lambda a, b, w: "yes" if a == w else "no",
        checks=lambda a, b, w: [{"kind": "yes_no"}, {"kind": "mentions", "value": "yes" if a == w else "no"}],
    ),
    "forbidden": Rule(
        texts=(
            "{Q} Use three words and not the word {w}.",
            "{Q} Three words, but never {w}.",
            "Do not say {w}, and use three words: {q}",
        ),
        words=lambda fact: (fact.topic,),
        write=lambda a, b, w: f"it is {a}",
        checks=lambda a, b, w: [
            {"kind": "forbidden", "value": w},
            {"kind": "word_count", "count": 3},
            {"kind": "mentions", "value": a},
        ],
    ),
    "json": Rule(
        texts=(
            "{Q} Give the answer as JSON with the key {w}.",
            "{Q} Reply in JSON, key {w}.",
            "As JSON with the key {w}: {q}",
        ),
        words=_one_of("answer", "result", "reply"),
        write=lambda a, b, w: json.dumps({w: a}),
        checks=_with_answer("json", "key"),
    ),
    "word_count": Rule(
        texts=(
            "{Q} Answer in exactly {w} words.",
            "{Q} Use {w} words.",
            "In exactly {w} words: {q}",
        ),
        words=_one_of(*_OF_LENGTH),
        write=lambda a, b, w: _OF_LENGTH[w].format(a),
        checks=lambda a, b, w: [{"kind": "word_count", "count": _NUMBER[w]}, {"kind": "mentions", "value": a}],
    ),
    "quoted": Rule(
        texts=(
            "{Q} Put the answer in double quotes.",
            "{Q} Quote the answer.",
            "In double quotes: {q}",
        ),
        write=lambda a, b, w: f'"{a}"',
        checks=_with_answer("quoted"),
    ),
    "ends_with_mark": Rule(
        texts=(
            "{Q} End with {w}.",
            "{Q} Put {w} at the end.",
            "Ending with {w}: {q}",
        ),
        words=_one_of(*_MARK),
        write=lambda a, b, w: f"{a}{_MARK[w]}",
        checks=lambda a, b, w: [{"kind": "ends_with_mark", "value": _MARK[w]}, {"kind": "mentions", "value": a}],
    ),
    "mentions": Rule(
        texts=(
            "{Q} Mention the word {w} too.",
            "{Q} Also use the word {w}.",
            "Mention {w} as well: {q}",
        ),
        words=_one_of("river", "candle", "music"),
        write=lambda a, b, w: f"{a} and {w}",
        checks=_with_answer("mentions", "value"),
    ),
    "numbered": Rule(
        texts=(
            "Name {noun} and {other} as a numbered list.",
            "As a numbered list: {noun} and {other}.",
            "Give {noun} and {other}. Number the lines.",
        ),
        write=lambda a, b, w: f"1. {a}\n2. {b}",
        checks=_with_both("numbered"),
    ),
    "comma_list": Rule(
        texts=(
            "Name {noun} and {other}, with a comma between.",
            "On one line with a comma: {noun} and {other}.",
            "Give {noun} and {other}. Use a comma.",
        ),
        write=lambda a, b, w: f"{a}, {b}",
        checks=_with_both("comma_list"),
    ),
    "spelled": Rule(
        texts=(
            "{Q} Spell the answer with dashes.",
            "{Q} Put a dash between the letters.",
            "Spell with dashes: {q}",
        ),
        write=lambda a, b, w: "-".join(a),
        checks=lambda a, b, w: [{"kind": "spelled", "value": a}],
    ),
}
"""Kind of constraint to its rule."""


def constrained(kind: str, text: str, fact: Fact, other: Fact, word: str) -> Row:
    """Ask for a fact (for two, where the kind lists things) under a constraint.

    Args:
        kind: A key of `RULES`.
        text: One of the rule's phrasings.
        fact: What is asked.
        other: Its partner in kinds that list two things.
        word: One of the rule's words for the fact.
    """
    rule = RULES[kind]
    question = fact.questions[0]
    return Row(
        query=text.format(
            Q=question,
            q=question[0].lower() + question[1:],
            a=fact.answer,
            A=fact.answer.upper(),
            noun=fact.noun,
            other=other.noun,
            w=word,
        ),
        answer=rule.write(fact.answer, other.answer, word),
        meta={"checks": rule.checks(fact.answer, other.answer, word), "kind": kind},
    )
