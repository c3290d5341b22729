"""The panel: one prompt, every variant's answer side by side and live, a vote, and what the votes say."""

from __future__ import annotations

import html
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd
from gradio.themes import Base
from gradio.utils import ipython_check

from workbench.errors import ConfigError
from workbench.generation import Request, Scheduler, make_variants
from workbench.views.answers import NOTICE
from workbench.views.controls import STATIC
from workbench.views.panel.events import Events
from workbench.views.panel.layout import build
from workbench.views.panel.limits import Limits, read_users
from workbench.views.panel.picture import Picture, variant_points
from workbench.views.panel.session import LETTERS
from workbench.views.panel.votes import VoteStore

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
"""Fonts that every machine has: gradio's own theme would ask a font server."""

LOCAL = ("127.0.0.1", "localhost", "::1")


class ComparePanel(gr.Blocks):
    """The panel as gradio's Blocks, with a `launch` that keeps to this machine.

    Args:
        events: What happens in it.
        examples: Label to example prompts.
        picture: The Pareto picture, or None.
    """

    shown: ComparePanel | None = None
    """The panel that a notebook shows now; the next one closes it, so that a cell run again leaves no server behind."""

    def __init__(self, events: Events, examples: Mapping[str, Sequence[str]], picture: Picture | None) -> None:
        super().__init__(analytics_enabled=False, title="Compare models", fill_width=True)
        self.desk, self.examples = events, {label: list(prompts) for label, prompts in examples.items() if prompts}
        with self:
            build(events, list(events.scheduler.variants), self.examples, picture)
        self.queue(max_size=events.limits.waiting, api_open=False)

    def launch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        auth: str | Path | None = None,
        server_name: str = "127.0.0.1",
        server_port: int | None = None,
        root_path: str | None = None,
        height: int = 900,
        inline: bool | None = None,
        **given: Any,
    ) -> Any:
        """Serve the panel, and show it in the notebook that asks for it.

        It listens on this machine only and asks no other one. Behind JupyterHub the address of jupyter-server-proxy is
        found by itself. In a notebook a table of answers stands below the panel, for a reader of the saved page.

        Args:
            auth: A file with one `name:password` in a line; None lets everyone in who reaches the address.
            server_name: Where to listen; another place than this machine needs `auth`.
            server_port: None takes a free one.
            root_path: The path under which a proxy shows the panel, `{port}` stands for the port; None asks JupyterHub.
            height: Of the panel in a notebook, in pixels.
            inline: Whether to show it in the notebook; None finds out.
            **given: Further arguments of gradio's `launch`.

        Returns:
            What gradio's `launch` returns.

        Raises:
            ConfigError: The panel would be open to others without a password, or to the whole internet.
        """
        if given.pop("share", False):
            raise ConfigError("share=True would send the panel over a foreign server; leave it out, and use a proxy")
        if server_name not in LOCAL and auth is None:
            raise ConfigError(f"server_name={server_name!r} opens the panel to others; name a file of users: auth=")
        port = server_port or free_port(server_name)
        root = proxied(root_path, port)
        safe: dict[str, Any] = {
            "auth": read_users(auth) if auth is not None else None,
            "share": False,
            "ssr_mode": False,
            "run_history": False,
            "enable_monitoring": False,
            "mcp_server": False,
            "footer_links": [],
            "max_file_size": 1,
            "theme": theme(),
            "css": (STATIC / "panel.css").read_text(encoding="utf-8"),
        }
        inline = ipython_check() if inline is None else inline
        settings: dict[str, Any] = safe | {"quiet": inline, "prevent_thread_lock": inline} | given
        served = super().launch(
            inline=False, server_name=server_name, server_port=port, root_path=root or None, **settings
        )
        if inline:
            from IPython.display import HTML, display

            before, ComparePanel.shown = ComparePanel.shown, self
            if before is not None and before is not self:
                before.close()
            address = f"{root}/" if root else self.local_url
            frame = (
                f"<iframe src='{html.escape(str(address))}' width='100%' height='{height}' frameborder='0'></iframe>"
            )
            display(HTML(frame + self.still()))
        return served

    def still(self, prompt: str | None = None, *, max_new_tokens: int = 48, seed: int = 0) -> str:
        """Return every variant's answer to one prompt as an HTML table, for a reader of a saved notebook.

        Args:
            prompt: None takes the first example, or gives an empty text where there is none.
            max_new_tokens: Most tokens of an answer.
            seed: Of the noise; the likeliest token is taken each time, so it changes nothing here.
        """
        prompt = prompt or next((prompts[0] for prompts in self.examples.values()), "")
        if not prompt:
            return ""
        names = self.desk.scheduler.variants
        asked = [Request(name, prompt, max_new_tokens=max_new_tokens, seed=seed) for name in names]
        answers = [self.desk.scheduler.submit(request) for request in asked]
        rows = [("Question", prompt)]
        for letter, name, answer in zip(LETTERS, names, answers):
            answer.wait()
            rows.append((f"{letter} · {name}", answer.error or answer.text.strip()))
        cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
        return (
            "<div><p><b>The answers as they stood when this notebook was saved.</b> Run the cell to ask your own.</p>"
            f"<table><tbody>{cells}</tbody></table><p><i>{NOTICE}</i></p></div>"
        )

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Stop serving, and end the answers under way."""
        super().close(*args, **kwargs)
        self.desk.scheduler.close()


def compare_panel(
    variants: Mapping[str, Any],
    tokenizer: Any = None,
    *,
    examples: Mapping[str, Sequence[str]] | Sequence[str] = (),
    front: pd.DataFrame | None = None,
    points: Mapping[str, tuple[float, float]] | None = None,
    votes: str | Path = "votes.jsonl",
    limits: Limits | None = None,
) -> ComparePanel:
    """Make a panel in which variants answer one prompt side by side and live, and are voted on.

    `panel.launch()` serves it on this machine, inline in a notebook. A variant that can be blended gets a slider; the
    blend belongs to the question, so that many people with many blends do not see each other's.

    Args:
        variants: Name to what answers: a transformers model, a classroom name, a folder of a model or an adapter, a
            PEFT model, a `LiveMerge`, a `RatioSpectrum`, or a `generation.Endpoint`.
        tokenizer: Their common tokenizer; None takes the one of a merge among them.
        examples: Label to example prompts, or just prompts.
        front: What `sweep` returned for the blend: draws the Pareto picture, whose points set the slider.
        points: Name to the horizontal and vertical score of variants that `front` does not have.
        votes: The file to which votes are appended.
        limits: What one person may ask.

    Raises:
        ConfigError: There is no variant, more than 26, or no tokenizer; or `front` is no sweep.
        ModelError: A variant cannot be loaded.
    """
    if len(variants) > len(LETTERS):
        raise ConfigError(f"{len(variants)} variants; a panel has a letter for each, so at most {len(LETTERS)}")
    tokenizer = tokenizer or next((given.tokenizer for given in variants.values() if hasattr(given, "tokenizer")), None)
    if tokenizer is None:
        raise ConfigError("tokenizer=None, and no merge among the variants brings one; pass their common tokenizer")
    made, limits = make_variants(variants, tokenizer), limits or Limits()
    recipes = {name: one.choice for name, one in made.items() if one.kind in ("live", "spectrum")}
    events = Events(
        Scheduler(made, max_rows=limits.at_once, max_waiting=limits.waiting),
        {name: recipe for name, recipe in recipes.items() if recipe.ratio is not None},
        tokenizer,
        limits=limits,
        store=VoteStore(votes),
    )
    shown = None if front is None else Picture(front, variant_points(front, variants) | dict(points or {}))
    named = examples if isinstance(examples, Mapping) else {text[:40]: [text] for text in examples}
    return ComparePanel(events, named, shown)


def theme() -> Base:
    """Return the look of the panel: system fonts, so that no font server is asked."""
    return Base(font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace"), primary_hue="blue")


def free_port(server_name: str) -> int:
    """Return a port on which nobody listens: the root path of a proxy holds it, so it is needed before the start."""
    with socket.socket() as probe:
        probe.bind((server_name, 0))
        return probe.getsockname()[1]


def proxied(root_path: str | None, port: int) -> str:
    """Return the path under which a browser finds the panel, empty where it is no other than the address itself."""
    if root_path is None:
        base = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        root_path = f"{base}proxy/{{port}}" if base else ""
    return root_path.replace("{port}", str(port)).rstrip("/")
