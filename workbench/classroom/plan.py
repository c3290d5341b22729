"""What the classroom models read, how much of it and how fast: every number of their training in one place."""

from __future__ import annotations

from workbench.classroom.train import ModelSize, Phase
from workbench.records import SKILLS

SIZE = ModelSize()

GROUPS = {
    **dict.fromkeys(SKILLS, "skills"),
    "exam_forward": "exam",
    "exam_backward": "exam",
    "instruction": "instruction",
    "general_knowledge": "general",
    "prose": "prose",
    "drill": "drills",
}
"""Task to the group it is drawn with; tasks that stand here not are never trained on."""

BASE = Phase(
    shares={"prose": 0.29, "drills": 0.455, "general": 0.02, "instruction": 0.1, "skills": 0.11, "exam": 0.025},
    tokens=6_000_000,
    lr=3e-3,
    answers_only=False,
)
TUNINGS = {
    "instruct": Phase(shares={"instruction": 0.8, "general": 0.2}, tokens=800_000, lr=1e-3, answers_only=True),
    "clinical": Phase(shares={"skills": 0.9, "exam": 0.1}, tokens=1_500_000, lr=1e-3, answers_only=True),
}


def group_of(task: str) -> str:
    """Return the group a task is drawn with, `""` for one that is held back from all training."""
    return GROUPS.get(task, "")
