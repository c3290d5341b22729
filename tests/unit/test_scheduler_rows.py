"""Rows that join and leave a running batch in any order: each writes what it writes alone, noise included."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico_adapters import adalora, lora, trained
from pico_language import EOS, byte_tokenizer, pico
from transformers import AutoConfig, AutoModelForCausalLM

from workbench.adapters import LoraMoeConfig
from workbench.generation import Answer, Request, make_variants, stream
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.merging.spectrum import RatioSpectrum

TOKENIZER = byte_tokenizer()
PROMPTS = ["a", "What helps against asthma?", "héllo 😀", "x" * 31]
RECIPE = MergeRecipe(parents=["x/a", "x/b"], method="slerp", weights=[0.5, 0.5])
RATIOS = [0.0, 0.3, 0.8]


@functools.cache
def models(kind):
    """Return the variants of one engine, and what writes each one's solo answer."""
    if kind == "window":
        sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 260}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "sliding_window": 8}
        torch.manual_seed(3)
        config = AutoConfig.for_model(
            "gemma2", **sizes, **heads, initializer_range=0.4, max_position_embeddings=64, eos_token_id=EOS
        )
        model = AutoModelForCausalLM.from_config(config).eval()
        return {"m": model}, {"m": lambda: model}
    if kind in LONELY:
        return lonely(kind)
    if kind in ("mixture", "by sequence"):
        routing = "token" if kind == "mixture" else "sequence"
        targets = ["q_proj", "up_proj"]
        model = trained(pico(), LoraMoeConfig(r=4, num_experts=3, routing=routing, target_modules=targets))
        return {"m": model}, {"m": lambda: model}
    if kind in ("lora", "dora"):
        return peft(lora(), lora(r=2, use_rslora=True, use_dora=kind == "dora"))
    if kind == "head":
        return peft(lora(modules_to_save=["lm_head"]), lora(r=2))
    if kind == "adalora":
        return peft(adalora(inference_mode=True), adalora(init_r=2, target_r=1, inference_mode=True))
    live = LiveMerge(RECIPE, models=[pico(seed=1), pico(seed=2)])
    given = RatioSpectrum(RECIPE, live=live) if kind == "spectrum" else live

    def merged(ratio):
        live.apply(RECIPE.with_ratio(ratio))
        return live.model

    return {"m": given}, {"m": merged}


def lonely(kind):
    """A model whose rows cannot join others': each is a batch of its own, and they take turns."""
    if kind == "recurrent":
        config = AutoConfig.for_model(
            "lfm2",
            vocab_size=260,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.4,
            eos_token_id=EOS,
            layer_types=["conv", "full_attention"],
        )
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        config = pico().config
        config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        config.max_position_embeddings = 48
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config).eval()
    return {"m": model}, {"m": lambda: model}


def peft(first, second):
    model = trained(pico(), first, seed=1)
    model.add_adapter("two", second)
    torch.manual_seed(5)
    for name, tensor in model.named_parameters():
        if ".two" in name and "lora" in name:
            tensor.data += 0.3 * torch.randn_like(tensor)
    base, adapters = model.get_base_model(), {"default": (model, "default"), "two": (model, "two")}

    def only(name):
        model.base_model.set_adapter(name)
        return model.eval()

    def bare():
        model.base_model.disable_adapter_layers()
        return Restored(model)

    return {"bare": base} | adapters, {"bare": bare, "default": lambda: only("default"), "two": lambda: only("two")}


class Restored:
    """The base within a PEFT model: the adapters are back as soon as the one answer is written."""

    def __init__(self, model):
        self.peft = model

    def __getattr__(self, name):
        return getattr(self.peft, name)

    def __call__(self, **inputs):
        return self.peft(**inputs)


@functools.cache
def variants(kind):
    return make_variants(models(kind)[0], TOKENIZER)


@functools.cache
def alone(kind, request):
    make = models(kind)[1][request.variant]
    model = make(request.ratio) if kind in ("live", "spectrum") else make()
    words = [
        *stream(
            model,
            TOKENIZER,
            request.messages,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            seed=request.seed,
        )
    ]
    if isinstance(model, Restored):
        model.peft.base_model.enable_adapter_layers()
    return words[-1] if words else ""


def requests(kind):
    return st.builds(
        Request,
        st.sampled_from(sorted(models(kind)[0])),
        st.sampled_from(PROMPTS),
        max_new_tokens=st.integers(1, 7),
        temperature=st.sampled_from([0.0, 0.8]),
        seed=st.integers(0, 2),
        ratio=st.sampled_from(RATIOS) if kind in ("live", "spectrum") else st.none(),
    )


LONELY = ["recurrent", "long rope"]
KINDS = ["window", "head", "mixture", "by sequence", "lora", "dora", "adalora", "live", "spectrum", *LONELY]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_each_answer_is_the_one_that_its_request_gets_alone(kind, data):
    engine = next(iter(variants(kind).values())).engine
    assert engine.joinable == (kind not in LONELY)
    answers = []
    for what in data.draw(st.lists(st.sampled_from(["join", "join", "turn", "turn", "turn", "stop"]), max_size=16)):
        if what == "join":
            request = data.draw(requests(kind))
            answers.append(Answer(request, TOKENIZER, lambda _: None))
            answers[-1].state = "writing"
            engine.add(variants(kind)[request.variant].row(answers[-1]))
        elif what == "turn" and engine.lanes:
            engine.turn()
        elif what == "stop" and answers:
            data.draw(st.sampled_from(answers)).stopping = True
            engine.sweep()
    while engine.lanes:
        engine.turn()
    for answer in answers:
        expected = alone(kind, answer.request)
        assert answer.error == ""
        assert answer.text == expected if answer.state == "done" else expected.startswith(answer.text)
