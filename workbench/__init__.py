"""The table of contents of the workbench; names load when they are first used, so this import is cheap."""

import sys
from importlib import import_module
from typing import Any

_NAMES = {
    "Curriculum": "workbench.curriculum.curriculum",
    "CurveEditor": "workbench.views.curve_editor",
    "Filmstrip": "workbench.views.filmstrip",
    "LiveMerge": "workbench.merging.live",
    "LongTermMemory": "workbench.curriculum.memory",
    "LoraMoeConfig": "workbench.adapters",
    "MergeAnalysis": "workbench.views.merge_analysis",
    "MergeRecipe": "workbench.merging.recipe",
    "MergeSliders": "workbench.views.merge_sliders",
    "ParetoPlot": "workbench.views.plots",
    "RatioPlot": "workbench.views.plots",
    "RatioSpectrum": "workbench.merging.spectrum",
    "RouterInspector": "workbench.views.router_inspector",
    "ShortTermMemory": "workbench.curriculum.memory",
    "SkillRouterConfig": "workbench.adapters",
    "SkillSliders": "workbench.views.skill_sliders",
    "TaskPlot": "workbench.views.plots",
    "TrainingView": "workbench.views.training_view",
    "WorkbenchError": "workbench.errors",
    "capture_routing": "workbench.routing.capture",
    "compare_panel": "workbench.views.panel.panel",
    "compose_skills": "workbench.training.compose",
    "evaluate": "workbench.evaluation",
    "export_merge": "workbench.merging.export",
    "load_examples": "workbench.data",
    "load_model": "workbench.models",
    "stage_by_difficulty": "workbench.curriculum.difficulty",
    "sweep": "workbench.search.sweep",
    "train": "workbench.training",
    "train_skills": "workbench.training.skills",
}

__all__ = sorted(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(_NAMES[name]), name)
    if "torch" in sys.modules:
        # So that PEFT opens a saved adapter of our kinds, whatever name was used first.
        import_module("workbench.adapters")
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
