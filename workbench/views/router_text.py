"""A text in the colours and numbers of its experts, token by token, with a token's experts in all layers below it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets

from workbench.records import RouterOutput, RoutingTrace
from workbench.routing.stats import first_expert
from workbench.views.controls import STATIC
from workbench.views.router_drawing import tint
from workbench.views.router_pictures import router_labels

MOST_TOKENS = 1000
"""Of one document that are shown; the pictures count all."""


class RouterText(anywidget.AnyWidget):
    """Tokens with the number of their first expert at the chosen router; a chosen token shows its experts everywhere.

    Layer, step and token are moved in the browser without the kernel. Decisions cross the wire as bytes: `chosen`
    holds uint16 `(routers, tokens, K)`, best first, `shares` softmax(router_logits) as uint8 `(routers, tokens, E)`,
    and `other` the first experts of a second checkpoint, uint16 `(routers, tokens)`, or nothing.

    Args:
        trace: The trace.
        tokenizer: Turns token ids into text.
        other: A trace of the same tokens from another checkpoint.
    """

    _esm = STATIC / "router_text.js"
    _css = (STATIC / "workbench.css").read_text(encoding="utf-8") + (STATIC / "router_text.css").read_text("utf-8")
    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    steps = traitlets.List(traitlets.Int()).tag(sync=True)
    routers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    experts = traitlets.List(traitlets.Int()).tag(sync=True)
    chosen = traitlets.Bytes().tag(sync=True)
    shares = traitlets.Bytes().tag(sync=True)
    other = traitlets.Bytes().tag(sync=True)
    sizes = traitlets.List(traitlets.Int()).tag(sync=True)
    router = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)

    def __init__(
        self, trace: RoutingTrace, tokenizer: Any, *, other: RoutingTrace | None = None, **kwargs: Any
    ) -> None:
        super().__init__(routers=list(router_labels(trace).values()), **kwargs)
        self.trace, self.tokenizer, self.second = trace, tokenizer, other
        self.show(0)

    def show(self, document: int) -> None:
        """Show another document of the trace, from its first token."""
        part, second = self.trace.of(document), self.second.of(document) if self.second is not None else None
        outputs = [_head(output) for output in part.routers.values()]
        most, top = max(o.router_logits.shape[1] for o in outputs), max(o.selected_experts.shape[1] for o in outputs)
        steps = part.tokens["step"][:MOST_TOKENS].tolist()
        with self.hold_sync():
            self.tokens = token_texts(part, self.tokenizer)[:MOST_TOKENS]
            self.steps, self.step, self.token = steps, max(steps), 0
            self.experts = [o.router_logits.shape[1] for o in outputs]
            self.sizes = [len(outputs), len(steps), top, most]
            self.chosen = np.stack([_ranked(o, top) for o in outputs]).tobytes()
            self.shares = np.stack([_shares(o, most) for o in outputs]).tobytes()
            self.other = b"" if second is None else _firsts(part, second).tobytes()

    def still(self) -> str:
        """Return the text as plain HTML for a reader without widgets, at the router that is chosen."""
        chosen = np.frombuffer(self.chosen, dtype="<u2").reshape(self.sizes[:3])[self.router, :, 0]
        spans = (
            f'<span style="background-color: {tint(int(e))}">{html.escape(text)}<sub>{e}</sub></span>'
            for text, e in zip(self.tokens, chosen)
        )
        return f"<p>First expert of each token, {html.escape(self.routers[self.router])}:</p><p>{''.join(spans)}</p>"


def token_texts(trace: RoutingTrace, tokenizer: Any) -> list[str]:
    """Return each token's own text, with a sign where a token is only a part of a character."""
    ids: Sequence[int] = trace.tokens["token_id"].tolist()
    return [tokenizer.decode([i], clean_up_tokenization_spaces=False) if i >= 0 else "·" for i in ids]


def _head(output: RouterOutput) -> RouterOutput:
    return RouterOutput(**{name: value[:MOST_TOKENS] for name, value in vars(output).items()})


def _ranked(output: RouterOutput, top: int) -> np.ndarray:
    order = output.routing_weights.argsort(dim=1, descending=True, stable=True)
    ranked = output.selected_experts.gather(1, order).numpy().astype("<u2")
    return np.pad(ranked, ((0, 0), (0, top - ranked.shape[1])), constant_values=65535)


def _shares(output: RouterOutput, most: int) -> np.ndarray:
    shares = (255 * torch.softmax(output.router_logits, 1)).round().numpy().astype(np.uint8)
    return np.pad(shares, ((0, 0), (0, most - shares.shape[1])))


def _firsts(part: RoutingTrace, second: RoutingTrace) -> np.ndarray:
    blank = np.full(len(part), 65535)
    firsts = [first_expert(second.routers[n]) if n in second.routers else blank for n in part.routers]
    return np.stack(firsts)[:, :MOST_TOKENS].astype("<u2")
