"""ROUGE, BLEU, METEOR and their mean by hand-worked values."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError, DataError
from workbench.evaluation import METRICS, Task, metrics, score
from workbench.records import Example

OVERLAP = ("rouge_1", "rouge_2", "rouge_l", "bleu", "meteor", "composite")
CAT = "the cat sat on the mat"


def example(answer: str) -> Example:
    return Example(id="e1", skill="s", query="q", answer=answer)


def test_rouge_of_a_hand_worked_pair():
    output = "The cat, the mat now"
    # Words shared: the, cat, the, mat: 4 of 5 and of 6. Pairs shared: "the cat", "the mat": 2 of 4 and of 5.
    assert score(example(CAT), output, "rouge_1") == pytest.approx(2 * 4 / (5 + 6))
    assert score(example(CAT), output, "rouge_2") == pytest.approx(2 * 2 / (4 + 5))
    # The longest common subsequence is "the cat the mat".
    assert score(example(CAT), output, "rouge_l") == pytest.approx(8 / 11)
    # Backwards all words are there, and of the subsequence three: the sat the.
    assert score(example(CAT), "mat the on sat cat the", "rouge_1") == 1
    assert score(example(CAT), "mat the on sat cat the", "rouge_l") == pytest.approx(3 / 6)


def test_bleu_of_hand_worked_pairs():
    # "the cat sat on a mat": 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples, and the same length.
    assert score(example(CAT), "the cat sat on a mat", "bleu") == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 / 3) ** 0.25)
    # Three words of six: all n-grams occur, no quadruple exists, the brevity penalty is exp(1 - 6/3).
    assert score(example(CAT), "the cat sat", "bleu") == pytest.approx(math.exp(-1))
    # The words "a c d e f" of five, "e f" of four pairs; orders without a match count 1/2, then 1/4 of a match.
    smoothed = (5 / 5 * 1 / 4 * (1 / 2) / 3 * (1 / 4) / 2) ** 0.25
    assert score(example("a b c d e f"), "d c a e f", "bleu") == pytest.approx(smoothed * math.exp(1 - 6 / 5))
    # Case counts.
    assert score(example("gout"), "Gout", "bleu") == 0


def test_meteor_of_hand_worked_pairs():
    # Six of six words in one chunk: F = 1, penalty 0.5 (1/6)^3.
    assert score(example("we treat gout at home now"), "we treat gout at home now", "meteor") == pytest.approx(
        1 - 0.5 / 216
    )
    # Stems: treats/treated, drugs/drug. 3 of 4 and of 4 words, chunks "she treated", "drug": P = R = 3/4.
    assert score(example("She treats old drugs"), "she treated the drug", "meteor") == pytest.approx(
        (1 - 0.5 * (2 / 3) ** 3) * 3 / 4
    )
    # Recall weighs more: 2 of 2 given words of 4 wanted ones, F = 0.5 / (0.9 + 0.1 * 0.5), one chunk of 2.
    assert score(example("mild gout of knee"), "mild gout", "meteor") == pytest.approx((1 - 0.5 / 8) * 0.5 / 0.95)
    # A synonym is no match.
    assert score(example("physician"), "doctor", "meteor") == 0


def test_the_composite_is_the_plain_mean_of_three():
    output = "the cat sat on a mat"
    parts = [score(example(CAT), output, name) for name in ("rouge_l", "bleu", "meteor")]
    assert score(example(CAT), output, "composite") == pytest.approx(sum(parts) / 3)


@pytest.mark.parametrize("metric", OVERLAP)
def test_an_empty_output_is_worth_nothing_and_an_empty_reference_is_an_error(metric):
    assert METRICS[metric].graded
    assert score(example("gout"), "", metric) == score(example("gout"), " \n", metric) == 0
    with pytest.raises(DataError, match=r"example 'e1' has no answer, .* leave it out, or map the column"):
        score(example(" "), "gout", metric)


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.sampled_from(["ab", "cd", "ef,", "gh.", "ij\n", "kl"]), min_size=1, max_size=12), output=st.text()
)
def test_values_stay_in_range(words, output):
    answer = " ".join(words)
    for metric in OVERLAP:
        assert 0 <= score(example(answer), output, metric) <= 1
    assert score(example(answer), answer, "bleu") == pytest.approx(1)
    assert score(example(answer), answer, "rouge_1") == 1


def test_a_missing_package_is_said_before_anything_is_generated(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'bleu' needs sacrebleu, which is not installed: pip install 'workbench\[e"):
        Task(name="own", examples=[example("gout")], metric="bleu")
    assert Task(name="own", examples=[example("gout")], metric="meteor").metric == "meteor"
