"""The one scorer: how good a single output is for a single example, 0 to 1, under a named metric."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from workbench.errors import ConfigError, DataError
from workbench.evaluation.constraints import passes
from workbench.evaluation.ifeval import ifeval
from workbench.evaluation.overlap import bleu, composite, meteor, rouge_1, rouge_2, rouge_l
from workbench.records import Example


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How one output is valued.

    Args:
        function: `(example, output)` to a value, 0 to 1.
        graded: True where values between 0 and 1 can occur, which asks for another interval.
        version: Raised whenever a value may change, so that stored scores are told apart.
        needs: Packages of the extra `eval` that compute it.
    """

    function: Callable[[Example, str], float]
    graded: bool
    version: int = 1
    needs: tuple[str, ...] = ()


def score(example: Example, output: str, metric: str) -> float:
    """Value one output, 0 to 1; every figure of the workbench goes through here.

    Args:
        example: What was asked and what was wanted.
        output: What the model wrote, or for `likelihood` the choice that it found likeliest.
        metric: One of `METRICS`.

    Raises:
        ConfigError: There is no such metric, or the package that computes it is not installed.
        DataError: The example lacks what the metric needs, e.g. `checks` in its meta.
    """
    return METRICS[known_metric(metric)].function(example, output)


def known_metric(name: str) -> str:
    """Return the name of a metric if there is one that can be computed here.

    Raises:
        ConfigError: There is none, or the package that computes it is not installed.
    """
    if name not in METRICS:
        raise ConfigError(f"metric {name!r} is not known; use one of {', '.join(sorted(METRICS))}")
    lacking = [package for package in METRICS[name].needs if find_spec(package) is None]
    if lacking:
        raise ConfigError(
            f"metric {name!r} needs {', '.join(lacking)}, which is not installed: pip install 'workbench[eval]'"
        )
    return name


def normalise(text: str) -> str:
    """Return a text with case, runs of white space and periods at its end made not to count."""
    return " ".join(text.casefold().split()).rstrip(". ")


def exact_match(example: Example, output: str) -> float:
    """1 if output and answer are the same after `normalise`, else 0."""
    return float(normalise(output) == normalise(example.answer))


def likelihood(example: Example, output: str) -> float:
    """1 if the choice that the model found likeliest is the answer, else 0."""
    return float(output == example.answer)


def label_f1(example: Example, output: str) -> float:
    """F1 of two sets of labels with commas between, after `normalise`; order and repeats do not count."""
    return _f1(*({normalise(label) for label in text.split(",")} - {""} for text in (example.answer, output)))


def entity_f1(example: Example, output: str) -> float:
    """F1 of two sets of (type, entity), written `type: a; b`; a type holds until the next one is named.

    Entities are parted by a semicolon, a line break or `|`, and count only with their type.
    """
    return _f1(_entities(example.answer), _entities(output))


def checks(example: Example, output: str) -> float:
    """1 if the output passes every check in the example's meta, else 0.

    Raises:
        DataError: The meta holds no checks, or one that cannot be run.
    """
    wanted = example.details().get("checks")
    if not wanted:
        raise DataError(
            f"example {example.id!r} has no `checks` in its meta ({example.meta}); the metric `checks` needs a list "
            'such as {"checks": [{"kind": "upper_case"}]}'
        )
    return float(passes(output, wanted))


METRICS: dict[str, Metric] = {
    "exact_match": Metric(function=exact_match, graded=False),
    "likelihood": Metric(function=likelihood, graded=False),
    "label_f1": Metric(function=label_f1, graded=True),
    "entity_f1": Metric(function=entity_f1, graded=True),
    "rouge_1": Metric(function=rouge_1, graded=True),
    "rouge_2": Metric(function=rouge_2, graded=True),
    "rouge_l": Metric(function=rouge_l, graded=True),
    "bleu": Metric(function=bleu, graded=True, needs=("sacrebleu",)),
    "meteor": Metric(function=meteor, graded=True),
    "composite": Metric(function=composite, graded=True, needs=("sacrebleu",)),
    "checks": Metric(function=checks, graded=False),
    "ifeval": Metric(function=ifeval, graded=False, version=2, needs=("lm_eval", "langdetect", "immutabledict")),
}


def _f1(wanted: set[Any], given: set[Any]) -> float:
    if not wanted and not given:
        return 1.0
    return 2 * len(wanted & given) / (len(wanted) + len(given))


def _entities(text: str) -> set[tuple[str, str]]:
    found, kind = set(), ""
    for part in re.split(r"[;\n|]", text):
        name, colon, rest = part.partition(":")
        if colon:
            kind, part = normalise(name), rest
        if normalise(part):
            found.add((kind, normalise(part)))
    return found
