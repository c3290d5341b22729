"""General and mixed classroom tasks: instructions, everyday facts, both at once, generation and plain prose."""

from __future__ import annotations

from collections.abc import Callable

from workbench.classroom.general.both import both
from workbench.classroom.general.instruction import instruction
from workbench.classroom.general.knowledge import general_knowledge
from workbench.classroom.general.prose import prose
from workbench.classroom.general.reports import discharge_summary, impression, short_question
from workbench.classroom.general.visits import full_note, note_section
from workbench.classroom.world import World
from workbench.records import Example

TASKS: dict[str, Callable[[World], list[Example]]] = {
    "instruction": instruction,
    "general_knowledge": general_knowledge,
    "both": both,
    "note_section": note_section,
    "full_note": full_note,
    "impression": impression,
    "discharge_summary": discharge_summary,
    "short_question": short_question,
    "prose": prose,
}
"""Task name to its builder; the same world gives the same rows on every machine."""
