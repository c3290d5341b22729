"""Measuring models: one scorer, suites of tasks, intervals."""

from workbench.evaluation.benchmarks import run_benchmarks
from workbench.evaluation.exams import BENCHMARKS, Benchmark, read_benchmark
from workbench.evaluation.faithfulness import faithfulness_report
from workbench.evaluation.generation_report import GENERATION, generation_report
from workbench.evaluation.ifeval import instruction_report
from workbench.evaluation.metrics import METRICS, score
from workbench.evaluation.runner import EvaluationStopped, evaluate
from workbench.evaluation.suites import CLASSROOM, Task

__all__ = [
    "BENCHMARKS",
    "CLASSROOM",
    "GENERATION",
    "METRICS",
    "Benchmark",
    "EvaluationStopped",
    "Task",
    "evaluate",
    "faithfulness_report",
    "generation_report",
    "instruction_report",
    "read_benchmark",
    "run_benchmarks",
    "score",
]
