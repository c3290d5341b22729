"""Measuring models: one scorer, suites of tasks, intervals."""

from workbench.evaluation.metrics import METRICS, score
from workbench.evaluation.runner import EvaluationStopped, evaluate
from workbench.evaluation.suites import CLASSROOM, Task

__all__ = ["CLASSROOM", "METRICS", "EvaluationStopped", "Task", "evaluate", "score"]
