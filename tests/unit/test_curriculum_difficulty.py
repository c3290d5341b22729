"""How hard examples are, stages cut by it, and whether measures agree."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pico_language import byte_tokenizer, pico

from workbench.curriculum import difficulty as room
from workbench.curriculum.difficulty import agreement, difficulty, rarity, stage_by_difficulty
from workbench.errors import ConfigError, DataError, WorkbenchWarning
from workbench.models import chat_prompt
from workbench.records import Example


def example(i: int, answer: str = "yes", **changes) -> Example:
    return Example(**({"id": f"e{i}", "skill": "ner", "query": f"q{i}?", "answer": answer} | changes))


def mixed() -> list[Example]:
    return [example(i, "ab" * (1 + i % 5), context="c" * (i % 7)) for i in range(11)]


@pytest.mark.parametrize("chat", [True, False])
def test_loss_is_that_of_each_example_alone(chat) -> None:
    model, tokenizer = pico(), byte_tokenizer(chat=chat)
    found = difficulty(mixed(), model=model, tokenizer=tokenizer, batch_tokens=60, progress=False)
    for one, value in zip(mixed(), found, strict=True):
        prompt = tokenizer(chat_prompt(tokenizer, one.prompt()), add_special_tokens=False).input_ids
        answer = [*tokenizer(one.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        logs = model(torch.tensor([prompt + answer])).logits.log_softmax(-1)[0]
        want = -sum(logs[len(prompt) + k - 1, token].item() for k, token in enumerate(answer)) / len(answer)
        assert value == pytest.approx(want, rel=1e-4)


def test_loss_is_kept_by_content_of_model_and_example(monkeypatch) -> None:
    monkeypatch.setattr(room, "_KNOWN", {})
    model, tokenizer, calls = pico(), byte_tokenizer(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    given = {"model": model, "tokenizer": tokenizer, "progress": False, "batch_tokens": 1}
    first = difficulty(mixed(), **given)
    assert len(calls) == 11
    assert difficulty([*mixed(), example(99)], **given)[:11] == first
    assert len(calls) == 12
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1
        model.model.norm.weight *= 1.1
    assert difficulty(mixed(), **given) != first


def test_length_counts_words_and_a_function_is_called() -> None:
    rows = [example(0, "one two three"), example(1, "one")]
    assert difficulty(rows, "length") == [3, 1]
    assert difficulty([row.to_dict() for row in rows], lambda e: len(e.id)) == [2, 2]


def test_rarity_by_hand() -> None:
    rows = [example(0, "troponin", query="what is this?"), example(1, "this", query="this"), example(2, "a", query="b")]
    corpus = ["this this this what", "what about troponin this"]
    # Counts of words of at least four letters: this 4, what 2, about 1, troponin 1; N = 8, V = 4.
    # Here: what 1, this 3, troponin 1 of 5, all of them more frequent than there (4, 2 and 1 of 13).
    terms = {word: -math.log((n + 1) / 13) for word, n in {"troponin": 1, "this": 4, "what": 2}.items()}
    want = [sum(terms.values()) / 3, terms["this"], 0.0]
    assert rarity(rows, corpus) == pytest.approx(want)
    assert difficulty(rows, "rarity", corpus=corpus) == pytest.approx(want)


def test_the_classroom_is_the_usual_general_corpus() -> None:
    rows = [example(0, "pericarditis"), example(1, "opposite", query="what is the opposite?")]
    hard, easy = rarity(rows)
    assert hard > easy


@given(n=st.integers(1, 30), stages=st.integers(1, 6))
def test_stages_split_every_example_once_the_easiest_first(n, stages) -> None:
    rows = [example(i, " ".join("w" * ((i * 7) % 11 + 1))) for i in range(n)]
    if stages > n:
        with pytest.raises(ConfigError, match=f"num_stages={stages} for {n} examples"):
            stage_by_difficulty(rows, "length", num_stages=stages)
        return
    made = stage_by_difficulty(rows, "length", num_stages=stages, settings={"epochs": 2})
    lengths = [[len(e.answer.split()) for e in stage.examples] for stage in made]
    flat = [length for stage in lengths for length in stage]
    assert flat == sorted(flat)
    assert sorted(e.id for stage in made for e in stage.examples) == sorted(row.id for row in rows)
    assert max(map(len, lengths)) - min(map(len, lengths)) <= 1
    assert made[0].name == "stage 1"
    assert made[0].epochs == 2


def test_borders_and_labels() -> None:
    rows = [example(i, "w " * (i + 1), stage=("general", "broad")[i % 2]) for i in range(6)]
    made = stage_by_difficulty(rows, "length", borders=[3, 5], names=["a", "b", "c"])
    assert [(stage.name, len(stage.examples)) for stage in made] == [("a", 2), ("b", 2), ("c", 2)]
    assert [s.name for s in stage_by_difficulty(rows, "stage")] == ["general", "broad"]
    made = stage_by_difficulty(rows, "stage", order=["broad", "general", "specialist"])
    assert [s.name for s in made] == ["broad", "general"]
    assert {e.stage for e in made[0].examples} == {"broad"}


def test_examples_longer_than_the_context_are_named() -> None:
    rows = [*(example(i) for i in range(4)), *(example(i, "x" * 80) for i in range(4, 6))]
    given = {"model": pico(context=64), "tokenizer": byte_tokenizer(), "progress": False}
    assert [math.isnan(value) for value in difficulty(rows, **given)] == [False] * 4 + [True] * 2
    with pytest.raises(DataError, match=r"2 of 6 examples are longer than the model's context: e4, e5. Shorten"):
        stage_by_difficulty(rows, num_stages=2, **given)
    with pytest.warns(WorkbenchWarning, match=r"e4, e5. They are left out"):
        made = stage_by_difficulty(rows, num_stages=2, too_long="drop", **given)
    assert sum(len(stage.examples) for stage in made) == 4


def test_agreement_is_spearmans_rank_correlation() -> None:
    measures = {"a": [1, 2, 3, 4.0], "b": [10, 9, 8, 1], "c": [1, 1, 2, 5], "d": [7, 7, 7, math.nan]}
    rows = {(row["first"], row["second"]): row for row in agreement(measures)}
    assert rows["a", "b"]["rho"] == pytest.approx(-1)
    # Ranks 1 2 3 4 against 1.5 1.5 3 4: covariance 4.5, variances 5 and 4.5.
    assert rows["a", "c"]["rho"] == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert math.isnan(rows["a", "d"]["rho"])
    assert rows["a", "d"]["n"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "loss"}, "by='loss' needs model= and tokenizer="),
        ({"by": "hardness"}, "by='hardness' is no measure; use loss, length, rarity, a column"),
        ({"by": "skill", "order": ["x"]}, "skill has the label 'ner', and order="),
        ({"by": "length", "too_long": "cut"}, "too_long='cut'"),
        ({"by": "length", "borders": [9.0]}, "give stages of .* borders must rise"),
        ({"by": "length", "borders": [2.0, 1.0]}, "borders must rise"),
        ({"by": "length", "names": ["a"]}, r"names=\['a'\] for 3 stages"),
    ],
)
def test_bad_input_is_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        stage_by_difficulty([example(i, "w " * (i + 1)) for i in range(4)], **arguments)
