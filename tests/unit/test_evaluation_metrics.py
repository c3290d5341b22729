"""Metrics and intervals by hand-worked values."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError, DataError
from workbench.evaluation import METRICS, score
from workbench.evaluation.intervals import interval, ratio_interval, wilson
from workbench.records import Example


def example(answer: str, **columns) -> Example:
    return Example(id="e1", skill="s", query="q", answer=answer, **columns)


@pytest.mark.parametrize(
    ("answer", "output", "value"),
    [
        ("Asthma", " asthma.", 1),
        ("low back  pain", "Low\nback pain", 1),
        ("Straße", "STRASSE", 1),
        ("asthma", "asthma attack", 0),
        ("asthma", "", 0),
        ("no", "no.!", 0),
    ],
)
def test_exact_match_ignores_case_space_and_final_periods(answer, output, value):
    assert score(example(answer), output, "exact_match") == value


@pytest.mark.parametrize(
    ("answer", "output", "value"),
    [
        ("skin, eye", "Eye,  skin", 1),
        ("skin, eye", "skin", 2 / 3),
        ("skin, eye", "skin, ear, heart", 2 / 5),
        ("skin", "skin, skin", 1),
        ("skin", "", 0),
        ("skin", ", ,", 0),
    ],
)
def test_label_f1(answer, output, value):
    assert score(example(answer), output, "label_f1") == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "output", "value"),
    [
        ("condition: asthma; symptom: wheeze", "symptom: wheeze\nCondition: Asthma", 1),
        ("drug: a; b", "drug: b; a", 1),
        ("drug: a; b", "drug: a; symptom: b", 1 / 2),
        ("drug: a; b", "a; b", 0),
        ("drug: a", "", 0),
        ("none", "none", 1),
    ],
)
def test_entities_count_with_their_type(answer, output, value):
    assert score(example(answer), output, "entity_f1") == pytest.approx(value)


def test_likelihood_compares_the_choice_as_it_stands():
    asked = example("MRI", choices=("MRI", "mri"))
    assert [score(asked, choice, "likelihood") for choice in ("MRI", "mri")] == [1, 0]


def test_checks_are_read_from_the_meta():
    meta = json.dumps({"checks": [{"kind": "upper_case"}, {"kind": "mentions", "value": "paris"}]})
    asked = example("PARIS", meta=meta)
    assert [score(asked, text, "checks") for text in ("PARIS", "Paris", "ROME", "")] == [1, 0, 0, 0]


def test_checks_without_checks_are_an_error_with_the_remedy():
    with pytest.raises(DataError, match=r"example 'e1' has no `checks` in its meta \(\{\}\); .* needs a list such as"):
        score(example("x"), "x", "checks")


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"metric 'gleu' is not known; use one of bleu, checks, .*rouge_l"):
        score(example("x"), "x", "gleu")


@settings(max_examples=40, deadline=None)
@given(answer=st.text(max_size=40), output=st.text(max_size=40))
def test_every_text_metric_stays_in_range_and_gives_one_to_the_answer(answer, output):
    for metric in ("exact_match", "label_f1", "entity_f1"):
        assert 0 <= score(example(answer), output, metric) <= 1
        assert score(example(answer), answer, metric) == 1
        assert METRICS[metric].graded or score(example(answer), output, metric) in (0, 1)


def test_wilson_by_hand():
    # p = 8/10, z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half width 0.22658.
    assert wilson(0.8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-4)
    assert wilson(1, 10) == pytest.approx((0.72247, 1), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5000), data=st.data())
def test_wilson_holds_the_share_and_stays_in_range(n, data):
    share = data.draw(st.integers(0, n)) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    assert low < high


def test_the_bootstrap_repeats_and_comes_near_the_normal_interval():
    values = np.random.default_rng(1).uniform(size=400)
    mean, low, high = interval(values, graded=True, seed=3)
    assert (mean, low, high) == interval(values, graded=True, seed=3)
    half = 1.96 * values.std(ddof=1) / 20
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.15)


def test_equal_graded_values_do_not_claim_certainty():
    assert interval([1.0] * 10, graded=True) == pytest.approx((1, 0.72247, 1), abs=1e-4)
    assert interval([0.5] * 10, graded=True) == pytest.approx((0.5, *wilson(0.5, 10)))


def test_a_ratio_counts_things_and_draws_examples():
    parts, wholes = [1, 0, 3, 2, 0] * 40, [2, 0, 3, 4, 1] * 40
    share, low, high = ratio_interval(parts, wholes, seed=2)
    assert share == pytest.approx(6 / 10)
    assert (share, low, high) == ratio_interval(parts, wholes, seed=2)
    # Delta method: the variance of sum(part - share whole) over the 160 examples that have things to count.
    rest = np.array([part - share * whole for part, whole in zip(parts, wholes) if whole])
    half = 1.96 * np.sqrt(160 * rest.var()) / sum(wholes)
    assert (share - low, high - share) == pytest.approx((half, half), rel=0.15)


def test_a_ratio_that_is_the_same_everywhere_claims_no_certainty():
    assert ratio_interval([0, 0, 0], [2, 0, 5]) == pytest.approx((0, *wilson(0, 2)))
    assert ratio_interval([1, 2], [2, 4]) == pytest.approx((0.5, *wilson(0.5, 2)))
    assert np.isnan(ratio_interval([0], [0])).all()
