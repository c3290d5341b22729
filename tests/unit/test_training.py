"""train: answers only, every kind of adapter, both trainers, the same numbers again."""

import json
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from peft import AdaLoraConfig, LoraConfig, PeftModel
from pico_language import byte_tokenizer, pico
from safetensors.torch import load_file

from workbench.adapters import LoraMoeConfig
from workbench.errors import ConfigError, DataError, WorkbenchWarning
from workbench.evaluation import evaluate
from workbench.records import Example
from workbench.training import TrainingFailed, train

TARGETS = ["q_proj", "v_proj"]
ADAPTERS = {
    "lora": LoraConfig(r=2, lora_dropout=0.1, target_modules=TARGETS),
    "adalora": AdaLoraConfig(init_r=3, target_r=1, tinit=1, tfinal=1, total_step=99, target_modules=TARGETS),
    "moe": LoraMoeConfig(
        r=2, num_experts=3, num_experts_per_tok=2, contrastive_loss_coef=0.01, queue_size=8, target_modules=TARGETS
    ),
}


def examples(n=7):
    return [Example(id=f"e{i}", skill="qa", query=f"say {i}", answer="ab" * (1 + i % 3)) for i in range(n)]


def run(tmp_path, *, model=None, data=None, adapter="lora", name="run", **settings):
    settings = {"steps": 5, "batch_size": 2, "lr": 1e-2, "save_every": 5, "progress": False} | settings
    return train(
        model or pico(),
        byte_tokenizer(chat=True),
        examples() if data is None else data,
        adapter=ADAPTERS[adapter] if isinstance(adapter, str) else adapter,
        output_dir=tmp_path / name,
        **settings,
    )


def weights(finished):
    return load_file(finished.folder / "adapter_model.safetensors")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_one_call_trains_any_adapter_and_saves_plain_peft(tmp_path, adapter, trainer):
    done = run(tmp_path, adapter=adapter, trainer=trainer, validation=examples(2), eval_every=2)
    assert done.state == "finished"
    assert done.step == 5
    assert [row["step"] for row in done.history if "eval_loss" in row] == [2, 4, 5]
    assert all(math.isfinite(row["loss"]) for row in done.history if "loss" in row)
    assert not list(done.folder.rglob("*.bin"))
    loaded = PeftModel.from_pretrained(pico(), done.folder).eval()
    ids = torch.tensor([[2, 70, 80, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, done.model(input_ids=ids).logits)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, adapter):
    one, two = (run(tmp_path, adapter=adapter, name=name) for name in ("one", "two"))
    other = run(tmp_path, adapter=adapter, name="other", seed=1)
    assert same(weights(one), weights(two))
    assert one.history == two.history
    assert not same(weights(one), weights(other))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_both_trainers_take_the_same_steps(tmp_path, adapter):
    plain, trl = (run(tmp_path, adapter=adapter, name=kind, trainer=kind) for kind in ("transformers", "trl"))
    losses = [[row["loss"] for row in one.history] for one in (plain, trl)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_loss_counts_answer_tokens_and_the_end_alone(tmp_path):
    model, tokenizer, data = pico(), byte_tokenizer(chat=True), examples(2)
    total = count = 0
    for example in data:
        prompt = tokenizer(f"<user>{example.query}<answer>", add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(example.answer)["input_ids"], tokenizer.eos_token_id]
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(F.cross_entropy(logits.detach(), torch.tensor(answer), reduction="sum"))
        count += len(answer)
    done = run(tmp_path, data=data, steps=1, adapter=LoraConfig(r=2, target_modules=TARGETS))
    assert done.history[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_accumulated_batches_take_the_step_of_one_large_batch(tmp_path):
    data = examples(4)
    plain = LoraConfig(r=2, target_modules=TARGETS)
    whole = run(tmp_path, data=data, adapter=plain, batch_size=4, steps=3, name="whole")
    parts = run(tmp_path, data=data, adapter=plain, batch_size=1, gradient_accumulation_steps=4, steps=3, name="parts")
    assert [row["loss"] for row in parts.history] == pytest.approx([row["loss"] for row in whole.history], rel=1e-4)


def test_routing_losses_entropy_and_load_are_logged_one_by_one(tmp_path):
    for row in run(tmp_path, adapter="moe").history:
        parts = row["answer_loss"] + row["balance"] + row["contrastive"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert 0 <= row["routing_entropy"] <= 1
        assert len(row["expert_load"]) == 4
        assert all(sum(load) == pytest.approx(1, abs=1e-3) and len(load) == 3 for load in row["expert_load"].values())


def test_routers_see_where_the_answer_begins(tmp_path):
    config = LoraMoeConfig(r=2, num_experts=2, num_experts_per_tok=1, routing="sequence", target_modules=TARGETS)
    short, long = ([Example(id="e", skill="qa", query="say", answer=text)] for text in ("a", "abcdef"))
    loads = [
        run(tmp_path, data=data, adapter=config, steps=1, name=name).history[0]["routing_entropy"]
        for name, data in (("short", short), ("long", long))
    ]
    assert loads[0] == pytest.approx(loads[1], rel=1e-6)


def test_adalora_ranks_shrink_to_the_target(tmp_path):
    history = run(tmp_path, adapter="adalora", steps=6).history
    means = [row["mean_rank"] for row in history]
    assert means[0] == 3
    assert means[-1] == pytest.approx(1, abs=0.3)
    assert means == sorted(means, reverse=True)
    assert set(history[0]["ranks"]) == {f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in TARGETS}
    assert ADAPTERS["adalora"].total_step == 99, "the caller's configuration is left as it is"


def test_adalora_does_not_train_its_rank_over_a_bfloat16_base(tmp_path):
    done = run(tmp_path, adapter="adalora", model=pico().to(torch.bfloat16))
    ranks = {name: tensor for name, tensor in done.model.named_parameters() if "ranknum" in name}
    assert ranks
    assert all(tensor.item() == int(tensor.item()) and not tensor.requires_grad for tensor in ranks.values())


def test_without_an_adapter_the_model_itself_is_trained(tmp_path):
    before = pico().model.layers[0].self_attn.q_proj.weight
    done = run(tmp_path, adapter=None, steps=2)
    assert not torch.equal(done.model.model.layers[0].self_attn.q_proj.weight, before)
    again = run(tmp_path, adapter=None, steps=2)
    assert torch.equal(done.model.lm_head.weight, again.model.lm_head.weight)
    assert (done.folder / "model.safetensors").is_file()


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
def test_the_model_is_left_as_it_was_found(tmp_path, trainer):
    model = pico()
    model.config.use_cache = True
    done = run(tmp_path, model=model, trainer=trainer, steps=1, bf16=True)
    assert model.config.use_cache is True
    assert not done.model.training
    assert "forward" not in vars(model) | vars(done.model)
    assert not model._forward_pre_hooks
    assert not done.model._forward_hooks
    assert done.model(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float32


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_gradient_checkpointing_changes_no_number(tmp_path, adapter):
    config = {"lora": LoraConfig(r=2, target_modules=TARGETS)}.get(adapter, ADAPTERS[adapter])
    plain, saving = (
        run(tmp_path, adapter=config, name=str(on), gradient_checkpointing=on, steps=3) for on in (False, True)
    )
    assert [r["loss"] for r in saving.history] == pytest.approx([r["loss"] for r in plain.history], rel=1e-5)


def test_bfloat16_trains(tmp_path):
    done = run(tmp_path, model=pico().to(torch.bfloat16), steps=3)
    assert done.history[-1]["loss"] < 20


def test_hooks_see_ids_and_losses_and_may_add_a_loss(tmp_path):
    seen = []

    def extra(model, batch):
        assert model(**batch.inputs).logits.requires_grad
        return {"mine": sum(p.square().sum() for p in model.parameters() if p.requires_grad)}

    done = run(tmp_path, steps=2, batch_size=3, extra_losses=extra, on_batch=seen.append)
    assert [batch.step for batch in seen] == [1, 2]
    assert all(len(batch.ids) == 3 and set(batch.ids) <= {e.id for e in examples()} for batch in seen)
    assert all(batch.losses.shape == (3,) and not batch.losses.requires_grad for batch in seen)
    row = done.history[0]
    assert row["loss"] == pytest.approx(row["answer_loss"] + row["mine"], rel=1e-5)


def test_a_loss_without_gradient_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"loss 'mine' is 1 and has no gradient.*no_grad"):
        run(tmp_path, extra_losses=lambda model, batch: {"mine": torch.tensor(1.0)})


def test_evaluate_hook_takes_numbers_and_scores(tmp_path):
    task = {"qa": examples(2)}
    measure = lambda model: evaluate(model, byte_tokenizer(chat=True), task, progress=False)  # noqa: E731
    done = run(tmp_path, steps=4, evaluate=measure, eval_every=2)
    rows = [row for row in done.history if "eval_qa" in row]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(0 <= row["eval_qa"] <= 1 for row in rows)
    assert [row["step"] for row in done.history if "loss" in row] == [1, 2, 3, 4]


def test_history_is_written_as_it_grows(tmp_path):
    told = []
    done = run(tmp_path, on_log=told.append)
    lines = (done.folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == done.history == told
    assert [row["step"] for row in told] == [1, 2, 3, 4, 5]
    assert "finished, step 5 of 5, loss" in repr(done)


def test_a_run_in_the_background_can_be_stopped_and_goes_on(tmp_path):
    begun = threading.Event()
    one = run(tmp_path, steps=400, wait=False, on_log=lambda row: begun.set(), log_every=1, save_every=100)
    assert begun.wait(60)
    one.stop()
    assert one.wait(60)
    assert one.state == "stopped"
    assert 0 < one.step < 400


def test_bad_data_is_refused_before_anything_is_written(tmp_path):
    long = Example(id="long", skill="qa", query="x" * 70, answer="y")
    with pytest.raises(DataError, match=r"examples is empty; training needs at least one"):
        run(tmp_path, data=[])
    with pytest.raises(DataError, match=r"1 of 8 examples have no answer, e\.g\. 'none'"):
        run(tmp_path, data=[*examples(), Example(id="none", skill="qa", query="q", answer=" ")])
    with pytest.raises(
        DataError, match=r"1 of 8 examples have more than 64 tokens .*\(up to 74\): 'long'.*too_long='drop'"
    ):
        run(tmp_path, data=[*examples(), long])
    with pytest.raises(DataError, match=r"1 of 1 validation examples have more than 64"):
        run(tmp_path, validation=[long])
    with pytest.raises(ConfigError, match=r"max_length=99 exceeds the model's context of 64"):
        run(tmp_path, max_length=99)
    assert not (tmp_path / "run").exists()
    with pytest.warns(WorkbenchWarning, match=r"1 of 8 examples .* 'long'\. They are left out"):
        done = run(tmp_path, data=[*examples(), long], too_long="drop")
    assert done.dropped == ("long",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: it must be at least 1"),
        ({"epochs": 0.0, "steps": None}, "epochs=0.0: it must be above 0"),
        ({"epochs": 1}, "steps=5 and epochs=1 say the length twice"),
        ({"lr": 0.0}, "lr=0.0, max_grad_norm=1.0: both must be above 0"),
        ({"warmup": 1.0}, "warmup=1.0, weight_decay=0.0: the first is a share"),
        ({"trainer": "mine"}, "trainer='mine' is unknown; use one of transformers, trl"),
        ({"learning_rate": 1.0}, "train has no argument 'learning_rate'; its settings are steps, epochs"),
        ({"curriculum": []}, "give either examples or a curriculum"),
        ({"adapter": AdaLoraConfig(init_r=4, target_r=1, tinit=3, tfinal=2, total_step=9)}, "tinit=3, tfinal=2 for 5"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        run(tmp_path, **settings)


def test_a_model_that_carries_an_adapter_or_is_frozen_is_refused(tmp_path):
    done = run(tmp_path, steps=1)
    with pytest.raises(ConfigError, match=r"carries an adapter already.*run\.model\.unload\(\)"):
        run(tmp_path, model=done.model, name="two")
    going_on = run(tmp_path, model=done.model, adapter=None, steps=1, name="three")
    assert not same(weights(done), weights(going_on))
    with pytest.raises(ConfigError, match=r"no weight of the model is trainable"):
        run(tmp_path, model=pico().requires_grad_(False), adapter=None, name="four")


def test_a_loss_that_is_no_number_stops_and_names_step_and_examples(tmp_path):
    def spoil(model, batch):
        return {"mine": torch.tensor(float("nan" if batch.step == 4 else 0.0), requires_grad=True)}

    with pytest.raises(
        TrainingFailed, match=r"the loss is nan \(answers .*, mine nan\) at step 4 on the examples 'e\d'"
    ):
        run(tmp_path, extra_losses=spoil, save_every=1)
    kept = tmp_path / "run" / "checkpoints" / "stage-00" / "checkpoint-3"
    assert all(t.isfinite().all() for t in load_file(kept / "adapter_model.safetensors").values())


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path):
    def spoil(model, batch):
        weight = next(p for p in model.parameters() if p.requires_grad)
        return {"mine": (weight - weight.detach()).sum().sqrt() * 0 if batch.step == 2 else weight.sum() * 0}

    with pytest.raises(TrainingFailed, match=r"a gradient is not a number at step 2 on the examples 'e"):
        run(tmp_path, extra_losses=spoil)
