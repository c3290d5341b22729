"""Requests of many people to many variants: nobody gets another's answer, an error or a stop stays where it belongs."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pico_adapters import lora, saved, trained
from pico_language import EOS, byte_tokenizer, pico
from transformers import DynamicCache

from workbench.adapters import LoraMoeConfig
from workbench.errors import ConfigError, MergeError
from workbench.generation import Request, Scheduler, make_variants, stream, surprise
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.merging.spectrum import RatioSpectrum
from workbench.routing.capture import capture_routing

TOKENIZER = byte_tokenizer()
PROMPTS = ["a", "What helps against asthma?", "héllo 😀", "x" * 31]
RECIPE = MergeRecipe(parents=["x/a", "x/b"], method="slerp", weights=[0.5, 0.5])


def solo(model, prompt, **settings):
    return [*stream(model, TOKENIZER, prompt, **settings)][-1]


def scheduler(variants, **settings):
    return Scheduler(make_variants(variants, TOKENIZER), **settings)


def ended(answers):
    assert all(answer.wait(60) for answer in answers)
    return [answer.state for answer in answers]


def endless(pause=0.0):
    """A model that never ends its answer, and takes its time."""
    model = pico(context=4000)
    model.lm_head.weight.data[EOS] = 0
    model.register_forward_pre_hook(lambda *_: time.sleep(pause))
    return model


def parents():
    return [pico(seed=1), pico(seed=2)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_that_share_a_batch_are_those_of_a_stream(temperature):
    model = pico()
    settings = {"max_new_tokens": 9, "temperature": temperature, "seed": 5}
    with scheduler({"pico": model}, max_rows=3) as one:
        answers = [one.submit(Request("pico", prompt, **settings)) for prompt in PROMPTS * 2]
        assert set(ended(answers)) == {"done"}
        counts = one.stats()
    assert [answer.text for answer in answers] == [solo(model, prompt, **settings) for prompt in PROMPTS * 2]
    assert (counts["done"], counts["writing"], counts["waiting"]) == (8, 0, 0)
    assert counts["steps"] < counts["tokens"] == sum(len(answer.token_ids) for answer in answers)
    assert all(0 < answer.first_token_s <= answer.seconds for answer in answers)


@pytest.mark.parametrize("kind", [lambda live: live, lambda live: RatioSpectrum(RECIPE, live=live)])
def test_thirty_people_with_thirty_ratios_never_see_each_others_blend(kind):
    reference, live = LiveMerge(RECIPE, models=parents()), LiveMerge(RECIPE, models=parents())
    ratios = [i / 29 for i in range(30)]
    expected = []
    for ratio in ratios:
        reference.apply(RECIPE.with_ratio(ratio))
        expected.append(solo(reference.model, PROMPTS[1], max_new_tokens=6))
    with scheduler({"merged": kind(live)}, max_rows=7) as one, ThreadPoolExecutor(30) as people:

        def ask(ratio):
            answer = one.submit(Request("merged", PROMPTS[1], max_new_tokens=6, ratio=ratio))
            assert answer.wait(60)
            return answer.text

        assert list(people.map(ask, ratios)) == expected
    assert len(set(expected)) > 3
    assert live.recipe == RECIPE


def test_a_slider_moved_elsewhere_changes_no_answer_under_way():
    live, reference = LiveMerge(RECIPE, models=parents()), LiveMerge(RECIPE.with_ratio(0.2), models=parents())
    with scheduler({"merged": live}) as one:
        answers = [one.submit(Request("merged", "x" * 31, max_new_tokens=30, ratio=0.2)) for _ in range(3)]
        while not all(answer.wait(0) for answer in answers):
            live.apply(RECIPE.with_ratio(0.9))
            time.sleep(0.02)
    assert {answer.text for answer in answers} == {solo(reference.model, "x" * 31, max_new_tokens=30)}
    assert live.recipe == RECIPE.with_ratio(0.9)


def test_a_recipe_of_other_parents_fails_its_own_answer_only():
    other = MergeRecipe(parents=["x/a", "x/c"], method="linear", weights=[0.5, 0.5])
    with scheduler({"merged": LiveMerge(RECIPE, models=parents())}) as one:
        answers = [one.submit(Request("merged", "x", max_new_tokens=3, recipe=recipe)) for recipe in (other, None)]
        assert ended(answers) == ["failed", "done"]
    assert answers[0].error.startswith("The recipe's parents are ['x/a', 'x/c']")


def test_a_stop_ends_an_answer_within_a_token_and_frees_its_row():
    with scheduler({"slow": endless(0.01)}) as one:
        first, second = (one.submit(Request("slow", prompt, max_new_tokens=3000)) for prompt in "ab")
        while not first.token_ids or not second.token_ids:
            time.sleep(0.01)
        count = len(first.token_ids)
        first.stop()
        assert first.wait(5)
        assert first.state == "stopped"
        assert len(first.token_ids) <= count + 2
        assert one.stats()["writing"] == 1
        assert not second.wait(0.1)
    assert second.state == "stopped"


def test_variants_that_fail_fail_alone():
    broken, raising, good = pico(), pico(), pico()
    broken.lm_head.weight.data[7] = float("nan")
    raising.register_forward_pre_hook(lambda *_: 1 / 0)
    with scheduler({"broken": broken, "raising": raising, "good": good, "small": pico(context=20)}) as one:
        ask = [("broken", "x"), ("raising", "x"), ("good", "x"), ("small", "x" * 30), ("small", "x")]
        answers = [one.submit(Request(name, prompt, max_new_tokens=4)) for name, prompt in ask]
        assert ended(answers) == ["failed", "failed", "done", "failed", "done"]
        assert one.stats()["failed"] == 3
    assert answers[0].error.startswith("1 of the model's 260 scores are not finite")
    assert answers[1].error == "ZeroDivisionError: division by zero"
    assert "the prompt has 31 tokens and the model's context holds 20" in answers[3].error


def test_one_row_that_breaks_the_first_pass_does_not_break_those_who_came_with_it():
    model = pico()

    def refuse(_, args, kwargs):
        if (kwargs["input_ids"] == ord("!")).any() or kwargs["input_ids"].shape[1] == 5:
            raise RuntimeError("too much")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    engine = make_variants({"m": model}, TOKENIZER)["m"]
    with Scheduler({"m": engine}) as one:
        answers = [one.submit(Request("m", prompt, max_new_tokens=3)) for prompt in ("x" * 4, "x", "y")]
        ended(answers)
    assert [answer.state for answer in answers] == ["failed", "done", "done"]
    assert answers[0].error == "RuntimeError: too much"


def test_the_queue_is_bounded_and_tells_each_its_place():
    with scheduler({"slow": endless(0.01)}, max_rows=1, max_waiting=2) as one:
        running = one.submit(Request("slow", "a", max_new_tokens=3000))
        while not running.token_ids:
            time.sleep(0.01)
        second, third, fourth = (one.submit(Request("slow", "b", max_new_tokens=2)) for _ in range(3))
        assert (running.place, second.place, third.place) == (0, 1, 2)
        assert (fourth.state, fourth.error) == ("failed", "2 requests are waiting already; ask again later")
        second.stop()
        assert (second.state, third.place) == ("stopped", 1)
        running.stop()
        assert ended([third]) == ["done"]


def test_closing_stops_everyone_and_refuses_more():
    one = scheduler({"slow": endless(0.01)}, max_rows=1)
    answers = [one.submit(Request("slow", "a", max_new_tokens=3000)) for _ in range(3)]
    one.close()
    one.close()
    assert [answer.state for answer in answers] == ["stopped"] * 3
    with pytest.raises(ConfigError, match="was closed; make a new Scheduler"):
        one.submit(Request("slow", "a"))


def test_caches_are_freed_when_answers_end():
    def caches():
        gc.collect()
        return sum(type(one) is DynamicCache for one in gc.get_objects())

    before = caches()
    with scheduler({"pico": pico(), "merged": LiveMerge(RECIPE, models=parents())}) as one:
        for _ in range(2):
            ended([one.submit(Request(name, "x", max_new_tokens=5)) for name in ("pico", "merged") for _ in range(6)])
            # The thread lets go of a cache just after it has told of the last answer.
            patience = time.monotonic() + 20
            while (one.stats()["writing"] or caches() != before) and time.monotonic() < patience:
                time.sleep(0.01)
            assert caches() == before


@pytest.mark.parametrize("routing", ["token", "sequence"])
def test_the_routing_of_an_answer_is_that_of_its_own_rows(routing):
    config = LoraMoeConfig(r=4, num_experts=3, routing=routing, target_modules=["q_proj", "up_proj"])
    model = trained(pico(), config)
    with scheduler({"moe": model}, max_rows=3) as one:
        answers = [one.submit(Request("moe", prompt, max_new_tokens=7)) for prompt in PROMPTS]
        ended(answers)
    for answer, prompt in zip(answers, PROMPTS):
        with capture_routing(model) as trace:
            solo(model, prompt, max_new_tokens=7)
        assert trace.tokens.keys() == answer.routing.tokens.keys()
        assert all(torch.equal(trace.tokens[name], column) for name, column in answer.routing.tokens.items())
        for name, output in trace.routers.items():
            for part, value in vars(output).items():
                torch.testing.assert_close(getattr(answer.routing.routers[name], part), value)


def test_folders_of_adapters_share_their_base(tmp_path):
    base = pico()
    configs = {
        "lora": lora(),
        "thin": lora(r=1, use_rslora=True),
        "dora": lora(use_dora=True),
        "moe": LoraMoeConfig(r=4, num_experts=3, target_modules=["q_proj"]),
    }
    tuned = {name: saved(base, config, tmp_path / name) for name, config in configs.items()}
    variants = make_variants({"base": base} | {name: (base, tmp_path / name) for name in configs}, TOKENIZER)
    assert variants["base"].engine is variants["lora"].engine is variants["thin"].engine
    with Scheduler(variants) as one:
        answers = {name: one.submit(Request(name, PROMPTS[1], max_new_tokens=9)) for name in variants}
        ended(answers.values())
    for name, model in ({"base": base} | tuned).items():
        assert answers[name].text == solo(model, PROMPTS[1], max_new_tokens=9), name
    assert answers["moe"].routing is not None
    assert answers["base"].routing is None


def test_surprise_is_the_loss_in_bits_and_follows_the_recipe():
    model, live = pico(seed=1), LiveMerge(RECIPE, models=parents())
    ids = torch.tensor([TOKENIZER("Why?\nbecause")["input_ids"]])
    labels = ids.clone()
    labels[:, :5] = -100
    loss = model(input_ids=ids, labels=labels).loss
    bits = surprise(model, TOKENIZER, "Why?", "because")
    torch.testing.assert_close(bits.mean() * torch.log(torch.tensor(2.0)), loss.detach())
    assert surprise(model, TOKENIZER, "Why?", "").shape == (0,)
    with scheduler({"merged": live}) as one:
        first = one.surprise(Request("merged", "Why?", ratio=0.0), "because")
        with pytest.raises(ConfigError, match=r"5 \+ 99 tokens and the model's context holds 64"):
            one.surprise(Request("merged", "Why?"), "x" * 99)
        with pytest.raises(MergeError, match="parents"):
            one.surprise(Request("merged", "Why?", recipe=MergeRecipe(parents=["y", "z"], weights=[1, 1])), "x")
    torch.testing.assert_close(first, bits)
    assert live.recipe == RECIPE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"messages": ""}, "nothing to answer"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"ratio": 0.5, "recipe": RECIPE}, "pass one of the two"),
    ],
)
def test_a_request_out_of_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Request(**({"variant": "m", "messages": "x"} | settings))


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (lambda: {}, "nothing to compare"),
        (lambda: {"m": 3}, "variant 'm' is a int; pass a transformers or PEFT model"),
        (lambda: {"m": (trained(pico(), lora()), "two")}, "no adapter 'two'; the model has default"),
    ],
)
def test_what_cannot_answer_is_refused(variants, message):
    with pytest.raises(ConfigError, match=message):
        make_variants(variants(), TOKENIZER)


def test_wrong_names_and_ratios_are_said():
    with scheduler({"pico": pico()}) as one:
        with pytest.raises(ConfigError, match="no variant 'nano'; there are pico"):
            one.submit(Request("nano", "x"))
        answer = one.submit(Request("pico", "x", ratio=0.5))
        assert ended([answer]) == ["failed"]
    assert "'pico' is no merge" in answer.error
    with pytest.raises(ConfigError, match="max_rows=0"):
        Scheduler(one.variants, max_rows=0)


def test_many_threads_may_submit_and_stop_at_once():
    model = pico()
    with scheduler({"a": model, "b": pico(seed=1)}, max_rows=5) as one:
        answers, lock = [], threading.Lock()

        def use(person):
            for i in range(4):
                answer = one.submit(Request("ab"[person % 2], PROMPTS[i], max_new_tokens=8))
                if (person + i) % 3 == 0:
                    answer.stop()
                with lock:
                    answers.append(answer)

        with ThreadPoolExecutor(8) as people:
            list(people.map(use, range(8)))
        assert set(ended(answers)) <= {"done", "stopped"}
        while one.stats()["writing"]:
            time.sleep(0.01)
        counts = one.stats()
    assert counts["done"] + counts["stopped"] == 32
