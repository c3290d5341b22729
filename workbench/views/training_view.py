"""A training run as it goes: losses, learning rate, ranks and routing over the steps, and a Stop button."""

from __future__ import annotations

import html
import json
import time
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench.errors import ConfigError
from workbench.views.controls import StyleSheet
from workbench.views.curve_picture import curve_pictures
from workbench.views.drawing import as_image

UPDATE_S = 0.5
"""Between two drawings of a run that goes on."""

HOW_TO_READ = (
    "How to read this: steps run from left to right. The loss counts answers alone, in nats per token, and should fall "
    "on validation too; where only training falls, examples are learned by heart. Load is each expert's share of the "
    "choices, averaged over routers (even is 1 / E); entropy 1 is an undecided router. A run is one seed (n = 1)."
)
_LOSSES = {"loss": "training", "eval_loss": "validation"}
_APART = {
    "stage", "step", "epoch", "tokens", "grad_norm", "learning_rate", "answer_loss", "mean_rank", "ranks", "entropy",
    "mean_token_accuracy", "routing_entropy", "expert_load", *_LOSSES,
}  # fmt: skip


class TrainingView(widgets.VBox):
    """The live picture of a run; start it with `train(..., wait=False)` so that the button is heard.

    The picture and a table stand in the saved notebook too.

    Args:
        run: What `train` returned, or the `output_dir` of a run, which `refresh` reads again.

    Raises:
        ConfigError: The folder holds no run.
    """

    def __init__(self, run: Any) -> None:
        self.run = None if isinstance(run, str | Path) else run
        self.folder = Path(run) if self.run is None else Path(self.run.folder)
        self._picture, self._status = widgets.HTML(), widgets.HTML()
        self._button = widgets.Button(
            description="Stop", tooltip="End after the step under way; the run can go on later"
        )
        self._button.add_class("wb-button")
        self._button.on_click(lambda _: self.stop())
        self._drawn = 0.0
        self.refresh()
        note = widgets.HTML(f'<p class="wb-note">{HOW_TO_READ}</p>')
        super().__init__(
            children=[self._picture, self._status, *([self._button] if self.run else []), note, StyleSheet()]
        )
        self.add_class("wb-view")
        if self.run is not None:
            self.run.watch(self._update)

    def stop(self) -> None:
        """Ask the run to stop after the step under way."""
        if self.run is not None:
            self.run.stop()
            self._button.disabled = True

    def refresh(self) -> None:
        """Draw the run as it now stands.

        Raises:
            ConfigError: The folder holds no run.
        """
        rows = self.history()
        self._picture.value = curve_pictures(charts(rows)) if rows else "<p>No step was logged yet.</p>"
        self._status.value = f'<p class="wb-status" role="status">{self._line(rows)}</p>'
        self._button.disabled = self.run is None or self.run.state != "running"
        self._drawn = time.monotonic()

    def history(self) -> list[dict[str, Any]]:
        """Return the run's rows.

        Raises:
            ConfigError: The folder holds no run.
        """
        if self.run is not None:
            return list(self.run.history)
        if not (self.folder / "run.json").is_file():
            raise ConfigError(f"{str(self.folder)!r} holds no run; pass the output_dir of train, or what it returned")
        path = self.folder / "history.jsonl"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        # The last line may be half written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def _update(self, run: Any) -> None:
        if run.state != "running" or time.monotonic() - self._drawn >= UPDATE_S:
            self.refresh()

    def _line(self, rows: list[dict[str, Any]]) -> str:
        steps = getattr(self.run, "steps", None)
        step = rows[-1]["step"] if rows else 0
        parts = [f"step {step}" + (f" of {steps}" if steps else "")]
        parts += [f"{name} {_last(rows, key):.4g}" for key, name in _LOSSES.items() if _last(rows, key) is not None]
        parts += [f"stage {rows[-1]['stage']}"] if rows and rows[-1]["stage"] else []
        if self.run is not None:
            parts = [self.run.state, *parts, f"seed {self.run.settings.seed}"]
            parts += [f"{type(self.run.error).__name__}: {self.run.error}"] if self.run.error is not None else []
        return html.escape("; ".join(parts))

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a picture and a table to the widget: they are what a saved, untrusted notebook shows."""
        self.refresh()
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        rows = self.history()
        image = as_image(self._picture.value, "A training run over its steps", 900) if rows else ""
        bundle["text/html"] = f"<div>{image}<p>{self._line(rows)}</p><p>{HOW_TO_READ}</p>{table(rows)}</div>"
        return bundle


def charts(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return what a run's rows can show: chart to line to points (step, value)."""
    extra = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)} - _APART)
    terms, scores = [k for k in extra if not k.startswith("eval_")], [k for k in extra if k.startswith("eval_")]
    found = {
        "loss (nats per answer token)": {name: _points(rows, key) for key, name in _LOSSES.items()},
        "learning rate": {"learning rate": _points(rows, "learning_rate")},
        "added losses": {key: _points(rows, key) for key in terms},
        "measured while training": {key.removeprefix("eval_"): _points(rows, key) for key in scores},
        "AdaLoRA: mean rank": {"mean rank": _points(rows, "mean_rank")},
        "AdaLoRA: rank by layer": _spread(rows, "ranks"),
        "routing entropy (share of log E)": {"entropy": _points(rows, "routing_entropy")},
        "expert load (share)": _load(rows),
    }
    kept = {title: {name: line for name, line in lines.items() if line} for title, lines in found.items()}
    return {title: lines for title, lines in kept.items() if lines}


def table(rows: list[dict[str, Any]], most: int = 20) -> str:
    """Return an HTML table of a run's rows, evenly thinned to at most so many; nested values are left out."""
    names = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict)))
    shown = rows if len(rows) <= most else [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(name))}</td>' for name in names)}</tr>" for row in shown)
    caption = f"<caption>{len(shown)} of {len(rows)} rows</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _points(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _spread(rows: list[dict[str, Any]], key: str) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.get(key, {}).items():
            lines.setdefault(name, []).append((row["step"], value))
    return lines


def _load(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Average each expert's share over the routers that have as many experts as the first."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        loads = list(row.get("expert_load", {}).values())
        for expert, shares in enumerate(zip(*(load for load in loads if len(load) == len(loads[0])))):
            lines.setdefault(f"E{expert}", []).append((row["step"], sum(shares) / len(shares)))
    return lines


def _last(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if key in row), None)


def _cell(value: Any) -> str:
    return "" if value is None else html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))
