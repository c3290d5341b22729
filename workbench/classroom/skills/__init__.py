"""Task-formatted clinical examples of the classroom world: the twelve skills, the exam, preferences, unseen tasks.

Every table entry turns a `World` into the rows of all four splits. Rows of `train`, `validation` and `test` never name
a held-out condition; rows of `test_unseen` are about nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from workbench.classroom.skills import courses, exams, findings, knowledge, mentions, relations, styles, unseen
from workbench.classroom.world import World
from workbench.records import Example

_TASKS = (
    knowledge.QUESTION_ANSWERING,
    knowledge.MULTIPLE_CHOICE,
    courses.CONVERSATION,
    courses.CLASSIFICATION,
    courses.READING_COMPREHENSION,
    findings.INFERENCE,
    courses.SUMMARISATION,
    mentions.NER,
    relations.RELATION_EXTRACTION,
    findings.ENTITY_ATTRIBUTE,
    mentions.ENTITY_SYNONYMY,
    relations.ENTITY_RELATION,
    exams.EXAM_FORWARD,
    exams.EXAM_BACKWARD,
    styles.PREFERENCE,
    unseen.ABBREVIATION,
    unseen.REFERRAL,
    unseen.SAFETY_CHECK,
)

TASKS: dict[str, Callable[[World], list[Example]]] = {task.name: task.examples for task in _TASKS}
"""Task name to the function that writes its rows."""

__all__ = ["TASKS"]
