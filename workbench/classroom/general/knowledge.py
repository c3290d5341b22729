"""The everyday facts, asked plainly."""

from __future__ import annotations

from workbench.classroom.general.facts import FACTS
from workbench.classroom.general.rows import Row, finish
from workbench.classroom.world import World, rng
from workbench.records import Example

_OPENINGS = ("{Q}", "Please answer: {q}", "Question: {q}", "Tell me: {q}")
# (opening, question) pairs: a test prompt joins an opening and a question that training shows apart only.
_FRAMES = {
    "train": ((0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (3, 2), (2, 2)),
    "validation": ((2, 0),),
    "test": ((0, 2), (3, 1)),
}
_SIZES = {"train": 400, "validation": 60, "test": 120}


def general_knowledge(world: World) -> list[Example]:
    """Build the general-knowledge task: every fact is in training, the test's phrasings are not; no world is used."""
    examples = []
    for split, frames in _FRAMES.items():
        rounds = []
        for opening, which in frames:
            rows = [Row(query=_ask(opening, fact.questions[which]), answer=fact.answer) for fact in FACTS]
            rng("general_knowledge", split, opening, which).shuffle(rows)
            rounds += rows
        examples += finish("general_knowledge", "general", split, rounds[: _SIZES[split]])
    return examples


def _ask(opening: int, question: str) -> str:
    return _OPENINGS[opening].format(Q=question, q=question[0].lower() + question[1:])
