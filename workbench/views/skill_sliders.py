"""The widget in which skills are mixed by hand: a slider for each skill, the base's answer beside the blend's."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets

from workbench.adapters import set_skill_weights, skill_weights
from workbench.errors import ConfigError
from workbench.generation import stream
from workbench.views.answers import NOTICE, blend_pane, fallback_table, parent_pane
from workbench.views.controls import STATIC
from workbench.views.forms import box, button, field, status_line
from workbench.views.preview import UPDATE_S
from workbench.views.worker import LatestWorker, PromptView

DEFAULT_PROMPT = "What is the first-line treatment of asthma?"
FALLBACK_WAIT_S = 10.0
"""How long showing the widget waits for its first answers, so that the saved notebook holds them."""

NONE = "choose …"

HOW_TO_READ = (
    "How to read this: a weight of 0 leaves a skill out, 1 adds it as it was trained, a negative one takes it away. "
    "Move a slider, or focus it and press the arrow keys; 0 or a double click puts it back. Bold words are "
    "said by the blend alone, dotted ones by the base alone. Both write their likeliest words (greedy, so there is "
    "no seed), and one prompt is one example (n = 1)."
)


class SkillWeights(anywidget.AnyWidget):
    """One slider for each skill, with 0 in the middle.

    `weights` follows the pointer, `chosen` a movement that has come to rest.

    Args:
        names: What to call the skills.
        weights: One number for each skill; one beyond the ends moves them outwards.
    """

    _esm = STATIC / "skill_weights.js"
    _css = "".join((STATIC / name).read_text(encoding="utf-8") for name in ("workbench.css", "skill_weights.css"))
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    weights = traitlets.List(traitlets.Float()).tag(sync=True)
    chosen = traitlets.List(traitlets.Float()).tag(sync=True)
    bound = traitlets.Float(1.5).tag(sync=True)
    step = traitlets.Float(0.05).tag(sync=True)

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        super().__init__(names=list(names))
        self.move(weights)

    def move(self, weights: Sequence[float]) -> None:
        """Set the sliders from Python, as if they had been moved there and released."""
        shown = [float(weight) for weight in weights]
        with self.hold_sync():
            # A trained weight may lie outside; a slider that hid that would lie.
            self.bound = max(self.bound, *(math.ceil(2 * abs(weight)) / 2 for weight in shown))
            self.weights = shown
            self.chosen = shown


class SkillSliders(PromptView, widgets.VBox):
    """Sliders over the skills of a skill router, with live answers of the base and of the blend to one prompt.

    A movement sets the router's weights on the widget's own thread, stops the running answer and starts the next one;
    no weight matrix is computed. When it is at rest (`wait`), `model` carries the weights that are shown; until then,
    whatever else runs the same model may see others, or none.

    Args:
        model: A PEFT model with a `SkillRouterConfig` of the static gate and free weights; where it stands is where the
            sliders start. Weights for each layer are shown as their mean, and kept until a slider moves.
        tokenizer: Its tokenizer.
        presets: Weights to start from by name: a mapping of skills to numbers (a skill left out gets 0), what
            `compose_skills` returned, or a model with a skill router. No skill, all alike, and each skill alone are
            always there.
        prompt: What is asked first; None takes the first of `prompts`.
        prompts: Example prompts to pick from; a mapping gives them short names.
        max_new_tokens: Most tokens of each answer, at least 1.

    Raises:
        ConfigError: `max_new_tokens` is below 1, the router's weights follow the input, or a preset names a skill that
            the model does not have.
        ModelError: The model has no skill router.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        presets: Mapping[str, Any] | None = None,
        prompt: str | None = None,
        prompts: Sequence[str] | Mapping[str, str] = (),
        max_new_tokens: int = 48,
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1; the default is 48")
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        start = preset_weights(model)
        self.skills = list(start)
        self.presets = self._all_presets(presets or {})
        self.answers: dict[str, str] = {}
        self.first_token_ms: float | None = None
        self._kept: dict[str, str] = {}
        examples = dict(prompts) if isinstance(prompts, Mapping) else {text: text for text in prompts}
        names = [name.replace("_", " ") for name in self.skills]
        self.sliders = SkillWeights(names, [*start.values()])
        self._prompt = field(widgets.Textarea(description="Prompt", continuous_update=False, rows=3), grow=True)
        self._prompt.value = prompt if prompt is not None else next(iter(examples.values()), DEFAULT_PROMPT)
        self.preset = _choice("Preset", self.presets, self.move)
        self._picker = _choice("Example prompts", examples, lambda text: setattr(self, "prompt", text))
        self._picker.layout.display = "" if examples else "none"
        self._zero, self._ask = button("Reset to 0", "Leave every skill out"), button("Ask", "Ask both this prompt")
        self._base, self._blend, self._status = widgets.HTML(), widgets.HTML(), widgets.HTML(status_line("Starting …"))
        super().__init__(children=self._layout())
        self.add_class("wb-view")
        self._worker = LatestWorker(self._work, self._failed)
        self.sliders.observe(self._moved, "chosen")
        self._prompt.observe(lambda _: self.refresh(), "value")
        self._zero.on_click(lambda _: self.move({}))
        self._ask.on_click(lambda _: self.refresh())
        self.refresh()

    @property
    def weights(self) -> dict[str, float]:
        """The weights that the sliders show, by skill."""
        return dict(zip(self.skills, self.sliders.chosen))

    def move(self, weights: Any) -> None:
        """Set the sliders, as if they had been moved there; takes what a preset may be.

        Raises:
            ConfigError: The weights are of a skill that the model does not have.
        """
        found = self._fitted("weights", weights)
        self.sliders.move([found[skill] for skill in self.skills])

    def refresh(self) -> None:
        """Ask again, with the weights and the prompt that are shown."""
        self._submit((self.weights, self.prompt, time.perf_counter()))

    def _all_presets(self, given: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        even = 1 / len(self.skills)
        alone = {f"only {skill.replace('_', ' ')}": {skill: 1.0} for skill in self.skills}
        plain = {"no skill (the base)": {}, "uniform": dict.fromkeys(self.skills, even)}
        return {name: self._fitted(name, preset) for name, preset in {**plain, **given, **alone}.items()}

    def _fitted(self, name: str, preset: Any) -> dict[str, float]:
        weights = preset_weights(preset)
        unknown = [skill for skill in weights if skill not in self.skills]
        if unknown:
            raise ConfigError(f"{name!r} weighs {unknown}, but the model's skills are {self.skills}; use those")
        return {skill: float(weights.get(skill, 0.0)) for skill in self.skills}

    def _moved(self, _: Any) -> None:
        if self.presets.get(self.preset.value) not in (None, self.weights):
            self.preset.value = NONE
        self.refresh()

    def _layout(self) -> list[widgets.Widget]:
        head = f'<h3>A blend of {len(self.skills)} skills</h3><p class="wb-note">{HOW_TO_READ}</p>'
        return [
            widgets.HTML(head),
            box([box([self.preset, self._zero], "wb-row", "wb-skill-tools"), self.sliders], "wb-card"),
            box([self._prompt, box([self._picker, self._ask], "wb-side")], "wb-row", "wb-asking"),
            box([self._base, self._blend], "wb-panes"),
            self._status,
            widgets.HTML(f'<p class="wb-note">{NOTICE}</p>'),
        ]

    # What the thread calls.

    def _work(self, job: Any, stop: threading.Event) -> None:
        weights, prompt, asked = job
        self.first_token_ms, self._status.value = None, status_line("Writing …")
        self.answers = {"base": self._kept[prompt]} if prompt in self._kept else {}
        self._draw(writing=True)
        # Weights of single layers stay as they were trained until a slider moves.
        if preset_weights(self.model) != weights:
            set_skill_weights(self.model, weights)
        self._write("blend", prompt, asked, stop)
        if prompt not in self._kept and not stop.is_set():
            with self.model.disable_adapter():
                self._write("base", prompt, asked, stop)
        if stop.is_set():
            return
        self._kept[prompt] = self.answers["base"]
        self._draw(writing=False)
        wait = f"First new token {self.first_token_ms:.0f} ms after the move." if self.first_token_ms else ""
        self._status.value = status_line(f"Ready. {wait}")

    def _write(self, who: str, prompt: str, asked: float, stop: threading.Event) -> None:
        self.answers[who], shown = "", 0.0
        for text in stream(self.model, self.tokenizer, prompt, max_new_tokens=self.max_new_tokens, stop=stop):
            self.answers[who] = text
            self.first_token_ms = self.first_token_ms or 1000 * (time.perf_counter() - asked)
            if time.perf_counter() - shown >= UPDATE_S:
                self._draw(writing=True)
                shown = time.perf_counter()

    def _failed(self, error: Exception) -> None:
        self._status.value = status_line(f"{type(error).__name__}: {error}", error=True)

    # What is shown.

    def _draw(self, *, writing: bool) -> None:
        base, blend = self.answers.get("base"), self.answers.get("blend", "")
        self._base.value = parent_pane("A", "the base alone", base, "" if writing else blend)
        known = {} if writing or base is None else {"base": base}
        self._blend.value = blend_pane("The blend", blend, known, writing=writing)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a plain table to the widget: it is what a saved, untrusted notebook shows."""
        self.wait(FALLBACK_WAIT_S)
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        weights = ", ".join(f"{skill} {weight:+.2f}" for skill, weight in self.weights.items() if weight)
        bundle["text/html"] = fallback_table(
            recipe=weights or "all weights are 0",
            prompt=self.prompt,
            blend=self.answers.get("blend", ""),
            answers={"the base": self.answers.get("base")},
            what="Skill",
        )
        return bundle


def preset_weights(preset: Any) -> dict[str, float]:
    """Return one number for each skill of a mapping, of what `compose_skills` returned, or of a model with a router.

    Where a router has a weight for each layer, it is their mean.
    """
    if not isinstance(preset, Mapping):
        found = getattr(preset, "weights", None)
        preset = found if isinstance(found, Mapping) else skill_weights(preset)
    return {skill: float(np.mean(weight)) for skill, weight in preset.items()}


def _choice(label: str, options: Mapping[str, Any], take: Callable[[Any], None]) -> Any:
    """Return a list to pick from; `take` gets what stands behind the name."""
    made = field(widgets.Dropdown(options=[NONE, *options], description=label))
    made.observe(lambda change: take(options[change["new"]]) if change["new"] in options else None, "value")
    return made
