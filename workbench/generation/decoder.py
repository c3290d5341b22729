"""The state of one batch of answers: a step writes one token for each row; rows leave and join between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workbench.errors import ModelError
from workbench.generation.routers import keep_routes

if TYPE_CHECKING:
    from workbench.adapters.mixed import SequenceRoutes


class Decoder:
    """Cache, mask and next input of a batch whose rows stand at the right end, padded on the left.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of each row.
        cache: None makes the one that the model's configuration asks for.
        routes: What the model's routers of whole sequences hold (`adapters.mixed.SequenceRoutes`), where several
            decoders take turns; None leaves it in the model.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        cache: DynamicCache | None = None,
        routes: SequenceRoutes | None = None,
    ) -> None:
        self.model, self.routes = model, routes
        self.cache = cache if cache is not None else DynamicCache(config=model.config)
        self.ids, self.mask = pad_left(prompts, device=model.device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.lengths = [len(prompt) for prompt in prompts]

    @torch.no_grad()
    def step(self, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Read what is new, and write the token that `choose` takes from the scores `(B, V)` for each row.

        Raises:
            ModelError: A score is NaN or +infinity.
        """
        logits = self.scores()
        check_logits(logits)
        tokens = choose(logits.float())
        self.write(tokens)
        return tokens

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Read what is new; return the scores of each row's next token, `(B, V)`."""
        if self.routes is not None:
            self.routes.put()
        output = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if self.routes is not None:
            self.routes.take()
        return output.logits[:, -1]

    def write(self, tokens: Tensor) -> None:
        """Let these tokens `(B,)` be what the rows read next."""
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        self.positions = self.positions[:, -1:] + 1
        self.lengths = [length + 1 for length in self.lengths]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, at least one, in this order."""
        if rows:
            index = torch.tensor(rows, device=self.ids.device)
            if self.routes is not None:
                self.routes.keep(index)
            else:
                keep_routes(self.model, index)
            self.cache.batch_select_indices(index)
            self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]
            self.lengths = [self.lengths[row] for row in rows]

    def join(self, other: Decoder) -> None:
        """Take the rows of another batch behind one's own; both have read their prompts into a `joinable_cache`.

        The shorter cache is widened on the left by places that the mask hides, so no row's numbers change.
        """
        if self.routes is not None and other.routes is not None:
            self.routes.join(other.routes)
        width = max(self.mask.shape[1], other.mask.shape[1])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for part in ("keys", "values"):
                both = [_widened(getattr(layer, part), -2, width - 1) for layer in (mine, theirs)]
                setattr(mine, part, torch.cat(both))
        self.ids = torch.cat([self.ids, other.ids])
        self.mask = torch.cat([_widened(self.mask, -1, width), _widened(other.mask, -1, width)])
        self.positions = torch.cat([self.positions, other.positions])
        self.lengths += other.lengths

    def trim(self) -> None:
        """Free the places on the left that no row uses any more; only with a `joinable_cache`."""
        spare = self.mask.shape[1] - max(self.lengths)
        if spare:
            self.mask = self.mask[:, spare:]
            for layer in self.cache.layers:
                layer.keys, layer.values = layer.keys[..., spare:, :].clone(), layer.values[..., spare:, :].clone()  # pyright: ignore


def joinable_cache(model: Any) -> DynamicCache | None:
    """Return a cache whose rows can be joined with others', or None where the model has another kind of memory.

    It keeps all keys, also where a layer looks at a window only: the mask hides the others. Recurrent layers keep a
    state of another shape; and where the rotation of positions depends on the longest row of the batch, a row's answer
    would depend on its company.
    """
    config = model.config.get_text_config()
    plain = all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers
    )
    rotation = str(getattr(config, "rope_parameters", None) or "")
    return DynamicCache() if plain and "dynamic" not in rotation and "longrope" not in rotation else None


def _widened(tensor: Tensor, dim: int, width: int) -> Tensor:
    missing = width - tensor.shape[dim]
    return pad(tensor, (0, 0, missing, 0) if dim == -2 else (missing, 0)) if missing else tensor


def pad_left(rows: Sequence[Sequence[int]], *, device: Any) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both `(B, T)` int64, with each row at the right end; padding is id 0."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def check_logits(logits: Tensor) -> None:
    """Refuse scores from which no token can be chosen.

    Raises:
        ModelError: A score is NaN or +infinity.
    """
    if bool(torch.isnan(logits).any() | torch.isposinf(logits).any()):
        raise broken_scores(logits)


def broken_scores(logits: Tensor) -> ModelError:
    """Return the error for scores from which no token can be chosen."""
    return ModelError(
        f"{int((~torch.isfinite(logits)).sum())} of the model's {logits.numel()} scores are not finite; its "
        "weights are broken or overflow in this dtype: load it again, in float32 if it was in float16"
    )


def ends_of(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end an answer.

    Chat models end a turn with another token than a text, so the tokenizer's and the model's ends both count.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list | tuple) else [configured])
    return {int(end) for end in ends | {tokenizer.eos_token_id} if end is not None}


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off, and back on afterwards if the model was training."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
