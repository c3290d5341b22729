"""Facts that a text states, invents or leaves out, where every entity of the world is known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import pandas as pd

from workbench.errors import ConfigError
from workbench.evaluation.intervals import interval, ratio_interval
from workbench.evaluation.pairs import paired
from workbench.paths import data_samples_root
from workbench.records import Example, Output, Rows

_NAMES = ("name", "synonym", "abbreviation")
_FACTS = ("symptoms", "test", "treatment", "drug_class", "contraindication", "cause", "specialty")


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """What one output makes of the entities of its example, each named once, in alphabetical order.

    Args:
        id: The example's id.
        stated: In the output, and in the source (context and query) or the reference.
        invented: In the output, and in neither source nor reference.
        omitted: In the reference, and not in the output.
        wanted: Number of entities in the reference.
    """

    id: str
    stated: tuple[str, ...]
    invented: tuple[str, ...]
    omitted: tuple[str, ...]
    wanted: int


@cache
def world_entities() -> dict[str, str]:
    """Return the classroom world's entities: how one is written to what it is called.

    Conditions (by name, synonym or abbreviation, all called by name), symptoms, tests, treatments and their classes,
    what is to be avoided, causes and specialties. Organ systems are left out: `skin` and `eye` are ordinary words.
    """
    conditions = json.loads((data_samples_root() / "world" / "conditions.json").read_text(encoding="utf-8"))
    facts = [condition[field] for condition in conditions for field in _FACTS]
    found = {text: text for fact in facts for text in ([fact] if isinstance(fact, str) else fact)}
    # A cause or a thing to avoid can itself be a condition, which is then called by its name.
    return found | {row[field]: row["name"] for row in conditions for field in _NAMES if row[field]}


def entities(text: str, vocabulary: Mapping[str, str]) -> set[str]:
    """Return what is called by name in a text, of two overlapping entities the longer one.

    Words count whole and whatever their case; an abbreviation in capitals counts in capitals only. A negated or
    suspected entity is one that is mentioned.

    Args:
        text: Any text.
        vocabulary: How an entity is written to what it is called.

    Raises:
        ConfigError: The vocabulary is empty, or has an entity without text.
    """
    pattern, names = _compiled(tuple(vocabulary.items()))
    found = (" ".join(match[0].split()) for match in pattern.finditer(text))
    return {names[word] if word in names else names[word.lower()] for word in found}


@lru_cache(maxsize=8)
def _compiled(vocabulary: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    names = {word if word.isupper() else word.lower(): name for word, name in vocabulary}
    if not names or "" in names:
        raise ConfigError(f"the vocabulary has {len(names)} entities; it needs at least one, none of them without text")
    words = (
        (r"\s+".join(map(re.escape, word.split())), word.isupper()) for word in sorted(names, key=len, reverse=True)
    )
    either = "|".join(word if capitals else f"(?i:{word})" for word, capitals in words)
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)"), names


def faithfulness(example: Example, output: str, vocabulary: Mapping[str, str] | None = None) -> Faithfulness:
    """Compare the entities of an output with those of its source and its reference.

    Args:
        example: Its context and query are the source, its answer is the reference.
        output: What the model wrote.
        vocabulary: As for `entities`; None takes `world_entities()`.

    Raises:
        ConfigError: As for `entities`.
    """
    known = world_entities() if vocabulary is None else vocabulary
    given, wanted = entities(output, known), entities(example.answer, known)
    source = entities(f"{example.context}\n{example.query}", known) | wanted
    return Faithfulness(
        id=example.id,
        stated=tuple(sorted(given & source)),
        invented=tuple(sorted(given - source)),
        omitted=tuple(sorted(wanted - given)),
        wanted=len(wanted),
    )


def faithfulness_report(
    examples: Rows,
    outputs: Sequence[str] | Sequence[Output],
    vocabulary: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how much of what a model mentions is invented, and how much of what is wanted it leaves out.

    Only entities are compared: a wrong number, a wrong side or a lost negation goes unseen.

    Args:
        examples: With source and reference.
        outputs: One text for each, or the records of `Scores.outputs[task]`.
        vocabulary: As for `entities`; None takes `world_entities()`.
        seed: Of the bootstrap over examples.

    Returns:
        Rows `stated` and `invented` (shares of the entities in the outputs), `omitted` (share of those in the
        references) and `texts with an invention` (share of the outputs). Columns: measure; value, low and high, 0 to 1,
        not a number where nothing is mentioned; count; of, what it is a share of; n, the outputs; empty_outputs, those
        without text, which mention nothing.

    Raises:
        ConfigError: As for `entities`.
        DataError: As for `paired`.
    """
    pairs = paired(examples, outputs)
    found = [faithfulness(example, text, vocabulary) for example, text in pairs]
    mentioned = [len(one.stated) + len(one.invented) for one in found]
    counted = {
        "stated": ([len(one.stated) for one in found], mentioned),
        "invented": ([len(one.invented) for one in found], mentioned),
        "omitted": ([len(one.omitted) for one in found], [one.wanted for one in found]),
    }
    rows = [
        (measure, *ratio_interval(parts, wholes, seed=seed), sum(parts), sum(wholes))
        for measure, (parts, wholes) in counted.items()
    ]
    texts = [float(bool(one.invented)) for one in found]
    rows.append(("texts with an invention", *interval(texts, graded=False), int(sum(texts)), len(texts)))
    table = pd.DataFrame(rows, columns=["measure", "value", "low", "high", "count", "of"])
    return table.assign(n=len(found), empty_outputs=sum(not text.strip() for _, text in pairs))
