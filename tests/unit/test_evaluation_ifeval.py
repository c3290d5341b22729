"""IFEval's instructions: a text that follows and one that does not for every type, on real prompts too."""

import json
import socket
import sys
from pathlib import Path

import nltk
import pytest

from workbench.data import load_examples
from workbench.errors import ConfigError, DataError
from workbench.evaluation import Task, instruction_report, metrics, score
from workbench.evaluation.ifeval import _checkers, followed
from workbench.records import Example, Output, records

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
PROMPTS = SHARED / "ifeval" / "prompts_100.jsonl"
real = pytest.mark.skipif(not PROMPTS.is_file(), reason=f"IFEval's prompts are not at {PROMPTS}")
REPLACED = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}

CASES = [
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "AN X-RAY",
        "An MRI",
    ),
    ("change_case:english_capital", {}, "THE ANSWER IS YES, OF COURSE.", "THE ANSWER IS YES, of course."),
    ("change_case:english_capital", {}, "THE WEATHER IS NICE TODAY.", "DAS WETTER IST HEUTE SEHR SCHÖN UND WARM."),
    ("change_case:english_lowercase", {}, "the answer is yes, of course.", "The answer is yes."),
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
    ("keywords:letter_frequency", {"letter": "#", "let_relation": "at least", "let_frequency": 2}, "# a ## b", "# a"),
    ("keywords:letter_frequency", {"letter": "z", "let_relation": "at least", "let_frequency": 2}, "Zoo z", "zoo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'One.\n\n"Then, two."',
        "Then.\n\nTwo.",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das Wetter ist heute sehr schön und warm.",
        "The weather is very nice and warm today.",
    ),
    ("language:response_language", {"language": "kn"}, "ಹೌದು, ಅದು ನಿಜ.", "Yes, that is true."),
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


REAL = {
    # type: key of a prompt, an answer that follows this instruction, one that does not
    "change_case:capital_word_frequency": (1592, "SUN and WIND can power the USA.", "SUN and wind can power the US."),
    "change_case:english_capital": (3572, "THE FAIR FARE COMPANY IS A GOOD NAME.", "The FARE COMPANY is a good name."),
    "change_case:english_lowercase": (
        1361,
        "the rent is high and the pay is low",
        "The rent is high and the pay is low",
    ),
    "combination:repeat_prompt": (
        1518,
        "I am a software engineer with 7 years of experience, and I am looking for a new job. Can you create a resume "
        "for me and explain each section?\nName: Ada.",
        "Sure! I am a software engineer with 7 years of experience, and I am looking for a new job.",
    ),
    "combination:two_responses": (247, "Meiji drew the lines.\n******\nHan gave way to ken.", "Meiji. *** Han."),
    "detectable_content:number_placeholders": (3221, "FLY TO [CITY] AND EAT AT [PLACE]. " * 4, "FLY TO [CITY]. " * 7),
    "detectable_content:postscript": (2628, "Ka-chow!<br>2 + 2 = 4<br>P.P.S Drive slowly.", "Ka-chow!<br>P.S Bye."),
    "detectable_format:constrained_response": (227, "Here is it: My answer is no.", "No, the poodle is smaller."),
    "detectable_format:json_format": (1148, '```json\n{"good": "flight", "bad": "fame"}\n```', "good: flight"),
    "detectable_format:multiple_sections": (
        1548,
        "SECTION 1\nName\nSECTION 2\nMenu\nSECTION 3\nTeam\nSECTION 4\nHours",
        "SECTION 1\nName\nSECTION 2\nMenu\nSECTION 3\nTeam",
    ),
    "detectable_format:number_bullet_lists": (2801, "* world\n* sun\n* birds\n* walk", "* world\n* sun\n* birds"),
    "detectable_format:number_highlighted_sections": (
        3453,
        "*Jomon*, *Yayoi*, *Heian*, *Edo* and *Meiji*",
        "*Jomon*, *Yayoi*, *Heian* and *Edo*",
    ),
    "detectable_format:title": (3690, "<<Too vague>>\nIt says little.", "<Too vague>\nIt says little."),
    "keywords:existence": (3439, "<p>Bill met an economist, Jurgen.</p>", "<p>Bill met an economist.</p>"),
    "keywords:forbidden_words": (1675, "Das Wetter ist gerade gut.", "Das Wetter ist heute gut."),
    "keywords:frequency": (2997, "Dear editor, see my last para.", "Dear editor, see my letter."),
    "keywords:letter_frequency": (1130, "Which chair has one arm?", "What is the first chesterfield?"),
    "language:response_language": (
        2309,
        "Siku ya alhamisi mwalimu aliuliza wanafunzi wake maswali mengi kuhusu muungano wa nchi.",
        "On Thursday the teacher asked his pupils many questions about the amalgamation.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        2439,
        "Punched in [city].\n\nThe police grasp.\n\nThey grasp [things].",
        "The police grasp.\n\nPunched in [city].\n\nThey grasp [things].",
    ),
    "length_constraints:number_paragraphs": (1082, "He woke.\n***\nHe jumped.", "He woke.\n\nHe jumped."),
    "length_constraints:number_sentences": (3329, "The screen is worth its price. " * 30, "It is fast. " * 29),
    "length_constraints:number_words": (343, "We keep trust. " * 100, "We keep trust. " * 99),
    "punctuation:no_comma": (3323, "A bust depicts a bearded gentleman.", "A bust, bearded."),
    "startend:end_checker": (1893, "He rode to Pella.\nPeace!", "Peace! He rode to Pella."),
    "startend:quotation": (2829, '"Because it was in tune."', 'He said "because it was in tune".'),
}


def asked(*instructions: tuple[str, dict]) -> Example:
    names, arguments = [name for name, _ in instructions], [kwargs for _, kwargs in instructions]
    meta = json.dumps({"instruction_id_list": names, "kwargs": arguments})
    return Example(id="e1", skill="instruction", query="q", answer="", meta=meta)


@pytest.mark.parametrize(("name", "kwargs", "follows", "breaks"), CASES)
def test_each_instruction(name, kwargs, follows, breaks):
    assert score(asked((name, kwargs)), follows, "ifeval") == 1
    assert score(asked((name, {**kwargs, "other": None})), breaks, "ifeval") == 0
    assert score(asked((name, kwargs)), " ", "ifeval") == 0


def test_every_instruction_has_a_case_and_a_real_prompt():
    assert {name for name, *_ in CASES} == set(_checkers()) == set(REAL)
    assert len(REAL) == 25


@pytest.fixture(scope="module")
def prompts() -> dict[str, Example]:
    meta = ["instruction_id_list", "kwargs"]
    rows = load_examples(PROMPTS, skill="instruction", query="prompt", answer="", id="key", meta=meta)
    return {row.id: row for row in records(rows)}


@real
@pytest.mark.parametrize("name", REAL)
def test_each_instruction_on_a_real_prompt(name, prompts):
    key, follows, breaks = REAL[name]
    example = prompts[str(key)]
    place = example.details()["instruction_id_list"].index(name)
    assert [followed(example, text)[place] for text in (follows, breaks)] == [True, False]
    assert not followed(example, breaks, loose=True)[place]


@real
def test_every_real_prompt_is_valued_as_lm_eval_values_it(prompts):
    _checkers()
    from lm_eval.tasks.ifeval import utils

    compared = 0
    for example in prompts.values():
        meta = example.details()
        given = list(zip(meta["instruction_id_list"], meta["kwargs"], strict=True))
        same = [i for i, (name, kwargs) in enumerate(given) if name not in REPLACED and kwargs.get("letter") != "#"]
        names, kwargs = [given[i][0] for i in same], [given[i][1] for i in same]
        asked_of = utils.InputExample(key=0, instruction_id_list=names, prompt=example.query, kwargs=kwargs)
        for text in (*REAL[names[0]][1:], f"Sure!\n**{REAL[names[-1]][1]}**\nBye.") if names else ():
            theirs = utils.test_instruction_following_strict(asked_of, text).follow_instruction_list
            loosely = utils.test_instruction_following_loose(asked_of, text).follow_instruction_list
            for loose, reference in ((False, theirs), (True, loosely)):
                ours = followed(example, text, loose=loose)
                assert [ours[i] for i in same] == reference, (names, text, loose)
                compared += len(reference)
    assert compared > 700


def test_loose_forgives_a_first_line_a_last_line_and_asterisks():
    quoted = asked(("startend:quotation", {}))
    for text in ('Sure!\n"all"', '"all"\nBye', 'Sure!\n"all"\nBye', '*"all"*', 'Sure!\n**"all"**\nBye'):
        assert followed(quoted, text) == (False,)
        assert followed(quoted, text, loose=True) == (True,)
    # Two lines before it are not forgiven, and what is left after the first line must hold text.
    assert followed(quoted, 'Sure!\nHere:\n"all"', loose=True) == (False,)
    assert followed(asked(("punctuation:no_comma", {})), "a, b", loose=True) == (False,)


def test_the_report_counts_prompts_instructions_and_types():
    examples = [
        Example(**{**asked(("punctuation:no_comma", {}), ("change_case:english_capital", {})).to_dict(), "id": "a"}),
        Example(**{**asked(("punctuation:no_comma", {})).to_dict(), "id": "b"}),
        Example(**{**asked(("startend:quotation", {})).to_dict(), "id": "c"}),
    ]
    report = instruction_report(
        examples, ["THE DAY IS LONG, AND THE NIGHT IS SHORT.", "one two", 'Sure!\n"all"']
    ).set_index(["level", "reading"])
    assert report.loc[("prompt", "strict"), "value"] == pytest.approx(1 / 3)
    assert report.loc[("prompt", "loose"), "value"] == pytest.approx(2 / 3)
    assert report.loc[("instruction", "strict"), ["value", "n"]].tolist() == [pytest.approx(2 / 4), 4]
    assert report.loc[("instruction", "loose"), "value"] == pytest.approx(3 / 4)
    assert report.loc[("punctuation:no_comma", "strict"), ["value", "n"]].tolist() == [0.5, 2]
    assert len(report) == 2 * (2 + 3)
    assert ((report.low <= report.value) & (report.value <= report.high) & (report.low < report.high)).all()
    by_id = instruction_report(examples, [Output(id="c", text=" ", value=0), Output(id="b", text="x", value=1)])
    assert by_id.loc[0, ["value", "n", "empty_outputs"]].tolist() == [0.5, 2, 1]
    with pytest.raises(DataError, match=r"2 outputs for 3 examples; give one text for each"):
        instruction_report(examples, ["x", "y"])
    with pytest.raises(DataError, match=r"paired by id, and \['z'\] have none"):
        instruction_report(examples, [Output(id="z", text="x", value=0)])


def test_the_checkers_ask_the_network_for_nothing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    _checkers.cache_clear()  # so that lm-eval's modules, which download while they are imported, are imported again
    for name, kwargs, follows, _ in CASES:
        assert followed(asked((name, kwargs)), follows) == (True,)
    assert nltk.download is refuse


def test_a_missing_package_is_said_before_anything_is_generated(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None if name == "langdetect" else name)
    with pytest.raises(ConfigError, match=r"'ifeval' needs langdetect, which is not installed: pip install 'workbench"):
        Task(name="own", examples=[asked(("punctuation:no_comma", {}))], metric="ifeval")


def test_all_instructions_count_together():
    both = asked(("punctuation:no_comma", {}), ("change_case:english_capital", {}))
    texts = ("IT IS A GOOD DAY.", "IT IS A GOOD, NICE DAY.", "It is a good day.")
    assert [score(both, text, "ifeval") for text in texts] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            "keywords:rhyme",
            {},
            r"which lm-eval's checkers do not take \(KeyError: 'keywords:rhyme'\); correct its meta",
        ),
        ("keywords:frequency", {"keyword": "a"}, "takes keyword, frequency, relation"),
        ("punctuation:no_comma", {"letter": "a"}, "takes no argument"),
        ("length_constraints:number_words", {"relation": "about", "num_words": 3}, "relation .* but about is given"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": -3}, "a number .* is out of range"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "a number .* is out of range",
        ),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_relation": "at least", "let_frequency": 1},
            "one character",
        ),
        ("language:response_language", {"language": "xx"}, "KeyError: 'xx'"),
        ("keywords:existence", {"keywords": ["c("]}, "reads words as regular expressions .* put a backslash"),
    ],
)
def test_an_instruction_that_cannot_be_checked_is_an_error(name, kwargs, message):
    with pytest.raises(DataError, match=message):
        score(asked((name, kwargs)), "some text", "ifeval")


def test_json_too_deep_to_be_read_is_no_json():
    assert score(asked(("detectable_format:json_format", {})), "[" * 100_000, "ifeval") == 0


def test_a_meta_without_instructions_names_the_columns():
    with pytest.raises(DataError, match=r"needs IFEval's columns there: load_examples"):
        score(Example(id="e1", skill="s", query="q", answer=""), "x", "ifeval")
