"""IFEval's instructions: a text that follows and one that does not, for every kind."""

import json

import pytest

from workbench.errors import DataError
from workbench.evaluation import score
from workbench.evaluation.ifeval import INSTRUCTIONS, unchecked
from workbench.records import Example

CASES = [
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "AN X-RAY",
        "An MRI",
    ),
    ("change_case:english_capital", {}, "YES, 2.", "YEs"),
    ("change_case:english_lowercase", {}, "yes, 2.", "Yes"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, " say hi. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "one ****** two", "one ****** one"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "end\nP. P.S. more", "end\nP.S. more"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "end\nP.S. more", "end"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "maybe"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1 x Part 2 y",
        "Part 1 x",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b c*", "*a* and * *"),
    ("detectable_format:title", {}, "<<On gout>>\ntext", "<< >>"),
    ("keywords:existence", {"keywords": ["gout", "knee"]}, "Knee with gout", "gout"),
    ("keywords:forbidden_words", {"forbidden_words": ["out"]}, "gout", "Out!"),
    ("keywords:frequency", {"keyword": "a", "relation": "less than", "frequency": 2}, "a b", "A b a"),
    ("keywords:letter_frequency", {"letter": "z", "let_relation": "at least", "let_frequency": 2}, "Zoo z", "zoo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'One.\n\n"Then, two."',
        "Then.\n\nTwo.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a *** b ***", "a *** *** b"),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 3},
        'One. "Two!" Three?',
        "One costs 2.5 dollars. Two.",
    ),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "two words", "now three words"),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "Done. any questions?", "Any questions? No."),
    ("startend:quotation", {}, ' "all of it" ', 'not "all of it"'),
]


def asked(*instructions: tuple[str, dict]) -> Example:
    names, arguments = [name for name, _ in instructions], [kwargs for _, kwargs in instructions]
    meta = json.dumps({"instruction_id_list": names, "kwargs": arguments})
    return Example(id="e1", skill="instruction", query="q", answer="", meta=meta)


@pytest.mark.parametrize(("name", "kwargs", "follows", "breaks"), CASES)
def test_each_instruction(name, kwargs, follows, breaks):
    assert score(asked((name, kwargs)), follows, "ifeval") == 1
    assert score(asked((name, {**kwargs, "other": None})), breaks, "ifeval") == 0
    assert score(asked((name, kwargs)), " ", "ifeval") == 0


def test_every_instruction_has_a_case():
    assert {name for name, *_ in CASES} == set(INSTRUCTIONS)


def test_all_instructions_count_together():
    both = asked(("punctuation:no_comma", {}), ("change_case:english_capital", {}))
    assert [score(both, text, "ifeval") for text in ("A B", "A, B", "a b")] == [1, 0, 0]


def test_a_language_cannot_be_checked_and_is_not_guessed():
    swahili = asked(("punctuation:no_comma", {}), ("language:response_language", {"language": "sw"}))
    assert unchecked(swahili) == ["language:response_language"]
    with pytest.raises(DataError, match=r"asks for language:response_language, which needs a language detector"):
        score(swahili, "habari", "ifeval")


def test_a_meta_without_instructions_names_the_columns():
    with pytest.raises(DataError, match=r"needs IFEval's columns there: load_examples"):
        score(Example(id="e1", skill="s", query="q", answer=""), "x", "ifeval")


def test_an_unknown_relation_is_refused():
    odd = asked(("length_constraints:number_words", {"relation": "about", "num_words": 3}))
    with pytest.raises(DataError, match="relation is 'about'; it must be 'at least' or 'less than'"):
        score(odd, "x", "ifeval")
