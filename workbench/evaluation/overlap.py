"""How much of a reference's wording an output has: ROUGE, BLEU, METEOR and their mean.

All values are those of one output, 0 to 1, so that two models can be compared example by example; a task's figure is
their mean. Each metric has its own words, as its package has them: ROUGE lower-cased runs of a-z and 0-9 (other scripts
have none, and score 0), BLEU the cased 13a tokens of the machine translation workshops, METEOR lower-cased runs of
letters and digits or of other marks.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from workbench.errors import DataError
from workbench.records import Example


def rouge_1(example: Example, output: str) -> float:
    """ROUGE-1 F-measure: the words shared, of lower-cased words without stemming.

    Raises:
        DataError: The example has no answer.

    Source: Lin (2004), ROUGE, section 2; computed by the rouge-score package.
    """
    return _rouge(example, output, "rouge1")


def rouge_2(example: Example, output: str) -> float:
    """ROUGE-2 F-measure: the pairs of neighbouring words shared, of lower-cased words without stemming.

    Raises:
        DataError: The example has no answer.

    Source: Lin (2004), ROUGE, section 2; computed by the rouge-score package.
    """
    return _rouge(example, output, "rouge2")


def rouge_l(example: Example, output: str) -> float:
    """ROUGE-L F-measure: the longest common subsequence of words, of lower-cased words without stemming.

    Raises:
        DataError: The example has no answer.

    Source: Lin (2004), ROUGE, section 3; computed by the rouge-score package.
    """
    return _rouge(example, output, "rougeL")


def bleu(example: Example, output: str) -> float:
    """Sentence BLEU / 100: precision of 1- to 4-grams with the brevity penalty, smoothed exponentially.

    The order is lowered where an output is too short to have 4-grams, as sacrebleu does for single sentences.

    Raises:
        DataError: The example has no answer.

    Source: Papineni et al. (2002); Post (2018), sacrebleu, signature `case:mixed|eff:yes|tok:13a|smooth:exp`.
    Deviates: papers often give the BLEU of a whole corpus, which has no value for each example and thus no paired test.
    """
    # Rounding leaves a hair above 100 for equal texts.
    return min(1.0, _bleu().sentence_score(output, [_wanted(example)]).score / 100)


def meteor(example: Example, output: str) -> float:
    """METEOR by exact words, then by Porter stems: a mean of precision P and recall R that favours R, less for scatter.

    (1 - gamma (chunks / matches)^beta) P R / (alpha P + (1 - alpha) R), with alpha 0.9, beta 3, gamma 0.5.

    Raises:
        DataError: The example has no answer.

    Source: Lavie and Agarwal (2007), METEOR, section 2; computed by nltk, with the parameters of its function.
    Deviates: no synonyms, whose list WordNet is a download. Of words that occur more than once, nltk matches the last
    with the last, which need not give the fewest chunks.
    """
    from nltk.tokenize import wordpunct_tokenize
    from nltk.translate.meteor_score import single_meteor_score

    words, given = wordpunct_tokenize(_wanted(example)), wordpunct_tokenize(output)
    return single_meteor_score(words, given, wordnet=_NoSynonyms())  # pyright: ignore[reportArgumentType]


def composite(example: Example, output: str) -> float:
    """Unweighted mean of ROUGE-L, BLEU and METEOR.

    Raises:
        DataError: The example has no answer.

    Our reading: of the composite that arXiv 2604.01538 is said to report, whose parts and weights are not known to us.
    """
    return sum(part(example, output) for part in (rouge_l, bleu, meteor)) / 3


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


def _wanted(example: Example) -> str:
    if not example.answer.strip():
        raise DataError(
            f"example {example.id!r} has no answer, and an output's wording can only be compared with one; leave it "
            "out, or map the column that holds the reference: load_examples(..., answer=...)"
        )
    return example.answer


def _rouge(example: Example, output: str, kind: str) -> float:
    return float(_rouge_scorer(kind).score(_wanted(example), output)[kind].fmeasure)


@cache
def _rouge_scorer(kind: str) -> Any:
    # Takes over a second to import, and many evaluations have no use for it.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False)


@cache
def _bleu() -> Any:
    from sacrebleu import BLEU

    return BLEU(effective_order=True)
