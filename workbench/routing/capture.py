"""Record what every router of a model decides while a block of code runs: hooks on, hooks off."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError, ModelError
from workbench.records import RouterOutput, RoutingTrace
from workbench.routing.find import find_routers, inner_model, layer_of, read_output, scaling_layers

_Names = dict[nn.Module, tuple[list[str], list[str] | None]]
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
    names = {module: (own, scaling_layers(model, module)) for module, own in routers.items()}
    recorder, trace = _Recorder(max_tokens, names), RoutingTrace()
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
        _fill(trace, recorder, _filler(inner))


@dataclass(kw_only=True, eq=False)
class _Pass:
    """One forward pass: what was read, and what routers returned, still on the model's device.

    In the end, routers of one shape stand in one block `(routers, B * T, ...)` by their names.
    """

    ids: Tensor | None
    shape: tuple[int, int]
    keep: Tensor | None
    positions: Tensor
    past: int
    calls: list[tuple[nn.Module, Any]] = field(default_factory=list)
    blocks: dict[tuple[str, ...], RouterOutput] = field(default_factory=dict)
    by_row: bool = False


class _Recorder:
    """The hooks. Whatever runs between passes, such as a recomputation in the backward pass, is not recorded."""

    def __init__(self, max_tokens: int | None, names: _Names) -> None:
        self.max_tokens, self.names, self.held, self.dropped = max_tokens, names, 0, 0
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
        # Routers of whole sequences rest while an answer is written: such a pass is kept for what they said before.
        resting = self.passes[-1].shape[0] if self.following else 0
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


def _resolved(passes: Iterable[_Pass], names: _Names) -> list[_Pass]:
    """Return the passes in which routers decided, or had decided for the whole sequence, with their blocks."""
    resolved: list[_Pass] = []
    for one in passes:
        before = resolved[-1] if resolved and one.past else None
        if one.calls:
            one.blocks, one.by_row = _blocks(one, names)
            # With one token a row, only the pass before tells a router of sequences from one of tokens.
            one.by_row &= one.shape[1] > 1 or before is None or before.by_row
        elif before is not None and before.by_row and before.shape[0] == one.shape[0]:
            one.blocks, one.by_row = _standing(before, one.shape[1]), True
        if one.blocks:
            resolved.append(one)
    return resolved


def _blocks(done: _Pass, names: _Names) -> tuple[dict[tuple[str, ...], RouterOutput], bool]:
    """Return the blocks of a pass, and whether every router decided once for each row."""
    blocks: dict[tuple[str, ...], RouterOutput] = {}
    groups: dict[tuple[Any, ...], list[tuple[str, RouterOutput]]] = {}
    seen: dict[nn.Module, int] = {}
    by_row = True
    for module, raw in done.calls:
        place = seen[module] = seen.get(module, -1) + 1
        own, layers = names[module]
        # A shared router runs once for each layer that uses it, in the order in which the model holds those layers.
        name = own[place] if place < len(own) else f"{own[0]}#{place}"
        output = read_output(module, name, raw)
        by_row &= output.selected_experts.shape[0] == done.shape[0] and output.router_logits.dim() == 2
        if output.router_logits.dim() == 4:
            parts = {part: getattr(output, part).permute(2, 0, 1, 3).flatten(1, 2) for part in _PARTS}
            blocks[tuple(layers or [name])] = RouterOutput(**parts)
            continue
        logits = output.router_logits
        kind = (logits.shape[1], output.selected_experts.shape[1], logits.dtype, logits.device)
        groups.setdefault(kind, []).append((name, _for_each_token(output, name, done.shape)))
    for members in groups.values():
        parts = {part: torch.stack([getattr(output, part) for _, output in members]) for part in _PARTS}
        blocks[tuple(name for name, _ in members)] = RouterOutput(**parts)
    return blocks, by_row


def _for_each_token(output: RouterOutput, name: str, shape: tuple[int, int]) -> RouterOutput:
    decisions, (rows, length) = output.selected_experts.shape[0], shape
    if decisions == rows * length:
        return output
    if decisions != rows:
        raise ModelError(
            f"the router {name} decided {decisions} times for {rows} rows of {length} tokens; it must decide once for "
            "each token or once for each row"
        )
    return RouterOutput(**{part: getattr(output, part).repeat_interleave(length, 0) for part in _PARTS})


def _standing(before: _Pass, length: int) -> dict[tuple[str, ...], RouterOutput]:
    def last(value: Tensor) -> Tensor:
        return value.unflatten(1, before.shape)[:, :, -1].repeat_interleave(length, 1)

    return {
        names: RouterOutput(**{part: last(getattr(block, part)) for part in _PARTS})
        for names, block in before.blocks.items()
    }


def _fill(trace: RoutingTrace, recorder: _Recorder, filler: int | None) -> None:
    """Put all passes together, one copy from the device for each block and part."""
    passes = _resolved(recorder.passes, recorder.names)
    trace.dropped["passes"] = recorder.dropped
    if not passes:
        return
    _check_complete(passes)
    tokens, keep, order = _tokens(passes, filler)
    for names in passes[0].blocks:
        found = [one.blocks[names] for one in passes]
        parts = {
            part: torch.cat([getattr(block, part) for block in found], 1).cpu()[:, keep][:, order] for part in _PARTS
        }
        for i, name in enumerate(names):
            one = {part: value[i] if part == _PARTS[2] else value[i].float() for part, value in parts.items()}
            trace.routers[name] = RouterOutput(**one)
            trace.layers[name] = layer_of(name)
    trace.tokens.update({name: column[order] for name, column in tokens.items()})


def _check_complete(passes: list[_Pass]) -> None:
    counts = Counter(name for one in passes for names in one.blocks for name in names)
    some = next((name for name, count in counts.items() if count != len(passes)), None)
    if some is not None or any(one.blocks.keys() != passes[0].blocks.keys() for one in passes):
        raise ModelError(
            f"the router {some or next(iter(counts))} ran in {counts[some or next(iter(counts))]} of {len(passes)} "
            "forward passes, or in another order; capture the passes of one adapter at a time, or leave those without "
            "it out of the block"
        )


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
