"""The router inspector without a browser: what crosses the wire, what stands in a saved page, and what if."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pico_language import byte_tokenizer
from pico_mixtures import EXPERTS, TOP, mixture, xlora

from workbench.errors import ConfigError
from workbench.records import RouterOutput, RoutingTrace
from workbench.routing.capture import capture_routing
from workbench.views.router_drawing import heat_map, share_bars
from workbench.views.router_inspector import RouterInspector
from workbench.views.router_pictures import coactivation_panel, router_labels
from workbench.views.router_text import RouterText
from workbench.views.router_what_if import WhatIf

TEXTS = ["the dose is 20 mg.", "<b>a & b</b> or <script>", "no fever today, and no cough"]


def traced(model=None, texts=TEXTS, **settings) -> RoutingTrace:
    model, tokenizer = model or mixture(), byte_tokenizer()
    with capture_routing(model, **settings) as trace, torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
    return trace


def written() -> RoutingTrace:
    model, ids = mixture(), byte_tokenizer()("why?", return_tensors="pt")["input_ids"]
    with capture_routing(model) as trace:
        model.generate(input_ids=ids, max_new_tokens=5, do_sample=False)
    return trace


@pytest.fixture
def show():
    made: list[RouterInspector] = []

    def build(trace=None, **settings) -> RouterInspector:
        made.append(RouterInspector(traced() if trace is None else trace, byte_tokenizer(), **settings))
        return made[-1]

    yield build
    for view in made:
        view.close()


def test_decisions_cross_the_wire_as_bytes_in_their_order() -> None:
    trace = written()
    text = RouterText(trace, byte_tokenizer())
    routers, tokens, top, experts = text.sizes
    assert (routers, tokens, top, experts) == (2, len(trace), TOP, EXPERTS)
    chosen = np.frombuffer(text.chosen, dtype="<u2").reshape(routers, tokens, top)
    shares = np.frombuffer(text.shares, dtype=np.uint8).reshape(routers, tokens, experts)
    for i, output in enumerate(trace.routers.values()):
        assert chosen[i].tolist() == output.selected_experts.tolist()
        np.testing.assert_allclose(shares[i] / 255, torch.softmax(output.router_logits, 1), atol=0.002)
    assert text.steps == [0] * 4 + [1, 2, 3, 4]
    assert text.step == 4
    assert "".join(text.tokens[:4]) == "why?"


def test_the_best_expert_comes_first_and_routers_of_different_size_fit() -> None:
    small = RouterOutput(
        router_logits=torch.zeros(2, 2),
        routing_weights=torch.tensor([[0.3, 0.7], [0.6, 0.4]]),
        selected_experts=torch.tensor([[0, 1], [1, 0]]),
    )
    large = RouterOutput(
        router_logits=torch.zeros(2, 5), routing_weights=torch.ones(2, 1), selected_experts=torch.tensor([[4], [3]])
    )
    names = ("token_id", "document", "row", "position", "step")
    tokens = {name: torch.zeros(2, dtype=torch.long) for name in names} | {"token_id": torch.tensor([70, 71])}
    trace = RoutingTrace(tokens=tokens, routers={"a.0.x": small, "b": large}, layers={"a.0.x": 0, "b": -1})
    text = RouterText(trace, byte_tokenizer())
    assert text.sizes == [2, 2, 2, 5]
    assert text.experts == [2, 5]
    chosen = np.frombuffer(text.chosen, dtype="<u2").reshape(2, 2, 2).tolist()
    assert chosen == [[[1, 0], [1, 0]], [[4, 65535], [3, 65535]]]
    assert router_labels(trace) == {"a.0.x": "layer 0", "b": "b"}


def test_documents_are_shown_one_at_a_time(show) -> None:
    view = show()
    assert view.document.options == (0, 1, 2)
    view.document.value = 2
    assert "".join(view.text.tokens) == TEXTS[2]


def test_pictures_of_one_router_follow_the_slider(show) -> None:
    view = show()
    before = view._own.value
    view.text.router = 1
    assert view.router == "layers.1.mlp.gate"
    assert view._own.value != before
    assert "layer 1" in view._own.value


def test_every_picture_says_how_to_read_it_with_n_and_seed_and_has_a_table(show) -> None:
    view = show(labels=["a", "b", "a"], label_name="organ system", other=traced(mixture(seed=1)), seed=7)
    panels = [*view.panels, *view.own_panels()]
    assert [panel.title.split(":")[0] for panel in panels] == [
        "Expert load by layer",
        "Do this checkpoint and the other checkpoint route alike?",
        "How much an expert tells of the organ system, router by router",
        "Organ system and expert, minus chance",
        "From kind of token to expert",
        "Experts that serve together",
    ]
    for panel in panels:
        assert re.search(r"n = \d+ tokens of 3 documents", panel.about), panel.title
        assert "seed 7" in panel.about
        assert panel.reading.endswith(".")
        assert panel.picture.startswith("<svg")
        assert len({len(row) for row in panel.rows} | {len(panel.head)}) == 1, panel.title
        for page in (panel.live(), panel.still()):
            assert "How to read this" in page
            assert "<table" in page


def test_a_saved_page_shows_text_pictures_and_tables_and_escapes_everything(show) -> None:
    view = show(labels=["<i>", "b", "b"])
    view.document.value = 1
    page = view._repr_mimebundle_()["text/html"]
    assert "as it stood when this notebook was saved" in page
    assert page.count("<img") == len(view.panels) + len(view.own_panels())
    assert "&lt;</span>" not in page  # each token carries its expert's number
    assert re.search(r"&lt;<sub>\d</sub>", page)
    for unsafe in ("<script", "<i>b", ">\n<b>a"):
        assert unsafe not in page
    assert "<i>" not in view._own.value.replace("&lt;i&gt;", "")
    assert "https://" not in page


def test_without_labels_the_parts_of_speech_are_compared(show) -> None:
    view = show()
    assert "part of speech" in view.panels[1].title
    assert set(view._kinds) >= {"number", "punctuation", "space"}


def test_a_text_of_one_kind_has_no_comparison(show) -> None:
    view = show(traced(texts=["1"]))
    assert len(view.panels) == 1
    assert [panel.title for panel in view.own_panels()] == ["Experts that serve together: layer 0"]
    assert "(nan" not in view.panels[0].live()


def test_two_checkpoints_show_where_they_differ(show) -> None:
    first, second = traced(), traced(mixture(seed=1))
    view = show(first, other=second, names=("step 10", "step 20"))
    other = np.frombuffer(view.text.other, dtype="<u2").reshape(2, -1)
    part = second.of(0)
    assert other[0].tolist() == part.routers["layers.0.mlp.gate"].selected_experts[:, 0].tolist()
    assert "Do step 10 and step 20 route alike?" in view.panels[1].title
    with pytest.raises(ConfigError, match=r"must hold the same ones"):
        show(first, other=traced(texts=["x"]))


def test_what_if_answers_with_and_without_the_change(show) -> None:
    view = show(model=mixture(), prompt="why?", max_new_tokens=6)
    what_if = view.what_if
    assert isinstance(what_if, WhatIf)
    assert what_if.layers.label == "all layers"
    what_if.change.value, what_if.expert.value, what_if.layers.value = "force", 2, [1]
    what_if.ask.click()
    assert what_if.wait(60)
    assert list(what_if.answers) == ["as it is", "force expert 2 in layer 1"]
    assert "The answer" in what_if._status.value
    assert "force expert 2 in layer 1" in view._repr_mimebundle_()["text/html"]
    with capture_routing(what_if.model) as trace:
        what_if.model(input_ids=torch.tensor([[70, 71, 72, 73, 74, 75]]))
    assert not (trace.routers["layers.1.mlp.gate"].selected_experts[:, 0] == 2).all()


def test_what_if_reports_what_goes_wrong(show) -> None:
    view = show(model=mixture(), prompt="x" * 300)
    view.what_if.run()
    assert view.what_if.wait(60)
    assert "ConfigError: the prompt has" in view.what_if._status.value


def test_unfit_arguments_are_refused(show, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"the trace is empty"):
        show(RoutingTrace(tokens={}, routers={}))
    with pytest.raises(ConfigError, match=r"max_new_tokens=0 must be at least 1"):
        show(max_new_tokens=0)
    with pytest.raises(ConfigError, match=r"there are 2 labels, and the trace has"):
        show(labels=["a", "b"])
    model = xlora(tmp_path)
    with pytest.raises(ConfigError, match=r"X-LoRA's, which has no cache"):
        show(model=model)


def test_pictures_survive_empty_cells_and_single_experts() -> None:
    picture = heat_map(np.array([[0.5, np.nan], [-0.25, 0.0]]), ["<a>", "b"], ["x", "y"], marks=np.eye(2, dtype=bool))
    assert "+0.50*" in picture
    assert "-0.25" in picture
    assert "nan" not in picture
    assert "&lt;a&gt;" in picture
    assert "expert 0: 100%" in share_bars(np.array([[1.0]]), ["all"], ["n = 3"])
    trace = traced(texts=["ab"])
    single = {
        name: replace(
            output,
            router_logits=output.router_logits[:, :1],
            routing_weights=torch.ones(2, 1),
            selected_experts=torch.zeros(2, 1, dtype=torch.long),
        )
        for name, output in trace.routers.items()
    }
    panel = coactivation_panel(replace(trace, routers=single), "layers.0.mlp.gate", "layer 0", seed=0)
    assert panel.rows == [["E0", ""]]
