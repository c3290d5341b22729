"""What is marked in an answer, and how a mixture's routing and the Pareto picture are drawn."""

import re

import pandas as pd
import pytest
import torch
from pico_adapters import trained
from pico_language import byte_tokenizer, pico

import workbench as wb
from workbench.generation import Request
from workbench.records import RouterOutput, RoutingTrace
from workbench.views.panel.panel import compare_panel
from workbench.views.panel.panes import Written, differing, pane_html, routing_html, surprising
from workbench.views.panel.picture import Picture, variant_points


def test_two_answers_are_marked_where_they_part_and_in_what_is_theirs_alone():
    marked = differing("it is  METFORMIN 500", ["it is metformin 500"])
    sign = "<b class='wb-parting' title='here the answers part'>≠</b>"
    assert marked == f"it is  {sign}<span class='wb-own'>METFORMIN</span> 500"
    assert differing("it is", ["it is metformin"]).endswith(sign), "one that ends first parts at its end"
    assert differing("a\n b", ["a b"]) == "a\n b", "blanks are no difference, and stay"


def test_among_several_only_what_nobody_else_says_is_marked():
    assert differing("red blue", ["red x", "blue y"]) == "red blue"
    assert differing("<green>", ["red", "blue"]) == "<span class='wb-own'>&lt;green&gt;</span>"
    assert differing("<i>", []) == "&lt;i&gt;"


def test_a_token_is_the_darker_the_less_it_was_expected():
    tokenizer = byte_tokenizer()
    ids = tokenizer("a<é")["input_ids"]
    shown = surprising(ids, [0.0, 4.0, 9.0, 6.0], tokenizer)
    assert re.findall(r"--wb-share:(\d+)%", shown) == ["0", "35", "70", "52"]
    assert shown.count("wb-strong") == 2
    assert re.findall(r"bits'>([^<]*)</span>", shown) == ["a", "&lt;", "", "é"], "a half character waits for its end"
    assert "4.8 bits a token" in shown


def trace():
    tokens = {name: torch.arange(3) for name in ("token_id", "document", "row", "position", "step")}
    tokens["token_id"] = torch.tensor([64, 65, 66])
    output = RouterOutput(
        router_logits=torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 2, 0]]),
        routing_weights=torch.ones(3, 1),
        selected_experts=torch.tensor([[0], [1], [1]]),
    )
    return RoutingTrace(tokens=tokens, routers={"layers.1.router": output}, layers={"layers.1.router": 1})


def test_routing_is_shown_as_load_and_token_by_token():
    shown = routing_html(trace(), byte_tokenizer())
    assert re.findall(r"expert (\d): (\d+)%", shown) == [("0", "33"), ("1", "67")]
    assert [int(e) for e in re.findall(r"<sub>(\d)</sub>", shown)] == [0, 1, 1]
    assert routing_html(RoutingTrace(), byte_tokenizer()) == ""


def test_a_mixture_in_the_panel_shows_its_routing():
    targets = ["q_proj", "up_proj"]
    config = wb.LoraMoeConfig(r=4, num_experts=3, num_experts_per_tok=2, router="layer", target_modules=targets)
    panel = compare_panel({"mixture": trained(pico(context=200), config)}, byte_tokenizer(), examples=["hi"])
    answer = panel.desk.scheduler.submit(Request("mixture", "hi", max_new_tokens=4))
    assert answer.wait(60)
    assert "Routing: the share of tokens" in routing_html(answer.routing, byte_tokenizer())
    panel.close()


@pytest.mark.parametrize(
    ("answer", "foot"),
    [
        (Written(state="waiting", place=3), "waiting, place 3 in the queue"),
        (
            Written(state="done", tokens=5, token_ids=(1,) * 5, first_token_s=0.5, seconds=2.5, seed=7, share=0.25),
            "5 tokens · 2 tokens/s · first after 0.50 s · seed 7 · share 0.25",
        ),
        (Written(state="failed", error="<b>"), "This model could not answer. &lt;b&gt;"),
    ],
)
def test_head_and_foot_say_what_happens(answer, foot):
    assert foot in pane_html("A", "<i>", answer, body="")
    assert "<span class='wb-letter'>A</span> &lt;i&gt;" in pane_html("A", "<i>", answer, body="")


def test_every_variant_is_a_point_and_every_ratio_a_button():
    front = pd.DataFrame({"ratio": [0.0, 0.5, 1.0], "parents": "classroom/instruct + classroom/clinical"})
    for name, values in {"clinical": [0.2, 0.9, 1.0], "instructions": [1.0, 0.8, 0.0]}.items():
        front = front.assign(**{name: values, f"{name}_low": values, f"{name}_high": values, f"{name}_n": 5})
    points = variant_points(front, {"mine": "classroom/clinical", "other": "classroom/base", "model": object()})
    assert points == {"mine": (0.0, 1.0)}
    shown = Picture(front, points | {"<b>": (0.9, 0.8)}).html(0.25)
    assert re.findall(r'data-ratio="([\d.]+)"', shown) == ["0.0", "0.5", "1.0"]
    assert "share of clinical 0.5: instructions 0.80, clinical 0.90" in shown
    assert "&lt;b&gt;" in shown
    # Half way from ratio 0 to 0.5: instructions 0.9, clinical 0.55.
    assert 'class="wb-marker" transform="translate(364.0 122.2)"' in shown
