"""Consistency with the stage before, the specialist half, and a curriculum under the real trainer."""

import json

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from pico_adapters import llama, lora, trained
from pico_language import byte_tokenizer, pico

from workbench.curriculum.curriculum import Curriculum
from workbench.curriculum.losses import answer_losses, consistency_loss, in_fine_tune_half, snapshot
from workbench.curriculum.memory import LongTermMemory, ShortTermMemory
from workbench.curriculum.stage import Stage
from workbench.errors import ConfigError
from workbench.records import Example
from workbench.training import train

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


def test_the_specialist_halves_are_disjoint_and_fixed() -> None:
    halves = [in_fine_tune_half(f"x{i}") for i in range(1000)]
    assert 430 < sum(halves) < 570
    assert halves == [in_fine_tune_half(f"x{i}") for i in range(1000)]


def rows(name: str, n: int = 12) -> list[Example]:
    return [Example(id=f"{name}{i}", skill=name, query=f"{name[0]}{i}?", answer=f"{i * 7}") for i in range(n)]


def curriculum(**changes) -> Curriculum:
    stages = [Stage(name=name, data=rows(name), steps=3) for name in NAMES]
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
    json.dumps(made.state_dict())


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
