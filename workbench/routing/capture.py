"""Record what every router of a model decides while a block of code runs: hooks on, hooks off."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError, ModelError
from workbench.records import RouterOutput, RoutingTrace
from workbench.routing.find import find_routers, inner_model, read_output, scaling_layers

_PARTS = ("router_logits", "routing_weights", "selected_experts")


@contextmanager
def capture_routing(model: Any, *, max_tokens: int | None = None) -> Iterator[RoutingTrace]:
    """Record every decision of the model's routers within the block; the trace is filled when the block ends.

    It works in training, evaluation and generation. Tokens that a cache carries on belong to the document that their
    row began, so a prompt and its answer stand in one piece; the last token that was written is never read by the
    model, so it has no decision. A pass that gradient checkpointing computes once more is not recorded again. Padding
    is left out where the model was given an attention mask, and so is what `generate` fills ended answers up with.
    Nothing is copied to the CPU before the end. In beam search, a row is a place among the beams.

    Args:
        model: A LoRA mixture, PEFT's X-LoRA, or a mixture-of-experts model of transformers.
        max_tokens: Most tokens to hold, at least 1; the oldest forward passes give way, the newest one always stays.
            None keeps all.

    Raises:
        ModelError: The model has no router, or one whose output cannot be read.
        ConfigError: `max_tokens` is below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} must be at least 1, or None to keep every token")
    routers = find_routers(model)
    recorder, trace = _Recorder(max_tokens), RoutingTrace()
    inner = inner_model(model)
    handles = [
        inner.register_forward_pre_hook(recorder.begin, with_kwargs=True),
        inner.register_forward_hook(recorder.end),
        *(module.register_forward_hook(partial(recorder.record, module)) for module in routers),
    ]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()
        _fill(trace, recorder, model, routers)


@dataclass(kw_only=True, eq=False)
class _Pass:
    """One forward pass: what was read, and what each router returned, still on the model's device."""

    ids: Tensor | None
    shape: tuple[int, int]
    keep: Tensor | None
    positions: Tensor
    past: int
    calls: list[tuple[nn.Module, Any]] = field(default_factory=list)


class _Recorder:
    """The hooks. Whatever runs between passes, such as a recomputation in the backward pass, is not recorded."""

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens, self.held, self.dropped = max_tokens, 0, 0
        self.passes: deque[_Pass] = deque()
        self.running: _Pass | None = None
        self.following = False

    def begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        read = kwargs["inputs_embeds"] if ids is None else ids
        past = kwargs.get("past_key_values")
        length = int(past.get_seq_length()) if past is not None else 0
        shape = (int(read.shape[0]), int(read.shape[1]))
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self.running = _Pass(
            ids=ids,
            shape=shape,
            keep=None if mask is None else mask[:, -shape[1] :].bool(),
            positions=_positions(shape, length, kwargs.get("position_ids"), mask, read.device),
            past=length,
        )

    def record(self, module: nn.Module, _: nn.Module, __: Any, output: Any) -> None:
        if self.running is not None:
            self.running.calls.append((module, _detached(output) if torch.is_grad_enabled() else output))

    def end(self, *_: Any) -> None:
        done, self.running = self.running, None
        # Routers of whole sequences rest while an answer is written; routers that are switched off rest for good.
        resting = self.passes[-1].shape[0] if self.passes and self.following else 0
        self.following = done is not None and (bool(done.calls) or (done.past > 0 and done.shape[0] == resting))
        if done is None or not self.following:
            return
        self.passes.append(done)
        self.held += done.shape[0] * done.shape[1]
        while self.max_tokens is not None and self.held > self.max_tokens and len(self.passes) > 1:
            old = self.passes.popleft()
            self.held -= old.shape[0] * old.shape[1]
            self.dropped += 1


def _positions(shape: tuple[int, int], past: int, given: Any, mask: Tensor | None, device: Any) -> Tensor:
    """Return where each token stands in its row, `(B, T)` or `(1, T)`, without asking the device for a number."""
    if isinstance(given, Tensor) and given.dim() == 2:
        return given
    if mask is not None:
        return (mask.cumsum(1) - 1)[:, -shape[1] :]
    return torch.arange(past, past + shape[1], device=device)[None]


def _detached(output: Any) -> Any:
    if isinstance(output, RouterOutput):
        return RouterOutput(**{part: getattr(output, part).detach() for part in _PARTS})
    if isinstance(output, tuple):
        return tuple(part.detach() if isinstance(part, Tensor) else part for part in output)
    return output.detach() if isinstance(output, Tensor) else output


def _fill(trace: RoutingTrace, recorder: _Recorder, model: nn.Module, routers: dict[nn.Module, list[str]]) -> None:
    """Put all passes together, one copy from the device for each router and part."""
    passes = list(recorder.passes)
    trace.dropped["passes"] = recorder.dropped
    if not passes:
        return
    tokens, keep, order = _tokens(passes, _filler(inner_model(model)))
    collected: dict[str, list[RouterOutput]] = {}
    standing: dict[str, RouterOutput] = {}
    for one in passes:
        standing = (standing if one.past else {}) | dict(_by_name(one, model, routers))
        for name, output in standing.items():
            collected.setdefault(name, []).append(_for_each_token(output, name, one.shape))
    for name, outputs in collected.items():
        if len(outputs) != len(passes):
            raise ModelError(
                f"the router {name} ran in {len(outputs)} of {len(passes)} forward passes; capture the passes of one "
                "adapter at a time, or leave those without it out of the block"
            )
        parts = {part: torch.cat([getattr(output, part) for output in outputs]).cpu() for part in _PARTS}
        parts = {part: value if part == _PARTS[2] else value.float() for part, value in parts.items()}
        trace.routers[name] = RouterOutput(**{part: value[keep][order] for part, value in parts.items()})
        trace.layers[name] = next((int(part) for part in name.split(".") if part.isdigit()), -1)
    trace.tokens.update({name: column[order] for name, column in tokens.items()})


def _filler(inner: Any) -> int | None:
    """Return the token that `generate` appends to an answer that has ended."""
    settings = getattr(inner, "generation_config", None)
    pad, end = getattr(settings, "pad_token_id", None), getattr(settings, "eos_token_id", None)
    return pad if pad is not None else (end[0] if isinstance(end, list) else end)


def _tokens(passes: list[_Pass], filler: int | None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the columns of the real tokens, which of all tokens are real, and the order that joins documents."""
    columns: dict[str, list[Tensor]] = {
        name: [] for name in ("token_id", "document", "row", "position", "step", "keep")
    }
    first, count, step = 0, 0, 0
    before: _Pass | None = None
    for one in passes:
        rows = torch.arange(one.shape[0])[:, None].expand(one.shape)
        ids = torch.full(one.shape, -1) if one.ids is None else one.ids.cpu()
        keep = torch.ones(one.shape, dtype=torch.bool) if one.keep is None else one.keep.cpu().clone()
        again = before is not None and _reads_again(before, one)
        if again:
            keep[:, : one.shape[1] - 1] = False
        if again or (before is not None and one.past > 0 and before.shape[0] == one.shape[0]):
            step += 1
        else:
            first, count, step = count, count + one.shape[0], 0
        values = (ids, rows + first, rows, one.positions.cpu().expand(one.shape), torch.full(one.shape, step), keep)
        for column, value in zip(columns.values(), values):
            column.append(value.flatten())
        before = one
    joined = {name: torch.cat(column) for name, column in columns.items()}
    keep = joined.pop("keep") & ((joined["step"] == 0) | (joined["token_id"] != (-1 if filler is None else filler)))
    tokens = {name: column[keep] for name, column in joined.items()}
    tokens["document"] = torch.unique(tokens["document"], return_inverse=True)[1]
    return tokens, keep, torch.argsort(tokens["document"], stable=True)


def _reads_again(before: _Pass, one: _Pass) -> bool:
    """Tell a model that generates without a cache, and so reads everything again for each new token."""
    if one.past or before.ids is None or one.ids is None or one.shape != (before.shape[0], before.shape[1] + 1):
        return False
    return torch.equal(before.ids, one.ids[:, :-1])


def _by_name(one: _Pass, model: nn.Module, routers: dict[nn.Module, list[str]]) -> Iterator[tuple[str, RouterOutput]]:
    """Yield each call's router name and decisions, one for each token of the pass or one for each row."""
    seen: dict[nn.Module, int] = {}
    for module, raw in one.calls:
        place = seen[module] = seen.get(module, -1) + 1
        names = routers[module]
        # A shared router runs once for each layer that uses it, in the order in which the model holds those layers.
        name = names[place] if place < len(names) else f"{names[0]}#{place}"
        output = read_output(module, name, raw)
        if output.router_logits.dim() == 2:
            yield name, output
            continue
        for i, layer in enumerate(scaling_layers(model, module) or [name]):
            yield layer, RouterOutput(**{part: getattr(output, part)[:, :, i].flatten(0, 1) for part in _PARTS})


def _for_each_token(output: RouterOutput, name: str, shape: tuple[int, int]) -> RouterOutput:
    decisions, (rows, length) = len(output.selected_experts), shape
    if decisions == rows * length:
        return output
    if decisions != rows:
        raise ModelError(
            f"the router {name} decided {decisions} times for {rows} rows of {length} tokens; it must decide once for "
            "each token or once for each row"
        )
    return RouterOutput(**{part: getattr(output, part).repeat_interleave(length, 0) for part in _PARTS})
