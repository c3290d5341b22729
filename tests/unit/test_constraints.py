import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import DataError
from workbench.evaluation.constraints import KINDS, check_names, passes

CASES = {
    "upper_case": ({}, ["PARIS", "X-RAY 2"], ["Paris", "PARIs", "12"]),
    "lower_case": ({}, ["paris", "type 2"], ["Paris", "12"]),
    "title_case": ({}, ["Paris", "New Delhi", "Twenty-One Is It", "A 2"], ["paris", "New delhi", "PARIS", "12"]),
    "exact_repeat": (
        {"value": "lion", "times": 3},
        ["lion lion lion"],
        ["lion", "lion lion lion lion", "lion, lion, lion"],
    ),
    "ends_with": ({"value": "thanks"}, ["paris thanks", "paris, Thanks"], ["paris", "thanks paris", "paris nothanks"]),
    "starts_with": ({"value": "well"}, ["well paris", "Well, paris"], ["paris well", "wellness in paris"]),
    "bullets": ({"count": 2}, ["- a\n- b"], ["- a", "- a\n- b\n- c", "* a\n* b", "- a\n-b", "- a\n- "]),
    "yes_no": ({}, ["yes", "No"], ["yes.", "yes it is", "maybe"]),
    "forbidden": ({"value": "city"}, ["paris", "citywide"], ["the city paris", "City!"]),
    "json": (
        {"key": "answer"},
        ['{"answer": "paris"}'],
        ['{"name": "paris"}', "paris", '["answer"]', '{"answer": paris}'],
    ),
    "word_count": ({"count": 3}, ["it is paris"], ["paris", "so it is paris"]),
    "quoted": ({}, ['"paris"'], ["paris", '"paris', "'paris'", '"a" and "b"', '""']),
    "ends_with_mark": ({"value": "!"}, ["paris!"], ["paris", "paris?!", "!", "paris! yes"]),
    "mentions": ({"value": "paris"}, ["paris", "in Paris"], ["rome"]),
    "numbered": ({"count": 2}, ["1. a\n2. b"], ["1. a\n3. b", "1 a\n2 b", "1. a", "2. a\n1. b"]),
    "comma_list": ({"count": 2}, ["a, b", "a,b"], ["a", "a, b, c", "a, ", "a,\nb"]),
    "spelled": ({"value": "rome"}, ["r-o-m-e", "R-O-M-E"], ["rome", "r-o-m", "r o m e", "r-o-m-e-"]),
}


def test_every_kind_has_cases():
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("kind", CASES)
def test_kind_accepts_and_rejects(kind):
    arguments, good, bad = CASES[kind]
    checks = [{"kind": kind, **arguments}]
    assert [text for text in good if not passes(text, checks)] == []
    assert [text for text in bad if passes(text, checks)] == []


@pytest.mark.parametrize("kind", CASES)
def test_white_space_around_is_ignored_and_nothing_never_passes(kind):
    arguments, good, _ = CASES[kind]
    checks = [{"kind": kind, **arguments}]
    assert passes(f"\n {good[0]} \n", checks)
    assert not passes(" \n", checks)


def test_spelled_without_a_word_checks_the_form_alone():
    assert passes("a-b", [{"kind": "spelled"}])
    assert not passes("ab-c", [{"kind": "spelled"}])


def test_all_checks_must_pass():
    checks = [{"kind": "upper_case"}, {"kind": "mentions", "value": "paris"}]
    assert passes("PARIS", checks)
    assert not passes("ROME", checks)
    assert not passes("paris", checks)
    assert passes("anything", [])


def test_names_come_in_order():
    assert check_names([{"kind": "quoted"}, {"kind": "mentions", "value": "a"}]) == ["quoted", "mentions"]


def test_unknown_kind_is_named_even_behind_a_failure():
    with pytest.raises(DataError, match="kind 'haiku'; use one of: upper_case, lower_case"):
        passes("rome", [{"kind": "upper_case"}, {"kind": "haiku"}])


def test_wrong_arguments_say_what_the_kind_takes():
    with pytest.raises(DataError, match="missing a required argument: 'count'; kind 'bullets' takes count: 'int'"):
        passes("- a", [{"kind": "bullets"}])
    with pytest.raises(DataError, match="kind 'quoted' takes nothing besides"):
        check_names([{"kind": "quoted", "value": "a"}])


@given(st.text())
def test_any_text_can_be_checked(text):
    for kind, (arguments, _, _) in CASES.items():
        assert passes(text, [{"kind": kind, **arguments}]) in (True, False)


@given(st.lists(st.text(st.characters(categories=["Ll"]), min_size=1), min_size=1, max_size=5))
def test_lists_of_words_are_counted(words):
    count = len(words)
    assert passes("\n".join(f"- {word}" for word in words), [{"kind": "bullets", "count": count}])
    assert passes("\n".join(f"{n}. {word}" for n, word in enumerate(words, 1)), [{"kind": "numbered", "count": count}])
    assert passes(", ".join(words), [{"kind": "comma_list", "count": count}])
    assert passes(" ".join(words), [{"kind": "word_count", "count": count}])
