"""What the views write: word marks, panes, fallbacks, drawings. All of it HTML, so all of it escaped."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.views.answers import blend_pane, fallback_table, parent_pane, short_names
from workbench.views.diff import blend_html, overlap, parent_html, shared_words
from workbench.views.drawing import FRAME, as_image, pareto_picture, ratio_picture
from workbench.views.front import Curve

HOSTILE = "<script>alert('x')</script> & <img src=x onerror=alert(1)>"
WORDS = st.lists(st.sampled_from(["a", "b", "<b>", "&", "chest", "Pain"]), max_size=8)


def line(name="clinical", values=(0.2, 0.6, 0.9)) -> Curve:
    return Curve(name=name, values=values, lows=tuple(v - 0.1 for v in values), highs=tuple(v + 0.05 for v in values))


def plain(html: str) -> str:
    """The words of a text without its marks."""
    return re.sub(r"<sup>.*?</sup>|<[^>]+>", "", html)


def test_blend_words_carry_their_origin() -> None:
    shown = blend_html("GIVE an inhaled STEROID now", {"x": "give paper now", "y": "an inhaled steroid"})
    assert shown == (
        '<span class="wb-from">GIVE<sup>A</sup></span> <span class="wb-from">an inhaled STEROID<sup>B</sup></span> '
        '<span class="wb-from">now<sup>A</sup></span>'
    )


def test_words_of_every_parent_are_plain_and_words_of_none_are_new() -> None:
    shown = blend_html("the heart tea", {"x": "the heart", "y": "the heart"})
    assert shown == 'the heart <strong class="wb-new">tea<sup>new</sup></strong>'


def test_nothing_is_marked_before_a_parent_has_answered() -> None:
    assert blend_html("the <heart>", {}) == "the &lt;heart&gt;"
    assert parent_html("the heart", "") == "the heart"


def test_an_empty_answer_shares_nothing() -> None:
    assert "A" not in blend_html("heart", {"x": "", "y": "heart"})
    assert overlap("heart", "") is None


def test_parent_marks_what_the_blend_leaves_out() -> None:
    assert parent_html("gout affects joints", "asthma affects") == (
        '<span class="wb-left-out">gout</span> affects <span class="wb-left-out">joints</span>'
    )


def test_marks_follow_the_order_of_the_words() -> None:
    assert shared_words(["a", "b"], ["b", "a"]) in (({0}, {1}), ({1}, {0}))


@given(WORDS, WORDS, WORDS)
def test_marks_change_no_word_and_let_no_tag_through(blend: list[str], first: list[str], second: list[str]) -> None:
    shown = blend_html(" ".join(blend), {"x": " ".join(first), "y": " ".join(second)})
    assert plain(shown) == " ".join(blend).replace("&", "&amp;").replace("<b>", "&lt;b&gt;")
    assert "<b>" not in shown


def test_hostile_text_is_escaped_everywhere() -> None:
    shown = [
        blend_html(HOSTILE, {"x": HOSTILE, "y": "no"}),
        parent_html(HOSTILE, "x"),
        parent_pane("A", HOSTILE, HOSTILE, HOSTILE),
        blend_pane(HOSTILE, HOSTILE, {}, writing=True),
        fallback_table(recipe=HOSTILE, prompt=HOSTILE, blend=HOSTILE, answers={HOSTILE: HOSTILE}, scores=HOSTILE),
        ratio_picture([0, 0.5, 1], [line(HOSTILE)], x_title=HOSTILE),
        pareto_picture([0, 0.5, 1], line(HOSTILE), line(), label=HOSTILE),
    ]
    for text in shown:
        assert "<script" not in text
        assert "<img" not in text


def test_fallback_says_what_was_not_written_and_that_it_is_no_advice() -> None:
    table = fallback_table(recipe="linear: a 0.60, b 0.40", prompt="?", blend="yes", answers={"a": "no", "b": None})
    assert "linear: a 0.60, b 0.40" in table
    assert "(not written yet)" in table
    assert "Nothing they write is medical advice" in table


@pytest.mark.parametrize(
    ("parents", "names"),
    [
        (["classroom/instruct", "classroom/clinical"], ["instruct", "clinical"]),
        (["runs/a/", "runs/b"], ["a", "b"]),
        (["one/model", "two/model"], ["A model", "B model"]),
    ],
)
def test_short_names_stay_different(parents: list[str], names: list[str]) -> None:
    assert short_names(parents) == names


def test_pictures_are_valid_svg_with_a_marker_and_one_point_for_each_value() -> None:
    ratios = [0.0, 0.5, 1.0]
    lines = [line(), line("instructions", (0.9, 0.8, 0.1))]
    across = ratio_picture(ratios, lines, x_title="share of clinical")
    up = pareto_picture(ratios, lines[1], lines[0], label="share of clinical")
    for picture, points in ((across, 8), (up, 3)):
        root = ET.fromstring(picture)
        assert len(root.findall(".//{*}g[@class='wb-marker']")) == 1
        assert len(root.findall(".//{*}title")) == points
        assert root.get("role") == "img"
        assert root.get("aria-label")
    assert "clinical at 0.5: 0.60 (0.50 to 0.65)" in across


def test_pictures_tell_curves_apart_without_colour() -> None:
    picture = ratio_picture([0, 1], [line(values=(0, 1)), line("b", (1, 0))], x_title="x")
    assert 'stroke-dasharray="7 4"' in picture
    assert "<circle" in picture
    assert 'width="6.6"' in picture


def test_up_is_up_and_right_is_right() -> None:
    assert FRAME.y(1) < FRAME.y(0)
    assert FRAME.x(1) > FRAME.x(0)


def test_crowded_points_are_not_all_numbered() -> None:
    ratios = [i / 10 for i in range(11)]
    close = Curve(name="a", values=(0.5,) * 11, lows=(0.5,) * 11, highs=(0.5,) * 11)
    picture = pareto_picture(ratios, close, close, label="x")
    numbers = [node.text for node in ET.fromstring(picture).findall(".//{*}text") if node.get("text-anchor") == "end"]
    assert "0.5" not in numbers[5:]


def test_an_image_hides_the_marker_and_stands_on_its_own() -> None:
    image = as_image(ratio_picture([0, 1], [line(values=(0, 1))], x_title="x"), "a <title>")
    assert image.startswith('<img alt="a &lt;title&gt;"')
    assert "data:image/svg+xml;base64," in image
