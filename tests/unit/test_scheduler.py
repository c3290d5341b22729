"""Requests of many people: every answer is the one that its request gets alone, whoever joins or leaves."""

import pytest
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError
from workbench.generation import Request, Scheduler, make_variants, stream

TOKENIZER = byte_tokenizer()
PROMPTS = ["a", "What helps against asthma?", "héllo 😀", "x" * 31]


def solo(model, prompt, **settings):
    return [*stream(model, TOKENIZER, prompt, **settings)][-1]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_that_share_a_batch_are_those_of_a_stream(temperature):
    model = pico()
    with Scheduler(make_variants({"pico": model}, TOKENIZER), max_rows=3) as scheduler:
        settings = {"max_new_tokens": 9, "temperature": temperature, "seed": 5}
        answers = [scheduler.submit(Request("pico", prompt, **settings)) for prompt in PROMPTS * 2]
        assert all(answer.wait(20) for answer in answers)
    assert [answer.text for answer in answers] == [solo(model, prompt, **settings) for prompt in PROMPTS * 2]
    assert {answer.state for answer in answers} == {"done"}


def test_a_prompt_that_does_not_fit_fails_its_own_answer_only():
    with Scheduler(make_variants({"pico": pico(context=20)}, TOKENIZER)) as scheduler:
        long, short = (scheduler.submit(Request("pico", prompt, max_new_tokens=4)) for prompt in ("x" * 30, "x"))
        assert all([long.wait(20), short.wait(20)])
    assert (long.state, short.state) == ("failed", "done")
    assert "the prompt has 31 tokens and the model's context holds 20" in long.error


def test_an_unknown_variant_is_refused():
    scheduler = Scheduler(make_variants({"pico": pico()}, TOKENIZER))
    with scheduler, pytest.raises(ConfigError, match="no variant 'nano'; there are pico"):
        scheduler.submit(Request("nano", "x"))
