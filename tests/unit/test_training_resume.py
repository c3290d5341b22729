"""What a run leaves behind, and going on from it: after a stop, in the middle of a stage, between stages."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from test_training import ADAPTERS, TARGETS, examples, run, same, weights

from workbench.errors import ConfigError
from workbench.training import TrainingFailed


class Interrupted(Exception):
    """Ends a run from outside, as a kill would, but for what is in memory."""


def interrupt_at(step):
    def hook(batch):
        if batch.step == step:
            raise Interrupted

    return hook


@pytest.mark.parametrize("trainer", ["transformers", "trl"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_resumed_run_ends_with_the_bits_and_rows_of_an_unbroken_one(tmp_path, adapter, trainer):
    settings = {"adapter": adapter, "steps": 9, "save_every": 3, "trainer": trainer, "gradient_accumulation_steps": 2}
    whole = run(tmp_path, name="whole", **settings)
    with pytest.raises(Interrupted):
        run(tmp_path, name="broken", on_batch=interrupt_at(8), **settings)
    resumed = run(tmp_path, name="broken", **settings)
    assert same(weights(whole), weights(resumed))
    assert resumed.history == whole.history
    lines = (resumed.folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole.history


def test_a_full_model_resumes_as_well(tmp_path):
    whole = run(tmp_path, adapter=None, name="whole", save_every=2)
    with pytest.raises(Interrupted):
        run(tmp_path, adapter=None, name="broken", save_every=2, on_batch=interrupt_at(4))
    run(tmp_path, adapter=None, name="broken", save_every=2)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    assert same(one, two)
    assert whole.state == "finished"


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path):
    whole = run(tmp_path, name="whole", save_every=2)
    with pytest.raises(Interrupted):
        run(tmp_path, name="broken", save_every=2, on_batch=interrupt_at(5))
    stage = tmp_path / "broken" / "checkpoints" / "stage-00"
    assert sorted(path.name for path in stage.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    half = stage / "checkpoint-5"
    shutil.copytree(stage / "checkpoint-4", half)
    (half / "checkpoint.json").unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    assert same(weights(whole), weights(run(tmp_path, name="broken", save_every=2)))


def test_a_finished_run_is_loaded_and_not_trained_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, on_batch=interrupt_at(1))
    assert again.state == "finished"
    assert again.history == first.history
    assert same(
        {name: tensor for name, tensor in first.model.state_dict().items() if "lora" in name},
        {name: tensor for name, tensor in again.model.state_dict().items() if "lora" in name},
    )


def test_a_folder_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    for settings, message in (
        ({"lr": 1e-3}, r"run with settings\.lr=0\.01, and this one has 0\.001; resume with the same"),
        ({"adapter": LoraConfig(r=3, target_modules=TARGETS)}, r"run with adapter\.\w+="),
        ({"data": examples(6)}, r"run with stage 0: data="),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tmp_path, **settings)
    with pytest.raises(ConfigError, match=r"holds a run already; pass resume=True"):
        run(tmp_path, resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"holds files and no run; choose a new folder"):
        run(tmp_path, name="mine")


def test_another_model_is_refused(tmp_path):
    from pico_language import pico

    run(tmp_path)
    with pytest.raises(ConfigError, match=r"run with model="):
        run(tmp_path, model=pico(seed=1))


def test_watching_more_often_is_no_other_run(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, save_every=2, on_batch=interrupt_at(4))
    resumed = run(tmp_path, save_every=1, log_every=1, validation=examples(1), save_total_limit=None)
    assert resumed.state == "finished"


def stages(**first):
    common = {"name": "easy", "examples": examples(4), "steps": 3, "lr": 1e-2}
    return [SimpleNamespace(**common | first), SimpleNamespace(name="hard", examples=examples(7)[4:], epochs=2)]


def in_stages(tmp_path, curriculum, **settings):
    return run(tmp_path, data=None, curriculum=curriculum, steps=None, **settings)


@pytest.fixture(autouse=True)
def _no_examples(monkeypatch):
    """`run` gives examples where a test gives none; with a curriculum there are none."""
    import test_training

    real = test_training.train
    monkeypatch.setattr(
        test_training, "train", lambda m, t, data, **kw: real(m, t, None if "curriculum" in kw else data, **kw)
    )


def test_stages_follow_one_another_each_with_its_own_schedule(tmp_path):
    done = in_stages(tmp_path, stages(), lr=2e-2, warmup=0.0)
    assert [(row["stage"], row["step"]) for row in done.history] == [
        ("easy", 1), ("easy", 2), ("easy", 3), ("hard", 4), ("hard", 5), ("hard", 6), ("hard", 7),
    ]  # fmt: skip
    rates = [row["learning_rate"] for row in done.history]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[3] == pytest.approx(2e-2)
    assert done.steps == 7


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_stages_resume_where_they_were(tmp_path, step):
    whole = in_stages(tmp_path, stages(), name="whole", adapter="adalora", save_every=1)
    with pytest.raises(Interrupted):
        in_stages(tmp_path, stages(), name="broken", adapter="adalora", save_every=1, on_batch=interrupt_at(step))
    resumed = in_stages(tmp_path, stages(), name="broken", adapter="adalora", save_every=1)
    assert same(weights(whole), weights(resumed))
    assert resumed.history == whole.history


class Growing:
    """Its second stage repeats the example that was hardest in the first; it keeps what it saw as its state."""

    def __init__(self):
        self.losses = {}

    def __iter__(self):
        yield stages()[0]
        hardest = max(self.losses, key=self.losses.get)
        yield SimpleNamespace(name="again", examples=[e for e in examples() if e.id == hardest], steps=3, shuffle=False)

    def see(self, batch):
        self.losses |= dict(zip(batch.ids, batch.losses.tolist()))

    def state_dict(self):
        return dict(self.losses)

    def load_state_dict(self, state):
        self.losses = dict(state)


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_curriculum_that_learns_from_the_batches_resumes_with_its_state(tmp_path, step):
    one, two, three = Growing(), Growing(), Growing()
    whole = in_stages(tmp_path, one, name="whole", on_batch=one.see, save_every=1)

    def see(batch):
        two.see(batch)
        interrupt_at(step)(batch)

    with pytest.raises(Interrupted):
        in_stages(tmp_path, two, name="broken", on_batch=see, save_every=1)
    resumed = in_stages(tmp_path, three, name="broken", on_batch=three.see, save_every=1)
    assert same(weights(whole), weights(resumed))
    assert one.losses == three.losses
    assert whole.steps is None


def test_a_stage_may_end_itself_and_stays_ended(tmp_path):
    curriculum = stages(steps=50, done=lambda rows: sum("eval_loss" in row for row in rows) == 2)
    settings = {"validation": examples(2), "eval_every": 2, "save_every": 100}
    whole = in_stages(tmp_path, curriculum, name="whole", **settings)
    assert [row["step"] for row in whole.history if row["stage"] == "easy"][-1] == 4
    assert whole.step == 8
    with pytest.raises(Interrupted):
        in_stages(tmp_path, curriculum, name="broken", on_batch=interrupt_at(6), **settings)
    resumed = in_stages(tmp_path, curriculum, name="broken", **settings)
    assert same(weights(whole), weights(resumed))


def test_examples_are_taken_in_order_where_a_stage_says_so(tmp_path):
    seen = []
    stage = SimpleNamespace(name="row", examples=examples(), epochs=1, shuffle=False)
    in_stages(tmp_path, [stage], on_batch=lambda batch: seen.extend(batch.ids))
    assert seen == [example.id for example in examples()]


def test_a_bad_stage_is_refused_before_the_first_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="steps=0: it must be at least 1"):
        in_stages(tmp_path, [*stages(), SimpleNamespace(name="last", examples=examples(), steps=0)])
    with pytest.raises(ConfigError, match="the curriculum has no stage"):
        in_stages(tmp_path, [])
    assert not (tmp_path / "run").exists()


def test_a_failed_run_keeps_its_last_good_checkpoint_and_says_where(tmp_path):
    def spoil(model, batch):
        return {"mine": torch.tensor(float("inf" if batch.step == 4 else 0), requires_grad=True)}

    with pytest.raises(TrainingFailed, match=r"last good checkpoint is .*checkpoint-3"):
        run(tmp_path, extra_losses=spoil, save_every=1)
    assert run(tmp_path, save_every=1).state == "finished"
