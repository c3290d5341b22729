"""Looking examples up at inference: the nearest by spelling, the nearest by meaning, put before the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.models import chat_prompt
from workbench.records import Example


def edit_distance(first: str, second: str) -> int:
    """Return the least number of characters to insert, delete or replace that make two texts equal.

    Source: Myers (1999), J. ACM 46:395, the bit-parallel form, with Hyyro's (2003) global distance.
    """
    if not first:
        return len(second)
    peq: dict[str, int] = {}
    for i, letter in enumerate(first):
        peq[letter] = peq.get(letter, 0) | 1 << i
    full, last, score = (1 << len(first)) - 1, 1 << len(first) - 1, len(first)
    up, down = full, 0
    for letter in second:
        same = peq.get(letter, 0)
        cross = (((same & up) + up) ^ up) | same | down
        rise, fall = down | ~(cross | up) & full, up & cross
        score += bool(rise & last) - bool(fall & last)
        rise, fall = (rise << 1 | 1) & full, fall << 1 & full
        up, down = fall | ~(same | down | rise) & full, rise & (same | down)
    return score


class Recall:
    """Answers with examples at hand: the nearest of each memory goes before the question. Off unless it is used.

    Args:
        model: A causal language model, whose mean last hidden state of a question is its place; it must stay as it is.
        tokenizer: Its tokenizer.
        short_term: Looked up by edit distance of the question; None leaves it out.
        long_term: Looked up by cosine of the mean hidden states; None leaves it out.

    Source: MaLP (arXiv 2309.11696), Levenshtein look-up in short-term and cosine look-up in long-term memory. Deviates:
    the model's own hidden states stand for its encoder.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        short_term: ShortTermMemory | None = None,
        long_term: LongTermMemory | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._recent = short_term.examples() if short_term is not None else []
        self._kept = long_term.examples() if long_term is not None else []
        self._places = self._embed([example.prompt() for example in self._kept])

    def nearest(self, prompt: str) -> list[Example]:
        """Return the nearest example of each memory, without repeats: at most two, the short-term one first."""
        found = [min(self._recent, key=lambda e: edit_distance(e.prompt(), prompt))] if self._recent else []
        if self._kept:
            found.append(self._kept[int((self._places @ self._embed([prompt])[0]).argmax())])
        return list(dict.fromkeys(found))

    def prompt(self, prompt: str) -> str:
        """Return the question with what was found before it, each with its answer."""
        shown = [f"{example.prompt()}\n{example.answer}\n" for example in self.nearest(prompt)]
        return "\n".join([*shown, prompt])

    @torch.inference_mode()
    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Return unit vectors, `(prompts, D)`."""
        training = self.model.training
        self.model.eval()
        places = []
        for text in prompts:
            ids = self.tokenizer(
                chat_prompt(self.tokenizer, text), add_special_tokens=False, return_tensors="pt"
            ).input_ids
            states = self.model(input_ids=ids.to(self.model.device), output_hidden_states=True).hidden_states[-1]
            places.append(F.normalize(states[0].float().mean(0), dim=0))
        self.model.train(training)
        return torch.stack(places) if places else torch.empty(0)
