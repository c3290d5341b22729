"""Streams and batches of answers: the tokens that transformers writes, stopped when asked, no broken character."""

import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_adapters import trained
from pico_language import EOS, Scripted, byte_tokenizer, pico
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.adapters import LoraMoeConfig
from workbench.errors import ConfigError, ModelError
from workbench.generation import encode_prompt, generate_batch, stream

TOKENIZER = byte_tokenizer()
PROMPTS = ["a", "What helps against asthma?", "héllo 😀", "x" * 31]


def reference(model, prompt: str, count: int) -> str:
    """What transformers itself writes."""
    ids = torch.tensor([encode_prompt(TOKENIZER, prompt)])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return TOKENIZER.decode(written[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd")


def final(*args, **kwargs) -> str:
    return [*stream(*args, **kwargs)][-1]


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_stream_is_what_transformers_writes(prompt):
    model = pico()
    assert final(model, TOKENIZER, prompt, max_new_tokens=9) == reference(model, prompt, 9)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi"])
def test_a_batch_writes_what_each_prompt_alone_would(kind):
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 260}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2 if kind == "phi" else 1, "head_dim": 12}
    window = {} if kind in ("llama", "qwen2", "qwen3", "phi") else {"sliding_window": 16}
    config = AutoConfig.for_model(
        kind, **sizes, **heads, **window, initializer_range=0.4, max_position_embeddings=64, eos_token_id=EOS
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    alone = [final(model, TOKENIZER, prompt, max_new_tokens=7) for prompt in PROMPTS]
    assert generate_batch(model, TOKENIZER, PROMPTS, max_new_tokens=7, batch_size=3) == alone


def routed_by_prompt():
    config = LoraMoeConfig(r=4, num_experts=3, routing="sequence", target_modules=["q_proj", "up_proj"])
    return trained(pico(seed=5), config)


@pytest.mark.parametrize("make", [lambda: pico(seed=5), routed_by_prompt], ids=["plain", "routed by prompt"])
def test_rows_that_end_early_leave_the_batch_and_the_others_go_on(make):
    model = make()
    # What the first answer ends in becomes an end token, so that some rows end sooner than others.
    last = ids_of(final(model, TOKENIZER, PROMPTS[0], max_new_tokens=20))[-1]
    model.generation_config.eos_token_id = [EOS, last]
    cut = [[*stream(model, TOKENIZER, prompt, max_new_tokens=20)] for prompt in PROMPTS]
    assert len({len(texts) for texts in cut}) > 1
    batch = generate_batch(model, TOKENIZER, PROMPTS, max_new_tokens=20, batch_size=4)
    assert batch == [texts[-1] if texts else "" for texts in cut]


def test_a_batch_keeps_the_order_and_reports_progress():
    seen = []
    model = pico()
    answers = generate_batch(model, TOKENIZER, PROMPTS, max_new_tokens=3, batch_size=3, progress=seen.append)
    assert answers == [final(model, TOKENIZER, prompt, max_new_tokens=3) for prompt in PROMPTS]
    assert seen == [3, 1]
    assert generate_batch(model, TOKENIZER, [], max_new_tokens=3) == []


@pytest.mark.parametrize("eos", [EOS, [7, EOS], None])
def test_the_end_token_ends_the_answer(eos):
    model = Scripted([*ids_of("ok"), EOS, *ids_of("never")], eos=eos)
    assert [*stream(model, TOKENIZER, "q")] == ["o", "ok"]
    assert model.calls == 3


def test_a_chat_models_own_end_counts_too():
    dot = ids_of(".")[0]
    assert [*stream(Scripted(ids_of("ok.no"), eos=[dot]), TOKENIZER, "q")] == ["o", "ok"]


def test_a_character_appears_when_its_last_byte_is_there():
    texts = [*stream(Scripted([*ids_of("a😀é"), EOS]), TOKENIZER, "q")]
    assert texts == ["a", "a", "a", "a", "a😀", "a😀", "a😀é"]


def test_an_unfinished_character_at_the_end_is_dropped():
    assert [*stream(Scripted([*ids_of("a😀")[:3], EOS]), TOKENIZER, "q")] == ["a", "a", "a"]


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=12))
def test_each_text_begins_with_the_one_before(text):
    texts = [*stream(Scripted([*ids_of(text), EOS], context=256), TOKENIZER, "q", max_new_tokens=60)]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == text.rstrip("\ufffd")


def test_stop_ends_within_a_token():
    stop, model = threading.Event(), Scripted(ids_of("a" * 40))
    texts = stream(model, TOKENIZER, "q", stop=stop)
    assert next(texts) == "a"
    stop.set()
    assert [*texts] == []
    assert model.calls == 1


def test_sampling_follows_its_seed():
    model = pico()
    runs = [final(model, TOKENIZER, "hi", temperature=1.0, seed=seed, max_new_tokens=12) for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len(set(runs)) > 1


def test_sampling_does_not_touch_the_global_generator():
    model = pico()
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    final(model, TOKENIZER, "hi", temperature=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_chat_template_is_applied_once_and_adds_the_only_special_tokens():
    tokenizer = byte_tokenizer(chat=True)
    assert tokenizer.decode(encode_prompt(tokenizer, "hi")) == "<user>hi<answer>"
    chat = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert tokenizer.decode(encode_prompt(tokenizer, chat)) == "<user>a<user>b<answer>"
    assert tokenizer.decode(encode_prompt(TOKENIZER, "hi")) == "hi\n"


def test_the_answer_ends_with_the_context():
    model = pico(context=12)
    model.generation_config.eos_token_id = None
    # 9 tokens of prompt leave positions for 3 more inputs, and the last output needs none.
    assert len([*stream(model, TOKENIZER, "x" * 8, max_new_tokens=50)]) == 4
    assert generate_batch(model, TOKENIZER, ["x" * 8], max_new_tokens=50) == [final(model, TOKENIZER, "x" * 8)]


def test_a_prompt_longer_than_the_context_names_both_lengths():
    with pytest.raises(ConfigError, match=r"the prompt has 65 tokens and the model's context holds 64; shorten"):
        stream(pico(), TOKENIZER, "x" * 64)
    with pytest.raises(ConfigError, match=r"65 tokens .* 64"):
        generate_batch(pico(), TOKENIZER, ["short", "x" * 64])


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"temperature": -0.1}])
def test_stream_refuses_bad_arguments_at_once(bad):
    with pytest.raises(ConfigError, match="must be at least 1 and at least 0"):
        stream(pico(), TOKENIZER, "hi", **bad)


def test_batch_refuses_bad_arguments():
    with pytest.raises(ConfigError, match="max_new_tokens=3, batch_size=0: both must be at least 1"):
        generate_batch(pico(), TOKENIZER, ["hi"], max_new_tokens=3, batch_size=0)


def test_scores_that_are_no_numbers_are_an_error():
    model = pico()
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ModelError, match=r"1 of the model's 260 scores are not finite"):
        final(model, TOKENIZER, "hi")


def test_a_training_model_is_put_back_into_training():
    model = pico().train()
    texts = stream(model, TOKENIZER, "hi", max_new_tokens=5)
    next(texts)
    assert not model.training
    texts.close()
    assert model.training
    generate_batch(model, TOKENIZER, ["hi"], max_new_tokens=2)
    assert model.training
