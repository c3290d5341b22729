"""What each stage taught and what it destroyed: the stage x task matrix, forgetting and transfer, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import ConfigError
from workbench.records import Scores

_DRAWS = 1000
_BLOCKS = 20
_BLEU_ORDER = 4
Interval = tuple[float, float, float]
"""A value with the lower and the upper end of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class StageMatrix:
    """Scores after each stage: a row for each time of measuring, a column for each task.

    With R[i, j] the score of task j after stage i, T the last stage, and row 0 measured before training, over tasks:
    average accuracy = mean R[T, j]; error rate = 1 - that; forgetting = mean (max_i R[i, j] - R[T, j]) over stages
    before the last; backward transfer = mean (R[T, j] - R[s_j, j]) with s_j the stage that taught j, tasks of the last
    stage left out; forward transfer = mean (R[s_j - 1, j] - R[0, j]), tasks of the first stage left out. Intervals are
    of examples: a bootstrap that draws each task's examples anew, the same ones in every row.

    Args:
        after: Name of a row to its scores, in order, the first one before training; all with the same tasks, examples
            and `outputs`.
        taught: Task to the stage that taught it; tasks without one count in accuracy and forgetting alone.
        seed: Of the bootstrap.

    Raises:
        ConfigError: There are fewer than two rows, they differ in tasks or examples, or `taught` names no row.

    Source: Lopez-Paz and Ranzato (2017), arXiv 1706.08840, section 2; Chaudhry et al. (2018), arXiv 1801.10112,
    equation 3 for forgetting, in which noise alone makes the best row a little better than the last.
    """

    after: Mapping[str, Scores]
    taught: Mapping[str, str]
    seed: int = 0

    def __post_init__(self) -> None:
        rows = list(self.after.values())
        if len(rows) < 2:
            raise ConfigError(f"{len(rows)} rows; give at least the scores before training and after one stage")
        for name, scores in self.after.items():
            if _ids(scores) != _ids(rows[0]):
                raise ConfigError(f"row {name!r} has other tasks or examples than the first; evaluate all on the same")
        strange = sorted(set(self.taught.values()) - set(list(self.after)[1:]))
        if strange:
            raise ConfigError(f"taught names the stage {strange[0]!r}; the rows are {list(self.after)}")

    @property
    def tasks(self) -> list[str]:
        """The columns."""
        return list(next(iter(self.after.values())))

    def rows(self) -> list[dict[str, Any]]:
        """Return the matrix as a table: `after`, `task`, `value`, `low`, `high`, `n`."""
        return [
            {"after": name, "task": task, "value": score.value, "low": score.low, "high": score.high, "n": score.n}
            for name, scores in self.after.items()
            for task, score in scores.items()
        ]

    def summary(self) -> dict[str, Interval]:
        """Return `average_accuracy`, `error_rate`, `forgetting`, `backward_transfer` and `forward_transfer`.

        A measure to which no task belongs is NaN.
        """
        values = {task: self._values(task) for task in self.tasks}
        exact = self._measures({task: table.mean(1) for task, table in values.items()})
        rng, drawn = np.random.default_rng(self.seed), []
        for _ in range(_DRAWS):
            picks = {
                task: table[:, rng.integers(table.shape[1], size=table.shape[1])] for task, table in values.items()
            }
            drawn.append(self._measures({task: table.mean(1) for task, table in picks.items()}))
        ends = {name: np.quantile([draw[name] for draw in drawn], [0.025, 0.975]) for name in exact}
        return {name: (value, float(ends[name][0]), float(ends[name][1])) for name, value in exact.items()}

    def _values(self, task: str) -> np.ndarray:
        return np.array([[output.value for output in scores.outputs[task]] for scores in self.after.values()])

    def _measures(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
        place = {name: i for i, name in enumerate(self.after)}
        last = len(place) - 1
        own = {task: place[stage] for task, stage in self.taught.items() if task in means}
        accuracy = _mean([column[last] for column in means.values()])
        return {
            "average_accuracy": accuracy,
            "error_rate": 1 - accuracy,
            "forgetting": _mean([column[:last].max() - column[last] for column in means.values()]),
            "backward_transfer": _mean([means[task][last] - means[task][i] for task, i in own.items() if i < last]),
            "forward_transfer": _mean([means[task][i - 1] - means[task][0] for task, i in own.items() if i > 1]),
        }


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Return the share of word n-grams that are different, 0 to 1; higher is more diverse.

    Source: Li et al. (2016), arXiv 1510.03055, section 5.2.
    """
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU-4 of each text against all others, 0 to 1; lower is more diverse.

    Precisions of 1 to 4 words, each clipped by the largest count in any other text, with 1 added to both counts above
    one word; no brevity penalty is needed where every text is a reference of every other.

    Raises:
        ConfigError: There are fewer than two texts.

    Source: Zhu et al. (2018), arXiv 1802.01886; smoothing of Lin and Och (2004).
    """
    if len(texts) < 2:
        raise ConfigError(f"{len(texts)} texts; self-BLEU compares at least two")
    logs = np.zeros(len(texts))
    for n in range(1, _BLEU_ORDER + 1):
        counted = [Counter(_grams(text.split(), n)) for text in texts]
        # The two largest counts of an n-gram: a text's own may be the largest, and then the other one clips it.
        top: dict[Any, list[int]] = {}
        for counts in counted:
            for gram, count in counts.items():
                top[gram] = sorted([*top.get(gram, [0, 0]), count])[-2:]
        for i, counts in enumerate(counted):
            clip = {gram: top[gram][0] if top[gram][1] == count else top[gram][1] for gram, count in counts.items()}
            hits, total = sum(min(count, clip[gram]) for gram, count in counts.items()), counts.total()
            plus = n > 1
            logs[i] += math.log((hits + plus) / (total + plus)) if hits + plus and total + plus else -math.inf
    return float(np.exp(logs / _BLEU_ORDER).mean())


def jackknife(measure: Callable[[Sequence[str]], float], texts: Sequence[str]) -> Interval:
    """Return a measure of a set of texts with a 95 % interval from leaving out one twentieth at a time.

    A bootstrap would repeat texts and so make any set look less diverse than it is.

    Source: Efron and Tibshirani (1993), chapter 11.
    """
    blocks = min(_BLOCKS, len(texts))
    left = np.array([measure([text for i, text in enumerate(texts) if i % blocks != b]) for b in range(blocks)])
    value = measure(texts)
    half = 1.96 * math.sqrt((blocks - 1) / blocks * float(((left - left.mean()) ** 2).sum()))
    return value, value - half, value + half


def operations(costs: Mapping[str, Mapping[str, float]], *, parameters: int, trainable: int) -> dict[str, float]:
    """Return the floating-point operations that each stage took, from `Curriculum.costs`.

    A forward takes 2 for each parameter and token, a backward 2 for the activations and 2 for each trainable weight;
    of the extra tokens only `extra_trained` had a backward.

    Source: Kaplan et al. (2020), arXiv 2001.08361, section 2.1.
    """
    step = 4 * parameters + 2 * trainable
    return {
        name: (cost["tokens"] + cost["extra_trained"]) * step
        + (cost["extra_tokens"] - cost["extra_trained"]) * 2 * parameters
        for name, cost in costs.items()
    }


def _ids(scores: Scores) -> dict[str, list[str]]:
    return {task: [output.id for output in scores.outputs.get(task, ())] for task in scores}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
