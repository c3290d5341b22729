"""What a merge rule can be told, and what each rule asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.errors import ConfigError

Trim = Literal["none", "magnitude", "random", "della", "outliers"]

SEMANTICS = ("paper", "mergekit", "peft")
_IN_PEFT = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one merge method is made of.

    Args:
        fewest: Fewest parents, the base not counted.
        most: Most parents; None where there is no upper end.
        base: Whether a base is `"required"`, `"optional"` or `"unused"`.
        trim: How entries of the task vectors are chosen.
        elect: A sign is elected at every entry, and only what agrees with it is merged.
        normalise: The method's habit where the settings leave it open.
        weighted: The method reads the weights.
        entrywise: The method weighs every entry by itself, so that no tensor has one number for each parent.
        options: Fields of `RuleSettings` that the method reads besides weights, name and semantics.
    """

    fewest: int = 1
    most: int | None = None
    base: Literal["required", "optional", "unused"] = "required"
    trim: Trim = "none"
    elect: bool = False
    normalise: bool = False
    weighted: bool = True
    entrywise: bool = False
    options: frozenset[str] = frozenset()

    @property
    def sparse(self) -> bool:
        """True for the methods that merge trimmed task vectors: TIES, DARE, DELLA and breadcrumbs."""
        return self.trim != "none"


def _task_vectors(trim: Trim, *, elect: bool = False, normalise: bool = False) -> Rule:
    extra = {"magnitude": {"threshold"}, "random": {"seed"}, "della": {"seed", "epsilon"}, "outliers": {"gamma"}}
    options = frozenset({"density", "lambda_", "normalise", "rescale"} | extra[trim])
    return Rule(trim=trim, elect=elect, normalise=normalise, entrywise=True, options=options)


RULES = {
    "linear": Rule(base="unused", normalise=True, options=frozenset({"normalise"})),
    "slerp": Rule(fewest=2, most=2, base="unused", options=frozenset({"t"})),
    "nuslerp": Rule(fewest=2, most=2, base="optional", options=frozenset({"t", "vectors"})),
    "multislerp": Rule(base="optional", normalise=True, options=frozenset({"normalise"})),
    "karcher": Rule(base="unused", normalise=True),
    "task_arithmetic": Rule(options=frozenset({"lambda_", "normalise"})),
    "ties": _task_vectors("magnitude", elect=True, normalise=True),
    "dare_linear": _task_vectors("random"),
    "dare_ties": _task_vectors("random", elect=True),
    "della": _task_vectors("della", elect=True, normalise=True),
    "della_linear": _task_vectors("della"),
    "breadcrumbs": _task_vectors("outliers"),
    "breadcrumbs_ties": _task_vectors("outliers", elect=True),
    "model_stock": Rule(fewest=2, weighted=False),
    "sce": Rule(elect=True, weighted=False, entrywise=True, options=frozenset({"select_topk"})),
    "nearswap": Rule(most=1, weighted=False, entrywise=True, options=frozenset({"t"})),
    "arcee_fusion": Rule(most=1, weighted=False, entrywise=True),
}
"""Every merge method by name."""


@dataclass(frozen=True, kw_only=True)
class RuleSettings:
    """Settings of a merge rule for one tensor.

    Args:
        weights: w_i, one number per parent (the base is no parent).
        density: The share of each task vector's entries that is kept, 0 to 1, one per parent; None keeps all.
        gamma: Breadcrumbs: the share of the largest entries that is dropped, 0 to 1; for all parents or one per parent,
            kept as the latter.
        epsilon: DELLA: how far the keep-probability moves with the magnitude, at least 0; like gamma.
        lambda_: Factor of the merged task vector.
        normalise: Divide by the sum of the weights (or the count, see `ops.rules`); None is the method's habit.
        rescale: Make up for dropped entries by a factor; None is the method's habit.
        t: `slerp`, `nuslerp`: place on the path, None for w_2 / (w_1 + w_2). `nearswap`: the difference up to which
            an entry is swapped, which it needs.
        vectors: `nuslerp`: `"last"` moves every vector along the last dimension by itself, `"first"` every one along
            the first; None the whole tensor as one.
        select_topk: `sce`: the share of entries of largest variance that is merged, 0 to 1.
        threshold: TIES with `semantics="paper"`: the magnitude from which entries are kept, one per parent, as
            `whole_model_threshold` finds it; None trims each tensor by itself.
        seed: Seed of the random masks, together with the tensor's name and the parent's index.
        name: The tensor's name.
        semantics: Whose rule counts where paper, mergekit and PEFT differ; see `ops.rules`.

    Raises:
        ConfigError: A field breaks one of these rules.
    """

    weights: Sequence[float]
    density: Sequence[float] | None = None
    gamma: float | Sequence[float] = 0.01
    epsilon: float | Sequence[float] = 0.15
    lambda_: float = 1.0
    normalise: bool | None = None
    rescale: bool | None = None
    t: float | None = None
    vectors: Literal["first", "last"] | None = None
    select_topk: float = 1.0
    threshold: Sequence[float] | None = None
    seed: int = 0
    name: str = ""
    semantics: Literal["paper", "mergekit", "peft"] = "mergekit"

    def __post_init__(self):
        for field in ("gamma", "epsilon"):
            if isinstance(value := getattr(self, field), float | int):
                object.__setattr__(self, field, (value,) * len(self.weights))
        for field in ("weights", "density", "gamma", "epsilon", "threshold"):
            if (values := getattr(self, field)) is not None:
                numbers = tuple(float(value) for value in values)
                object.__setattr__(self, field, numbers)
                broken = not numbers or len(numbers) != len(self.weights) or not all(map(math.isfinite, numbers))
                what = f"{field}={list(numbers)} for {len(self.weights)} weights"
                _refuse(broken, f"{what}; it holds one finite number per parent. Give one for each.")
        shares = {"density": self.density or (), "gamma": self.gamma, "select_topk": [self.select_topk]}
        for field, values in shares.items():
            broken = not all(0.0 <= value <= 1.0 for value in values)
            _refuse(broken, f"{field}={list(values)}; it is a share of the entries. Give a number from 0 to 1.")
        for field, value in {"lambda_": self.lambda_, "t": self.t or 0.0}.items():
            _refuse(not math.isfinite(value), f"{field}={value!r}; it is a finite number. Give one.")
        broken = min(self.own("epsilon")) < 0
        _refuse(broken, f"epsilon={list(self.own('epsilon'))}; it is at least 0. Give such a number.")
        broken = self.vectors not in (None, "first", "last")
        _refuse(broken, f"vectors={self.vectors!r}; it is 'first', 'last' or None. Use one of these.")
        _refuse(type(self.seed) is not int, f"seed={self.seed!r}; it is a whole number. Give an int.")
        known = ", ".join(SEMANTICS)
        _refuse(
            self.semantics not in SEMANTICS, f"semantics={self.semantics!r}; it is one of {known}. Use one of these."
        )

    def own(self, field: str) -> Sequence[float]:
        """Return what `density`, `gamma` or `epsilon` is for each parent."""
        return (1.0,) * len(self.weights) if (values := getattr(self, field)) is None else values

    def density_of(self, parent: int) -> float:
        """Return the density of one parent's task vector."""
        return self.own("density")[parent]


def _refuse(broken: bool, message: str) -> None:
    if broken:
        raise ConfigError(message)


def check_rule(method: str, settings: RuleSettings, *, parents: int, base: bool) -> Rule:
    """Return the rule of a method, after checking that the settings, the parents and the base fit it.

    Args:
        method: A key of `RULES`.
        settings: What the rule is told.
        parents: How many parents there are, the base not counted.
        base: Whether there is a base.

    Raises:
        ConfigError: The method is unknown; it takes another number of parents, or weights of another number are
            given; a base is missing; `nearswap` has no `t`; DELLA's probabilities leave (0, 1); a weighted mean is
            asked of weights that sum to 0; or the semantics do not know the method or the option.
    """
    _refuse(method not in RULES, f"method={method!r}; known methods are {', '.join(RULES)}. Use one of these.")
    rule, weights = RULES[method], settings.weights
    wanted = f"exactly {rule.most}" if rule.most == rule.fewest else f"at least {rule.fewest}"
    fits = rule.fewest <= parents <= (rule.most or parents) and parents == len(weights)
    what = f"{parents} parents and {len(weights)} weights; {method} merges {wanted} besides the base"
    _refuse(not fits, f"{what}, with one weight each. Change the list of parents or the weights.")
    broken = rule.base == "required" and not base
    _refuse(broken, f"{method} has no base; it merges what parents add to one. Give the model they come from.")
    broken = method == "nearswap" and (settings.t is None or settings.t < 0)
    _refuse(broken, f"nearswap with t={settings.t!r}; it swaps entries that differ by less. Give a t above 0.")
    normalise = rule.normalise if settings.normalise is None else settings.normalise
    broken = normalise and not rule.elect and abs(math.fsum(weights)) <= 1e-6 * math.fsum(map(abs, weights))
    what = f"weights={list(weights)} sum to {math.fsum(weights):g}, by which {method} divides"
    _refuse(broken, f"{what}. Give weights whose sum is not 0, or set normalise=False where the method has it.")
    _check_semantics(method, rule, settings)
    return rule


def _check_semantics(method: str, rule: Rule, settings: RuleSettings) -> None:
    broken = settings.semantics == "peft" and method not in _IN_PEFT
    _refuse(broken, f"semantics='peft' with {method}; PEFT has only {', '.join(_IN_PEFT)}. Use 'mergekit'.")
    broken = settings.threshold is not None and (settings.semantics != "paper" or method != "ties")
    _refuse(broken, "threshold given; it is for method='ties' with semantics='paper'. Leave it out elsewhere.")
    broken = bool(settings.rescale) and settings.semantics != "mergekit" and rule.trim in ("magnitude", "outliers")
    what = f"rescale=True with {method} and semantics={settings.semantics!r}, which has no such factor"
    _refuse(broken, f"{what}. Leave it out, or use semantics='mergekit'.")
    broken = settings.vectors is not None and "vectors" not in rule.options
    _refuse(broken, f"vectors={settings.vectors!r} with {method}; only nuslerp has it. Leave it out.")
    for density, epsilon in zip(settings.own("density"), settings.own("epsilon")) if rule.trim == "della" else ():
        spread = epsilon if settings.semantics == "mergekit" else epsilon / 2
        broken = 0 < density < 1 and not (density - spread > 0 and density + spread < 1)
        what = f"probabilities run from {density - spread:g} to {density + spread:g} and must lie between 0 and 1"
        _refuse(broken, f"density={density:g} with epsilon={epsilon:g}: {what}. Lower epsilon.")
