"""Question answering and multiple choice: the bare facts, with no context."""

from __future__ import annotations

from random import Random

from workbench.classroom.skills.task import Draft, Pool, Task
from workbench.classroom.skills.wording import FACTS, ask, value_choices
from workbench.classroom.world import Condition


def _question(r: Random, condition: Condition, field: str, pool: Pool) -> Draft:
    return Draft(query=ask(r, field, condition), answer=getattr(condition, field))


def _choice(r: Random, condition: Condition, field: str, pool: Pool) -> Draft | None:
    choices = value_choices(r, condition, field, pool)
    if choices is None:
        return None
    return Draft(query=ask(r, field, condition), answer=getattr(condition, field), choices=choices)


QUESTION_ANSWERING = Task(name="question_answering", stage="broad", kinds=FACTS, draft=_question)
MULTIPLE_CHOICE = Task(name="multiple_choice", stage="broad", kinds=FACTS, draft=_choice)
