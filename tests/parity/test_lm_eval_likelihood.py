"""Likelihoods of choices equal those that lm-evaluation-harness computes for the same prompts."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from workbench.data import Choice, load_examples
from workbench.evaluation.likelihood import choice_ids, choice_scores
from workbench.evaluation.suites import example_of
from workbench.generation import encode_prompt
from workbench.models import chat_prompt, load_model

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ITEMS = 50


@pytest.fixture(scope="module")
def loaded():
    return load_model("classroom/base", device="cpu")


@pytest.fixture(scope="module")
def harness(loaded):
    model, tokenizer = loaded
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)


def classroom():
    rows = load_examples("classroom/exam_forward").to_list()
    return [example_of(row) for row in rows if row["split"] == "test"][:ITEMS]


def medmcqa():
    if not SHARED.is_dir():
        pytest.skip(f"the public data sets are not at {SHARED}")
    options = ["opa", "opb", "opc", "opd"]
    mapping = {"skill": "exam", "query": "question", "choices": options, "answer": Choice("cop", first=1)}
    return [example_of(row) for row in load_examples(SHARED / "medmcqa" / "dev.json", limit=ITEMS, **mapping)]


def sums(loaded, examples):
    """Our log-likelihoods in nats of whole choices."""
    scores = choice_scores(*loaded, examples)
    return [
        torch.tensor([value * len(choice.encode()) for value, choice in zip(values, example.choices)])
        for values, example in zip(scores, examples)
    ]


@pytest.mark.parametrize("items", [classroom, medmcqa])
def test_same_tokens_have_the_same_likelihood(items, loaded, harness):
    examples, tokenizer = items(), loaded[1]
    requests = [
        ((example.query, choice), encode_prompt(tokenizer, example.prompt()), ids)
        for example in examples
        for choice, ids in zip(example.choices, choice_ids(tokenizer, example))
    ]
    theirs = torch.tensor([value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)])
    ours = sums(loaded, examples)
    assert len(ours) == ITEMS
    torch.testing.assert_close(torch.cat(ours), theirs, rtol=1e-4, atol=1e-4)


def test_same_texts_have_the_same_likelihood(loaded, harness):
    """Each side tokenises for itself: the chat template ends in a token of its own, where texts part."""
    examples, tokenizer = classroom(), loaded[1]
    pairs = [(chat_prompt(tokenizer, example.prompt()), choice) for example in examples for choice in example.choices]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = torch.tensor([value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)])
    torch.testing.assert_close(torch.cat(sums(loaded, examples)), theirs, rtol=1e-4, atol=1e-4)
