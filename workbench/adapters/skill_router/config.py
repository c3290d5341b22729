"""The settings of a skill router."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from peft import PeftConfig, PeftType

from workbench.errors import ConfigError

METHOD = "skill_router"
PREFIX = f"{METHOD}_"
SUM_SLACK = 1e-4


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class SkillRouterConfig(PeftConfig):
    """Describe frozen skills beside the linear layers of a frozen model and what weighs them; a PEFT method like any.

    y = W x + sum_s w_s Delta_s x, with one weight w_s for each skill, of any sign, or of a softmax; the same in all
    layers or one for each decoder layer; learned as numbers (`static`), or read off the prompt by a gate (`input`).
    Only the weights are trained. The saved folder holds the skills too, so that it loads without theirs.

    Every argument has its meaning in its field's help, `SkillRouterConfig.__dataclass_fields__["gate"].metadata`.

    Raises:
        ConfigError: A value is out of its range, or two do not fit each other.

    Source: SA-MDKIF (arXiv 2402.00474), skill adaptation, in our reading: L = CE + alpha * |w|_1.
    Deviates: the penalty is l1_coef * mean_s |w_s|, as LoraHub (arXiv 2307.13269) has it, so that one coefficient suits
    any number of skills; alpha is l1_coef / S.
    """

    skills: dict[str, str] = field(default_factory=dict, metadata=_help("Name to folder of a LoRA or AdaLoRA adapter."))
    gate: str = field(default="static", metadata=_help("Weights are 'static' numbers, or follow the 'input' prompt."))
    constraint: str = field(default="free", metadata=_help("'free' weights, or above 0 with sum 1: 'softmax'."))
    per_layer: bool = field(default=False, metadata=_help("Weights of its own for each decoder layer."))
    l1_coef: float = field(default=0.05, metadata=_help("Weight of the mean |w|, 0 for none; a softmax has none."))
    initial_weights: Any = field(
        default=None, metadata=_help("Name to weight (0 for the rest), or one number; None is 0, or even for softmax.")
    )
    strict: bool = field(default=True, metadata=_help("Refuse skills of another base by name, or of unequal targets."))
    order: list[str] | None = field(default=None, metadata=_help("Of the skills; saved, so leave it out."))
    ranks: dict[str, list[int]] | None = field(
        default=None, metadata=_help("Of each skill by layer; found in the skills and saved, so leave it out.")
    )
    target_modules: Any = field(default=None, metadata=_help("Found in the skills and saved, so leave it out."))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = getattr(PeftType, METHOD.upper())
        if not isinstance(self.skills, Mapping) or not self.skills:
            raise ConfigError(
                f"skills is {self.skills!r}; it must map the name of each skill to its folder. Name at least one."
            )
        if self.order is None or set(self.order) != set(self.skills):
            self.order = list(self.skills)
        # JSON does not keep the order of a dict, by which the bank and the weights are numbered.
        self.skills = {name: str(self.skills[name]) for name in self.order}
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        for name, words in (("gate", ("static", "input")), ("constraint", ("free", "softmax"))):
            if (value := getattr(self, name)) not in words:
                raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(words)}. Choose one.")
        if not isinstance(self.l1_coef, int | float) or not 0 <= self.l1_coef < math.inf:
            raise ConfigError(f"l1_coef is {self.l1_coef!r}; it must be a finite number of at least 0. Choose one.")
        self.start()

    def start(self) -> list[float]:
        """Return the weight that each skill starts with, in the order of the skills."""
        given, even = self.initial_weights, 1 / len(self.skills)
        if given is None:
            given = even if self.constraint == "softmax" else 0.0
        weights = dict(given) if isinstance(given, Mapping) else dict.fromkeys(self.skills, given)
        check_weights(weights, list(self.skills), "initial_weights")
        values = [float(weights.get(name, 0.0)) for name in self.skills]
        if self.constraint == "softmax":
            check_shares(values, "initial_weights")
        return values


def check_weights(weights: Mapping[str, Any], names: list[str], label: str) -> None:
    """Raise ConfigError unless the weights are finite numbers of known skills."""
    for name, value in weights.items():
        if name not in names:
            raise ConfigError(f"{label} names the skill {name!r}; the skills are {', '.join(names)}. Use their names.")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ConfigError(f"{label} of {name!r} is {value!r}; a weight must be a finite number. Choose one.")


def check_shares(values: list[float], label: str) -> None:
    """Raise ConfigError unless a softmax can give these weights."""
    if min(values) < 0 or abs(sum(values) - 1) > SUM_SLACK:
        raise ConfigError(
            f"{label} are {values}; with constraint='softmax' they must be at least 0 and sum to 1. Divide them by "
            "their sum, or set constraint='free'."
        )
