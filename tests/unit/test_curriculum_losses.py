"""Consistency with the stage before, the specialist half, and a curriculum under the real trainer."""

import json
import threading

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from pico_adapters import adalora, llama, lora, trained
from pico_language import byte_tokenizer, pico
from safetensors.torch import load_file

from workbench.adapters import LoraMoeConfig
from workbench.curriculum import losses
from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.losses import answer_losses, consistency_loss, in_fine_tune_half, noisy, snapshot
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Stage
from workbench.errors import ConfigError
from workbench.records import Example
from workbench.training import train
from workbench.training.stages import Part

NAMES = ("general", "broad", "specialist")


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 5, 9, 2, 16], [3, 3, 8, 7, 0]])
    labels = torch.tensor([[-100, -100, 9, 2, 16], [-100, 3, 8, -100, -100]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_answer_losses_count_answers_alone() -> None:
    model, read = llama(), inputs()
    logits = model(input_ids=read["input_ids"]).logits
    logs = logits.log_softmax(-1)
    first = -(logs[0, 1, 9] + logs[0, 2, 2] + logs[0, 3, 16]) / 3
    second = -(logs[1, 0, 3] + logs[1, 1, 8]) / 2
    torch.testing.assert_close(answer_losses(logits, read["labels"]), torch.stack([first, second]))


@pytest.mark.parametrize("kind", ["kl", "hidden"])
def test_consistency_is_zero_at_the_start_and_pulls_back_afterwards(kind) -> None:
    model, read = trained(llama(), lora()), inputs()
    before = snapshot(model)
    assert set(before) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert consistency_loss(model, before, read, kind=kind).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor += 0.1
    gap = consistency_loss(model, before, read, kind=kind)
    gap.backward()
    assert float(gap) > 1e-3
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)


def test_consistency_is_the_divergence_written_out() -> None:
    model, read = trained(llama(), lora(lora_dropout=0.5)), inputs()
    with torch.no_grad():
        old = model(input_ids=read["input_ids"]).logits.softmax(-1)
    before = snapshot(model)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name in before:
                tensor *= 1.5
        new = model(input_ids=read["input_ids"]).logits.softmax(-1)
    model.train()
    gap = consistency_loss(model, before, read)
    assert model.training
    places = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    want = sum(float((old[p] * (old[p] / new[p]).log()).sum()) for p in places) / 5
    assert float(gap) == pytest.approx(want, rel=1e-4)


def test_the_earlier_weights_do_not_disturb_a_graph_that_is_waiting() -> None:
    model, read = trained(llama(), lora()), inputs()
    before = {name: tensor + 0.2 for name, tensor in snapshot(model).items()}

    def gradients(with_consistency: bool) -> list[torch.Tensor]:
        model.zero_grad()
        loss = F.cross_entropy(model(input_ids=read["input_ids"]).logits[0], read["input_ids"][0])
        if with_consistency:
            consistency_loss(model, before, read)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    for plain, beside in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, beside)


def test_what_the_model_said_already_gives_the_same_gap_and_gradient() -> None:
    model, read = trained(llama(), lora()), inputs()
    before = {name: tensor + 0.2 for name, tensor in snapshot(model).items()}
    known = model(input_ids=read["input_ids"]).logits[:, :-1][read["labels"][:, 1:] != -100]
    gaps, gradients = [], []
    for now in (None, known):
        model.zero_grad()
        gaps.append(consistency_loss(model, before, read, now=now))
        gaps[-1].backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gaps)
    torch.testing.assert_close(*gradients)


def test_a_model_is_noisy_with_dropout_or_jitter() -> None:
    assert not noisy(trained(llama(), lora()))
    assert noisy(trained(llama(), LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"])))
    assert noisy(llama(attention_dropout=0.1))
    jitter = LoraMoeConfig(r=2, num_experts=2, router_jitter_noise=0.1, target_modules=["q_proj"])
    assert noisy(trained(llama(), jitter))


def test_the_specialist_halves_are_disjoint_and_fixed() -> None:
    halves = [in_fine_tune_half(f"x{i}") for i in range(1000)]
    assert 430 < sum(halves) < 570
    assert halves == [in_fine_tune_half(f"x{i}") for i in range(1000)]


def rows(name: str, n: int = 12) -> list[Example]:
    return [Example(id=f"{name}{i}", skill=name, query=f"{name[0]}{i}?", answer=f"{i * 7}") for i in range(n)]


def curriculum(stages=None, **changes) -> Curriculum:
    stages = stages or [Stage(name=name, data=rows(name), steps=3) for name in NAMES]
    settings = {"short_term": ShortTermMemory(6), "long_term": LongTermMemory(12), "batch_size": 4, "replay_ratio": 0.5}
    return Curriculum(stages, **(settings | changes))


def learn(folder, made: Curriculum, **changes):
    model = pico(context=48)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return train(
        model, byte_tokenizer(chat=True), curriculum=made, output_dir=folder, adapter=adapter, batch_size=4, lr=1e-2,
        log_every=1, progress=False, **changes,
    )  # fmt: skip


def test_a_curriculum_trains_stage_by_stage(tmp_path) -> None:
    made = curriculum()
    run = learn(tmp_path / "run", made)
    assert [row["step"] for row in made.history] == list(range(1, 10))
    assert {row["stage"] for row in run.history} == set(NAMES)
    gaps = {name: [row["consistency"] for row in made.history if row["stage"] == name] for name in NAMES}
    assert gaps["general"] == [0, 0, 0]
    assert max(gaps["broad"]) > 0 < max(gaps["specialist"])
    assert gaps["broad"][0] == pytest.approx(0, abs=1e-5)  # the stage before is where it starts
    assert any("consistency" in row for row in run.history)
    fine = [row["fine_tune"] for row in made.history]
    assert max(fine[:6]) == 0 < max(fine[6:])
    assert 6 <= len(made.long_term) <= 12
    assert {row["stage"] for row in made.long_term.rows()} == set(NAMES)
    assert made.costs["broad"]["extra_tokens"] > 0 == made.costs["general"]["extra_tokens"]
    assert made.costs["broad"]["extra_trained"] == 0
    json.dumps(made.state_dict())
    kept = sorted((tmp_path / "run" / "checkpoints" / "stage-02").glob("checkpoint-*/curriculum.safetensors"))
    assert load_file(kept[-1]).keys() == made.state_tensors().keys()
    assert kept[-1].with_name("checkpoint.json").stat().st_size < 10_000


def test_consistency_reads_the_batch_again_only_where_it_must(tmp_path, monkeypatch) -> None:
    quick = learn(tmp_path / "quick", curriculum())
    monkeypatch.setattr(losses, "noisy", lambda _: True)
    made = curriculum()
    slow = learn(tmp_path / "slow", made)
    assert made.costs["broad"]["extra_trained"] > 0
    for name, tensor in slow.model.state_dict().items():
        torch.testing.assert_close(quick.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_hooks_that_are_given_stand_in_the_place_of_the_curriculums(tmp_path) -> None:
    made, seen = curriculum(), []

    def both(batch) -> None:
        seen.append(batch.step)
        made.on_batch(batch)

    learn(tmp_path / "both", made, on_batch=both)
    assert seen == [row["step"] for row in made.history] == list(range(1, 10))
    with pytest.raises(ConfigError, match="an on_batch given to train must call"):
        learn(tmp_path / "alone", curriculum(), on_batch=seen.append)


def test_a_weight_on_the_specialist_half_adds_its_term(tmp_path) -> None:
    made = curriculum(fine_tune_coef=2.0, consistency_coef=0.0)
    run = learn(tmp_path / "run", made)
    told = [row for row in run.history if row.get("fine_tune")]
    assert {row["stage"] for row in told} == {"specialist"}
    noted = {row["step"]: row["fine_tune"] for row in made.history}
    # (2 - 1) / 2 of the mean over the half; the term and the note see the same forward, but for rounding.
    assert told[0]["fine_tune"] == pytest.approx(noted[told[0]["step"]] / 2, rel=1e-4)


def test_a_stage_may_freeze_a_part_of_the_adapter(tmp_path) -> None:
    def made() -> Curriculum:
        scales = {"general": None, "broad": {"*": 0.5, "*lora_A*": 0}, "specialist": {"*lora_B*": 4}}
        return curriculum(stages=[Stage(name=n, data=rows(n), steps=3, lr_scales=scales[n]) for n in NAMES])

    run = learn(tmp_path / "run", made(), schedule="constant", warmup=0)
    folders = [tmp_path / "run" / "checkpoints" / f"stage-{k:02d}" / "checkpoint-3" for k in range(3)]
    states = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]) is ("lora_A" in name), name
        assert not torch.equal(states[1][name], states[2][name])
    rates = {row["stage"]: row["learning_rate"] for row in run.history if "learning_rate" in row}
    assert rates == pytest.approx({"general": 1e-2, "broad": 5e-3, "specialist": 1e-2})
    assert all(p.requires_grad for name, p in run.model.named_parameters() if "lora_" in name)
    again, stop = made(), threading.Event()
    keep = again.on_batch
    again.on_batch = lambda batch: (stop.set() if batch.step == 5 else None, keep(batch))
    settings = {"schedule": "constant", "warmup": 0, "save_every": 1}
    assert learn(tmp_path / "broken", again, stop=stop, **settings).state == "stopped"
    resumed = learn(tmp_path / "broken", made(), **settings)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("scales", "message"),
    [({"*lora_C*": 0}, r"'\*lora_C\*', which names no trained weight.*lora_A"), ({"*": 0}, "freezes every weight")],
)
def test_bad_patterns(tmp_path, scales, message) -> None:
    made = curriculum(stages=[Stage(name="a", data=rows("a"), steps=1, lr_scales=scales)])
    with pytest.raises(ConfigError, match=message):
        learn(tmp_path / "run", made)
    kept = {"name": "a", "data": None, "steps": 1, "lr": 1.0, "shuffle": False, "done": None}
    with pytest.raises(ConfigError, match="AdaLoRA adapter, whose ranks follow the gradients of all"):
        Part(**kept, lr_scales={"*lora_A*": 0}).scales(trained(llama(), adalora()))


def test_a_stopped_run_goes_on_as_the_unbroken_one(tmp_path) -> None:
    whole = learn(tmp_path / "whole", curriculum(), save_every=1)

    class Enough(Exception):
        pass

    made = curriculum()
    keep = made.on_batch

    def fail_at_six(batch) -> None:
        if batch.step == 6:
            raise Enough
        keep(batch)

    made.on_batch = fail_at_six
    with pytest.raises(Enough):
        learn(tmp_path / "broken", made, save_every=1)
    again = curriculum()
    resumed = learn(tmp_path / "broken", again, save_every=1)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert [row["step"] for row in again.history] == list(range(1, 10))
