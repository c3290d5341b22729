"""A served model as lm-evaluation-harness sees one: chats go out, answers come back and are kept one by one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from tqdm import tqdm

from workbench.errors import ConfigError, ModelError
from workbench.generation import Endpoint, Request, Scheduler, make_variants


class ServedModel(LM):
    """Answers of an endpoint, several at once, each asked again where it fails.

    lm-eval's `local-chat-completions` does the same with packages of its extra `api` and the key in one fixed
    variable; this one is asked as the panel asks, with the key and the silence that the `Endpoint` names.

    Args:
        endpoint: Where the model is served. It applies its own chat template.
        at_once: Requests that are sent before the first of them is waited for, at least 1.
        pauses: Seconds before each further try of what failed.
    """

    def __init__(self, endpoint: Endpoint, *, at_once: int = 8, pauses: Sequence[float] = (1.0, 4.0)) -> None:
        super().__init__()
        self.endpoint, self.at_once, self.pauses = endpoint, at_once, pauses

    @property
    def tokenizer_name(self) -> str:
        """The endpoint's model, which has the tokenizer."""
        return self.endpoint.model

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as the text that `generate_until` takes."""
        return json.dumps(chat_history, ensure_ascii=False)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return the answers, in order; each is kept, where there is a store, as soon as it is whole.

        Raises:
            ModelError: One failed every time.
        """
        texts: list[str] = []
        with (
            Scheduler(make_variants({"served": self.endpoint}, None), max_rows=self.at_once) as scheduler,
            tqdm(total=len(requests), unit="ex", desc=self.endpoint.model) as bar,
        ):
            for start in range(0, len(requests), self.at_once):
                texts += self._ask(scheduler, requests[start : start + self.at_once])
                bar.update(len(texts) - start)
        return texts

    def loglikelihood(self, requests: list[Any]) -> Any:
        """Refuse: a chat endpoint tells no likelihoods.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{self.endpoint.url} tells no likelihoods of given answers; let it write them: written=True")

    loglikelihood_rolling = loglikelihood

    def _ask(self, scheduler: Scheduler, requests: list[Any]) -> list[str]:
        done: dict[int, str] = {}
        error = ""
        for pause in (0.0, *self.pauses):
            time.sleep(pause)
            left = [place for place in range(len(requests)) if place not in done]
            answers = {place: scheduler.submit(_request(*requests[place].args)) for place in left}
            for place, answer in answers.items():
                answer.wait()
                if answer.state == "done":
                    done[place] = answer.text
                    self.cache_hook.add_partial("generate_until", requests[place].args, answer.text)
                error = answer.error or error
            if len(done) == len(requests):
                return [done[place] for place in range(len(requests))]
        raise ModelError(
            f"{len(requests) - len(done)} requests failed {1 + len(self.pauses)} times; the last one: {error}. Answers "
            "that came are in the store, where one was given: see to the server and run again"
        )


def _request(chat: str, settings: dict[str, Any]) -> Request:
    return Request("served", json.loads(chat), max_new_tokens=settings["max_gen_toks"])
