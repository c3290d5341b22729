"""The controls of the panel, where they stand, and which event each of them begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import gradio as gr

from workbench.views.answers import NOTICE
from workbench.views.panel.events import Events, said
from workbench.views.panel.panes import pane_html
from workbench.views.panel.picture import CHOOSE, Picture
from workbench.views.panel.session import LETTERS, MARKS, Session

HELLO = "Click an example or write a question. All models answer at once; then say which answer is best."
VIEWS = [("All models, named", "named"), ("Blind test: two, names hidden", "blind")]


def build(events: Events, names: Sequence[str], examples: Mapping[str, Sequence[str]], picture: Picture | None) -> None:
    """Fill the open Blocks, and tell the events which controls there are.

    Args:
        events: What happens.
        names: The variants, in their order.
        examples: Label to prompts; a click takes the next one.
        picture: The Pareto picture, or None.
    """
    ui = events.ui
    ui.state = gr.State(Session())
    with gr.Tabs():
        with gr.Tab("Compare"):
            with gr.Row(elem_classes="wb-desk"):
                with gr.Column(scale=7, min_width=320):
                    _asking(events, examples)
                    _answers(events, names)
                with gr.Column(scale=4, min_width=320, elem_classes="wb-card", visible=bool(events.recipes or picture)):
                    _blend(events, picture)
            _settings(events, names)
        with gr.Tab("Results") as results:
            ui.blind_only = gr.Checkbox(False, label="Count blind votes only")
            ui.results = gr.HTML(elem_classes="wb-panel")
    gr.HTML(f"<p class='wb-note'>{NOTICE}</p>", elem_classes="wb-panel")
    _wire(events, results)


def _asking(events: Events, examples: Mapping[str, Sequence[str]]) -> None:
    ui, limits = events.ui, events.limits
    with gr.Row(elem_classes="wb-ask"):
        ui.prompt = gr.Textbox(
            label="Question",
            placeholder="Ask something and press Enter",
            lines=1,
            max_lines=6,
            scale=6,
            max_length=limits.prompt_chars,
        )
        with gr.Column(scale=1, min_width=190):
            ui.send = gr.Button("Ask", variant="primary")
            with gr.Row(elem_classes="wb-two"):
                ui.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=70)
                ui.again = gr.Button("Regenerate", interactive=False, min_width=100)
    ui.examples = []
    with gr.Row(elem_classes="wb-chips"):
        gr.HTML("Examples:", elem_classes="wb-note")
        for label, prompts in examples.items():
            ui.examples.append((gr.Button(label, size="sm", min_width=40), gr.State(-1), list(prompts)))
    with gr.Row(elem_classes="wb-views"):
        ui.view = gr.Radio(VIEWS, value="named", label="View", show_label=False, container=False)
        ui.chat = gr.Checkbox(False, label="Conversation", container=False)


def _answers(events: Events, names: Sequence[str]) -> None:
    ui = events.ui
    ui.status = gr.HTML(said(HELLO), elem_classes="wb-panel")
    with gr.Row(elem_classes="wb-panes"):
        first = [pane_html(letter, name, None, body="") for letter, name in zip(LETTERS, names)]
        ui.panes = [gr.HTML(text, elem_classes="wb-panel", min_width=250) for text in first]
    with gr.Row(elem_classes="wb-votes"):
        better = "is better" if len(names) == 2 else "is best"
        shown = {"visible": len(names) > 1, "interactive": False, "min_width": 80}
        ui.best = [gr.Button(f"{letter} {better}", **shown) for letter, _ in zip(LETTERS, names)]
        ui.tie = gr.Button("Tie", **shown)
        ui.bad = gr.Button("Both bad" if len(names) == 2 else "All bad", **shown)


def _blend(events: Events, picture: Picture | None) -> None:
    """The ratio, and the picture whose points set it."""
    ui = events.ui
    ui.shares = [
        gr.Slider(0, 1, recipe.ratio, step=0.01, label=f"{name}: share of {short(recipe.parents[1])}")
        for name, recipe in events.recipes.items()
    ]
    ui.draw = picture.html if picture is not None else None
    start = ui.shares[0].value if ui.shares else 0.5
    ui.picture = gr.HTML(picture.html(start), js_on_load=CHOOSE, elem_classes="wb-panel") if picture else None


def _settings(events: Events, names: Sequence[str]) -> None:
    ui, limits = events.ui, events.limits
    with gr.Accordion("Settings", open=False), gr.Row():
        ui.models = gr.CheckboxGroup(list(names), value=list(names), label="Models to ask")
        ui.length = gr.Slider(
            1, limits.answer_tokens, min(64, limits.answer_tokens), step=1, label="Longest answer, tokens"
        )
        ui.temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature: 0 takes the likeliest word each time")
        ui.seed = gr.Number(0, label="Seed", precision=0)
        marks = [
            *MARKS,
            *(f"surprise: {name}" for name, one in events.scheduler.variants.items() if one.kind != "endpoint"),
        ]
        ui.mark = gr.Dropdown(marks, value=MARKS[0], label="Mark in the answers")


def _wire(events: Events, results: gr.Tab) -> None:
    ui = events.ui
    form = [ui.state, ui.prompt, ui.view, ui.chat, ui.models, ui.length, ui.temperature, ui.seed, ui.mark, *ui.shares]
    buttons = [*ui.best, ui.tie, ui.bad, ui.send, ui.stop, ui.again]
    shown = [ui.status, *ui.panes, *buttons]
    work = {
        "inputs": form,
        "show_progress": "hidden",
        # Whoever waits shall wait in the scheduler, which tells the place.
        "concurrency_limit": events.limits.at_once + events.limits.waiting,
        "concurrency_id": "answers",
    }
    gr.on([ui.send.click, ui.prompt.submit], events.ask, outputs=shown, api_name="ask", **work)
    ui.again.click(events.again, outputs=[*shown, ui.seed], api_name="again", **work)
    quick = {"show_progress": "hidden", "queue": False}
    ui.stop.click(events.stop, api_name="stop", **quick)
    for button, state, prompts in ui.examples:
        following = partial(_next, prompts)
        button.click(following, state, [ui.prompt, state], api_name=False, **quick).then(
            events.ask, outputs=shown, api_name=False, **work
        )
    pictures = [ui.picture] if ui.picture is not None else []
    for slider in ui.shares:
        slider.input(events.move, outputs=[*shown, *pictures], api_name=False, trigger_mode="always_last", **work)
    if ui.picture is not None and ui.shares:
        ui.picture.click(_picked, None, ui.shares[0], api_name=False, **quick).then(
            events.move, outputs=[*shown, *pictures], api_name=False, trigger_mode="always_last", **work
        )
    for button, choice in [*zip(ui.best, LETTERS), (ui.tie, "tie"), (ui.bad, "bad")]:
        button.click(
            partial(events.vote, choice),
            [ui.state, ui.blind_only],
            [*shown, ui.results],
            api_name=f"vote_{choice}",
            **quick,
        )
    ui.mark.input(events.mark, [ui.mark, ui.state], [ui.status, *ui.panes], api_name=False, show_progress="hidden")
    gr.on([results.select, ui.blind_only.input], events.results, ui.blind_only, ui.results, api_name="results", **quick)


def _next(prompts: Sequence[str], state: int) -> tuple[str, int]:
    following = (state + 1) % len(prompts)
    return prompts[following], following


def _picked(event: gr.EventData) -> float:
    return float(event.ratio)


def short(name: str) -> str:
    """Return the last part of a model's name."""
    return name.rstrip("/").rsplit("/", 1)[-1]
