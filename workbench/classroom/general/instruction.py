"""Everyday questions under a machine-checkable constraint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.classroom.general.facts import FACTS
from workbench.classroom.general.rows import Row, finish, take
from workbench.classroom.general.rules import RULES, constrained
from workbench.classroom.world import World, rng
from workbench.records import Example

# Letters must be learnt, and every claim be granted or denied in two phrasings.
_WEIGHTS = {
    "yes_no": 72,
    **dict.fromkeys(("upper_case", "lower_case", "title_case", "json", "quoted", "spelled"), 30),
}
_LONGEST_SPELLED = 6


def quotas(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Share a number of rows out over kinds by weight; what is left over goes to the first kinds."""
    whole = sum(weights.values())
    shares = {kind: total * weight // whole for kind, weight in weights.items()}
    for kind in list(shares)[: total - sum(shares.values())]:
        shares[kind] += 1
    return shares


def deal_kinds(
    skill: str,
    candidates: Mapping[str, Sequence[Row]],
    sizes: Mapping[str, int],
    used: dict[tuple[str, str], str],
    weights: Mapping[str, int] | None = None,
) -> list[Example]:
    """Give every split its share of each kind, shuffle it, and write the examples.

    Args:
        skill: Task name.
        candidates: Kind to its prompts, those first that training must hold.
        sizes: Split name to its number of rows.
        used: Prompts dealt so far; it grows.
        weights: Share of a kind's rows in `train`, 20 where it is not named; the other splits are even.
    """
    even = dict.fromkeys(candidates, 20)
    by_split = {"train": {**even, **(weights or {})}}
    shares = {split: quotas(size, by_split.get(split, even)) for split, size in sizes.items()}
    split_rows: dict[str, list[Row]] = {split: [] for split in sizes}
    for kind, rows in candidates.items():
        for split, taken in take(rows, {split: shares[split][kind] for split in sizes}, used).items():
            split_rows[split] += taken
    examples = []
    for split, rows in split_rows.items():
        rng(skill, split).shuffle(rows)
        examples += finish(skill, "general" if skill == "instruction" else "specialist", split, rows)
    return examples


def _candidates(kind: str) -> list[Row]:
    """Return all prompts of a kind, those first that training must hold: a fact once, and each claim about it twice.

    A fact is always listed with the same partner, the next of its topic: lists of two unrelated facts would ask a small
    model for more than a form.
    """
    random = rng("instruction", "candidates", kind)
    rule, claims = RULES[kind], kind == "yes_no"
    first, rest = [], []
    for fact in FACTS:
        if kind == "spelled" and len(fact.answer) > _LONGEST_SPELLED:
            continue
        other = next(f for f in FACTS if f.topic == fact.topic and f.answer == fact.wrong[0])
        words = rule.words(fact)
        for options in [(word,) for word in words] if claims else [words]:
            texts = random.sample(rule.texts, len(rule.texts))
            rows = [constrained(kind, text, fact, other, random.choice(options)) for text in texts]
            known = 2 if claims else 1
            first += rows[:known]
            rest += rows[known:]
    random.shuffle(rest)
    return first + rest


def instruction(world: World) -> list[Example]:
    """Build the general instruction task: everyday facts under each kind of `RULES`; the world is not used.

    A test prompt is a combination of fact, kind, phrasing and word that no training prompt has; each pair of a fact
    and a kind occurs in training.
    """
    sizes = {"train": 1600, "validation": 120, "test": 240}
    return deal_kinds("instruction", {kind: _candidates(kind) for kind in RULES}, sizes, {}, _WEIGHTS)
