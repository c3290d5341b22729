"""Clinical questions under a constraint: whoever answers needs the fact and the form."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.classroom.general.facts import Fact
from workbench.classroom.general.instruction import deal_kinds
from workbench.classroom.general.rows import SIZES, Row, held_out_names
from workbench.classroom.general.rules import RULES, constrained
from workbench.classroom.world import Condition, World, rng
from workbench.records import Example

KINDS = (
    "upper_case",
    "exact_repeat",
    "ends_with",
    "starts_with",
    "bullets",
    "yes_no",
    "json",
    "quoted",
    "ends_with_mark",
    "mentions",
    "numbered",
    "comma_list",
)
"""Constraints that any clinical answer of one to four words can meet."""

_FIELDS = {
    "test": ("the test for {c}", ("which test confirms {c}?", "name the test that confirms {c}.")),
    "treatment": (
        "the first treatment of {c}",
        ("what is the first treatment of {c}?", "name the first treatment for {c}."),
    ),
    "organ_system": (
        "the organ system of {c}",
        ("which organ system does {c} affect?", "name the organ system of {c}."),
    ),
    "cause": ("the main cause of {c}", ("what causes {c}?", "name the main cause of {c}.")),
}


def clinical_facts(condition: Condition, pool: Sequence[Condition]) -> list[Fact]:
    """Return the facts of a condition that are asked for; wrong answers come from other organ systems if they can."""
    others = [c for c in pool if c.organ_system != condition.organ_system] or pool
    facts = []
    for field, (noun, questions) in _FIELDS.items():
        answer = getattr(condition, field)
        wrong = sorted({getattr(c, field) for c in others} - {answer})
        rng("wrong", condition.name, field).shuffle(wrong)
        if wrong:
            facts.append(
                Fact(
                    topic=field,
                    noun=noun.format(c=condition.name),
                    questions=tuple(question.format(c=condition.name) for question in questions),
                    answer=answer,
                    wrong=tuple(wrong),
                )
            )
    return facts


def both(world: World) -> list[Example]:
    """Build the task that needs clinical knowledge and obedience; `test_unseen` asks about held-out conditions."""
    sizes = {split: size for split, size in SIZES.items() if split != "test_unseen"}
    used: dict[tuple[str, str], str] = {}
    leak = held_out_names(world)
    seen = {
        kind: [row for row in rows if not leak.search(row.answer + row.query)]
        for kind, rows in _candidates("seen", world.seen, world).items()
    }
    unseen = _candidates("unseen", world.unseen, world)
    return [
        *deal_kinds("both", seen, sizes, used),
        *deal_kinds("both", unseen, {"test_unseen": SIZES["test_unseen"]}, used),
    ]


def _candidates(key: str, conditions: Sequence[Condition], world: World) -> dict[str, list[Row]]:
    """Return all prompts of each kind, shuffled; wrong answers to `yes_no` are facts of seen conditions."""
    candidates = {}
    for kind in KINDS:
        random = rng("both", kind, key)
        texts = [text for text in RULES[kind].texts if "{a}" not in text]
        rows = []
        for condition in conditions:
            facts = clinical_facts(condition, world.seen)
            for fact in facts:
                partners = [other for other in facts if other.answer != fact.answer]
                for text in texts:
                    word = random.choice(RULES[kind].words(fact))
                    row = constrained(kind, text, fact, random.choice(partners), word)
                    about = {"condition": condition.name, "organ_system": condition.organ_system}
                    rows.append(Row(query=row.query, answer=row.answer, meta={**row.meta, **about}))
        random.shuffle(rows)
        candidates[kind] = rows
    return candidates
