"""Do experts specialise, or do they only look as if they did? Mutual information against shuffled labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import ConfigError
from workbench.records import RoutingTrace
from workbench.routing.stats import first_expert

_PAIRED = 10  # shuffles that each resample of the documents is compared with
_CLOSED = (
    "a an the this that these those my your his her its our their each every no some any all both i you he she it we "
    "they me him them us who whom which what whose of in on at by for with from to into over under after before during "
    "since until about against between through and or but nor so yet if because although while when where than as not "
    "is am are was were be been being has have had do does did can could may might shall should will would must there"
)
_FUNCTION_WORDS = frozenset(re.split(" ", _CLOSED))


@dataclass(frozen=True, kw_only=True, eq=False)
class Specialisation:
    """How much a token's label tells of its first expert at one router.

    Args:
        labels: Names of the labels.
        bits: Mutual information of label and expert, in bits; never below 0, and above it by chance alone.
        null: Its mean where the labels are shuffled.
        null_high: Its 97.5 % point there.
        uniform: Its mean where the same tokens go to experts drawn at random, all alike: the floor of small samples.
        excess: bits - null, what specialisation is left after chance.
        low: Lower end of the 95 % interval of the excess, over resampled documents; NaN for a single document.
        high: Upper end.
        p: Share of shuffles with at least as many bits, counting the true labels as one of them.
        share: Experts of each label's tokens, `(labels, E)`; rows sum to 1.
        null_share: Mean of the same where labels are shuffled.
        surprising: Where `share` lies outside the middle 95 % of the shuffles, `(labels, E)`, bool.
        n: Tokens.
        documents: Documents.
        shuffled: What was shuffled: `documents` where each has one label, else `tokens` within each document.
        seed: Of shuffles and resamples.
    """

    labels: tuple[str, ...]
    bits: float
    null: float
    null_high: float
    uniform: float
    excess: float
    low: float
    high: float
    p: float
    share: np.ndarray
    null_share: np.ndarray
    surprising: np.ndarray
    n: int
    documents: int
    shuffled: str
    seed: int


def specialisation(
    trace: RoutingTrace, labels: Sequence[Any], *, draws: int = 200, seed: int = 0
) -> dict[str, Specialisation]:
    """Measure, router by router, whether experts follow a label of the tokens, such as their skill or part of speech.

    I = sum_{l,e} p(l, e) log2(p(l, e) / (p(l) p(e))). A finite text gives I > 0 for a router that knows nothing of the
    labels, and tokens of one document are alike, so I alone proves nothing. It is compared with the same trace under
    shuffled labels: labels of whole documents change places where each document has one label, else the labels of the
    tokens change places within their document. Documents are resampled for the interval of the difference, each
    resample against shuffles of its own.

    Args:
        trace: What `capture_routing` recorded.
        labels: One for each token of the trace, or one for each document; compared as text.
        draws: Shuffles, and resamples, at least 20.
        seed: Of both.

    Raises:
        ConfigError: The labels fit neither tokens nor documents, are all the same, or `draws` is below 20.

    Source: Good (2005), Permutation, Parametric and Bootstrap Tests, chapter 3, for shuffling the units that are
        exchangeable; Miller (1955) for the upward bias of the plug-in estimate.
    """
    documents, codes, names = _codes(trace, labels, draws)
    count = int(documents.max()) + 1
    whole = all(len(np.unique(codes[documents == d])) == 1 for d in range(count))
    rng = np.random.default_rng(seed)
    shuffles = [_shuffle(codes, documents, whole, rng) for _ in range(draws)]
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    result = {}
    for name, output in trace.routers.items():
        shape = (count, len(names), output.router_logits.shape[1])
        tables = [_table(one, first_expert(output), documents, shape) for one in (codes, *shuffles[:_PAIRED])]
        null = np.stack([_table(one, first_expert(output), documents * 0, (1, *shape[1:]))[0] for one in shuffles])
        true = tables[0].sum(0)
        bits, chance = float(_bits(true)), _bits(null)
        random = rng.multinomial(true.sum(1).astype(int), np.full(shape[2], 1 / shape[2]), size=(20, shape[1]))
        resampled = [_bits(np.tensordot(drawn, table, 1)) for table in tables]
        ends = np.quantile(resampled[0] - np.mean(resampled[1:], axis=0), [0.025, 0.975])
        shares, share = null / null.sum(2, keepdims=True), true / true.sum(1, keepdims=True)
        below, above = np.quantile(shares, [0.025, 0.975], axis=0)
        result[name] = Specialisation(
            labels=names,
            bits=bits,
            null=float(chance.mean()),
            null_high=float(np.quantile(chance, 0.975)),
            uniform=float(_bits(random).mean()),
            excess=bits - float(chance.mean()),
            low=float(ends[0]) if count > 1 else np.nan,
            high=float(ends[1]) if count > 1 else np.nan,
            p=float((1 + (chance >= bits - 1e-12).sum()) / (1 + draws)),
            share=share,
            null_share=shares.mean(0),
            surprising=(share < below - 1e-12) | (share > above + 1e-12),
            n=len(codes),
            documents=count,
            shuffled="documents" if whole else "tokens",
            seed=seed,
        )
    return result


def word_classes(pieces: Sequence[str]) -> list[str]:
    """Return a coarse part of speech for each token's text: a word of a closed class can be told without a parser.

    Args:
        pieces: Texts of a trace's tokens in order, each as the tokenizer decodes it alone, with its leading space.

    Returns:
        `number`, `punctuation`, `space`, `function word`, `content word`, or `rest of a word` for a piece that goes on
        where the one before it ends.
    """
    result, before = [], " "
    for piece in pieces:
        word = piece.strip()
        if not word:
            kind = "space"
        elif re.fullmatch(r"[\d.,]*\d[\d.,]*", word):
            kind = "number"
        elif not any(sign.isalnum() for sign in word):
            kind = "punctuation"
        elif not piece[0].isspace() and before[-1:].isalpha():
            kind = "rest of a word"
        else:
            kind = "function word" if word.lower() in _FUNCTION_WORDS else "content word"
        result.append(kind)
        before = piece
    return result


def _codes(trace: RoutingTrace, labels: Sequence[Any], draws: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    documents = trace.tokens["document"].numpy() if len(trace) else np.zeros(0, dtype=int)
    count = int(documents.max()) + 1 if len(trace) else 0
    if len(labels) not in (len(trace), count) or not len(trace):
        raise ConfigError(
            f"there are {len(labels)} labels, and the trace has {len(trace)} tokens of {count} documents; give one "
            "label for each token or one for each document"
        )
    if draws < 20:
        raise ConfigError(f"draws={draws} must be at least 20, for the ends of an interval to mean anything")
    names, codes = np.unique([str(label) for label in labels], return_inverse=True)
    if len(names) < 2:
        raise ConfigError(f"all labels are {str(names[0])!r}; specialisation needs at least two different ones")
    # Where both counts are equal, each document is one token, and both readings are the same.
    return documents, codes if len(labels) == len(trace) else codes[documents], tuple(map(str, names))


def _shuffle(codes: np.ndarray, documents: np.ndarray, whole: bool, rng: np.random.Generator) -> np.ndarray:
    if whole:
        first = np.unique(documents, return_index=True)[1]
        return rng.permutation(codes[first])[documents]
    return codes[np.lexsort((rng.random(len(codes)), documents))]


def _table(codes: np.ndarray, experts: np.ndarray, documents: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Count tokens by document, label and expert."""
    return np.bincount(np.ravel_multi_index((documents, codes, experts), shape), minlength=np.prod(shape)).reshape(
        shape
    )


def _bits(tables: np.ndarray) -> np.ndarray:
    """Return the mutual information of the last two axes, in bits."""
    joint = tables / tables.sum((-2, -1), keepdims=True)
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    return (joint * np.log2(np.where(joint > 0, joint, 1) / np.where(joint > 0, apart, 1))).sum((-2, -1))
