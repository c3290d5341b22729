"""What routers do with many tokens: how evenly, how surely, how often they change, and whether two of them agree.

Every figure comes with a 95 % interval that resamples whole documents, because the tokens of one text are alike, and
with what blind chance would give. `document`, `row` and the like are columns of a trace's `tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.errors import ConfigError
from workbench.ops.routing import router_entropy
from workbench.records import RouterOutput, RoutingTrace

# Student's t, 97.5 % point, for 1 to 9 degrees of freedom; the last one is a little too wide for more.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A mean over tokens with its 95 % interval and what chance gives; numbers, or arrays of one shape.

    Args:
        value: The mean.
        low: Lower end, NaN where a single document leaves nothing to resample.
        high: Upper end.
        chance: What a router without preferences gives; its docstring says which.
        n: Tokens behind the mean.
        documents: Documents behind it (or seeds, for `over_seeds`).
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    chance: np.ndarray
    n: int
    documents: int


def expert_load(trace: RoutingTrace, *, draws: int = 500, seed: int = 0) -> dict[str, Estimate]:
    """Return each expert's share of a router's choices, `(E,)`, which sum to 1; chance is 1 / E.

    Raises:
        ConfigError: The trace is empty, as for all functions here.
    """
    result = {}
    for name, output in _routers(trace).items():
        chosen = _one_hot(output)
        experts = chosen.shape[1]
        share = chosen / output.selected_experts.shape[1]
        result[name] = _mean(share, trace, np.full(experts, 1 / experts), draws, seed)
    return result


def dead_experts(trace: RoutingTrace, *, least: float = 0.0) -> dict[str, list[int]]:
    """Return the experts whose share of a router's choices is at most `least`, 0 to 1.

    Among n tokens an expert that is used by a share of 3 / n of them stays unseen in one case of twenty, so an expert
    that looks dead in a short text may be alive in a longer one.
    """
    return {name: np.flatnonzero(load.value <= least).tolist() for name, load in expert_load(trace, draws=2).items()}


def entropy(trace: RoutingTrace, *, draws: int = 500, seed: int = 0) -> dict[str, Estimate]:
    """Return how undecided a router is: the mean entropy of softmax(router_logits) as a share of log E.

    0 means that one expert takes all, 1 (chance) that all are equal. 1 for a single expert.
    """
    result = {}
    for name, output in _routers(trace).items():
        most = math.log(output.router_logits.shape[1])
        values = router_entropy(output.router_logits) / most if most else torch.ones(len(trace))
        result[name] = _mean(values.numpy(), trace, np.array(1.0), draws, seed)
    return result


def coactivation(trace: RoutingTrace, *, draws: int = 500, seed: int = 0) -> dict[str, Estimate]:
    """Return how often two experts serve one token, as a share of the tokens, `(E, E)`; the diagonal is NaN.

    Chance, K (K - 1) / (E (E - 1)), is what K different experts drawn at random give.
    """
    result = {}
    for name, output in _routers(trace).items():
        chosen, top = _one_hot(output), output.selected_experts.shape[1]
        experts, documents = chosen.shape[1], trace.tokens["document"].numpy()
        counts = np.bincount(documents).astype(float)
        pairs = np.stack([chosen[documents == d].T @ chosen[documents == d] for d in range(len(counts))])
        pairs[:, range(experts), range(experts)] = np.nan
        chance = np.full((experts, experts), top * (top - 1) / max(experts * (experts - 1), 1))
        result[name] = _resample(pairs, counts, chance, draws, seed)
    return result


def switching_rate(trace: RoutingTrace, *, draws: int = 500, seed: int = 0) -> dict[str, Estimate]:
    """Return how often the first expert changes from a token to the next one of its document, 0 to 1.

    Chance, 1 - sum_e f_e^2 with the shares f of the first experts, is the rate of the same choices in random order.

    Raises:
        ConfigError: No two tokens follow each other.
    """
    documents = trace.tokens["document"] if len(trace) else torch.zeros(0)
    follows = torch.cat([torch.zeros(1, dtype=torch.bool), documents[1:] == documents[:-1]])[: len(trace)]
    if len(trace) and not follows.any():
        raise ConfigError(f"the {len(trace)} documents of the trace have one token each; a change needs two tokens")
    result = {}
    for name, output in _routers(trace).items():
        first = first_expert(output)
        changed = np.concatenate([[False], first[1:] != first[:-1]]).astype(float)
        shares = np.bincount(first) / len(first)
        result[name] = _mean(changed, trace, 1 - np.square(shares).sum(), draws, seed, keep=follows.numpy())
    return result


def agreement(first: RoutingTrace, second: RoutingTrace, *, draws: int = 500, seed: int = 0) -> dict[str, Estimate]:
    """Return how often two models send the same token to the same first expert, router by router, 0 to 1.

    Chance, sum_e f_e g_e, is what two independent routers with these shares of first experts give. Only experts that
    mean the same can be compared: two checkpoints of one run, not two runs.

    Raises:
        ConfigError: The traces are of different tokens, or have no router in common.
    """
    if len(first) != len(second) or (
        len(first) and not torch.equal(first.tokens["token_id"], second.tokens["token_id"])
    ):
        raise ConfigError(
            f"the traces hold {len(first)} and {len(second)} tokens and must hold the same ones; capture both models "
            "while they read one text (not while each writes its own)"
        )
    if not (shared := [name for name in _routers(first) if name in second.routers]):
        raise ConfigError(f"routers {list(first.routers)} and {list(second.routers)}: none is in both traces")
    result = {}
    for name in shared:
        one, two = first_expert(first.routers[name]), first_expert(second.routers[name])
        size = 1 + max(one.max(), two.max())
        chance = np.bincount(one, minlength=size) @ np.bincount(two, minlength=size) / len(one) ** 2
        result[name] = _mean((one == two).astype(float), first, chance, draws, seed)
    return result


def over_seeds(values: Sequence[float], *, chance: float = math.nan) -> Estimate:
    """Return the mean of one figure over at least two training seeds with its 95 % t-interval.

    Raises:
        ConfigError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ConfigError(f"values={list(values)}: an interval over seeds needs at least two; train another seed")
    mean = float(np.mean(values))
    half = _T[min(len(values) - 2, 8)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    ends = (np.array(number) for number in (mean, mean - half, mean + half, chance))
    return Estimate(**dict(zip(("value", "low", "high", "chance"), ends)), n=len(values), documents=len(values))


def first_expert(output: RouterOutput) -> np.ndarray:
    """Return the expert of highest weight of each token, `(N,)`."""
    best = output.routing_weights.argmax(dim=1, keepdim=True)
    return output.selected_experts.gather(1, best)[:, 0].numpy()


def _routers(trace: RoutingTrace) -> dict[str, RouterOutput]:
    if not len(trace):
        raise ConfigError("the trace is empty; run the model within `with capture_routing(model) as trace:` first")
    return trace.routers


def _one_hot(output: RouterOutput) -> np.ndarray:
    chosen = torch.zeros(output.router_logits.shape)
    return chosen.scatter(1, output.selected_experts, 1.0).numpy().astype(float)


def _mean(
    values: np.ndarray, trace: RoutingTrace, chance: np.ndarray, draws: int, seed: int, keep: np.ndarray | None = None
) -> Estimate:
    keep = np.ones(len(values), dtype=bool) if keep is None else keep
    documents = trace.tokens["document"].numpy()[keep]
    counts = np.bincount(documents).astype(float)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, documents, values[keep])
    return _resample(sums, counts, chance, draws, seed)


def _resample(sums: np.ndarray, counts: np.ndarray, chance: np.ndarray, draws: int, seed: int) -> Estimate:
    """Mean over tokens, and the percentile bootstrap over documents (Efron and Tibshirani, 1993, chapter 13)."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    value, used = sums.sum(0) / counts.sum(), len(counts)
    low = high = np.full(value.shape, np.nan)
    if used > 1:
        drawn = np.random.default_rng(seed).multinomial(used, np.full(used, 1 / used), size=draws)
        means = np.tensordot(drawn, sums, 1) / (drawn @ counts).reshape(-1, *[1] * value.ndim)
        low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return Estimate(value=value, low=low, high=high, chance=np.asarray(chance), n=int(counts.sum()), documents=used)
