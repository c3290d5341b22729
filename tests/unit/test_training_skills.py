"""train_skills: a folder for each skill, ranks that shrink, a call that goes on, and one message for each mistake."""

import json
import threading

import pytest
import torch
from peft import LoraConfig, PeftModel
from pico_language import byte_tokenizer, pico
from safetensors.torch import load_file

from workbench.adapters import SkillBank
from workbench.classroom import __main__ as command
from workbench.deltas import Delta
from workbench.errors import ConfigError, DataError, ModelError
from workbench.fanout import CellError, CellsStopped
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.models import load_model, model_folder
from workbench.paths import adapter_folder, data_samples_root
from workbench.records import SKILLS, Example
from workbench.training import skills as module
from workbench.training import train
from workbench.training.skills import skill_adapter, train_skills

STEPS = 12


def examples(skill, n=6):
    return [Example(id=f"{skill}{i}", skill=skill, query=f"say {i}", answer=skill * (1 + i % 2)) for i in range(n)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pico") / "base"
    pico().save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


def build(base, folder, names=("ab", "cd"), **changes):
    settings = {"steps": STEPS, "batch_size": 2, "device": "cpu"} | changes
    return train_skills(base, {name: examples(name) for name in names}, output_dir=folder, **settings)


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_each_skill_is_a_small_adapter_and_ranks_shrink(base, tmp_path, capsys):
    done = build(base, tmp_path)
    assert list(done) == ["ab", "cd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab", "cd"]
    files = {"adapter_config.json", "adapter_model.safetensors", "skill.json"}
    assert {path.name for path in done["ab"].iterdir()} == files
    assert done.rows[0]["rank from"] == 4
    assert done.rows[0]["rank to"] == pytest.approx(2.0, abs=0.1)
    kept = sum(tensor.numel() for tensor in weights(done["ab"]).values())
    assert done.rows[0]["parameters"] == kept
    assert done.rows[0]["share"] == pytest.approx(kept / sum(t.numel() for t in pico().parameters()))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["skill", "ab", "cd"]
    assert Delta.from_adapter(done["cd"], base=base).names
    assert "<td>ab</td>" in done._repr_html_()
    assert repr(done).splitlines()[0] == printed[0]


def test_a_finished_skill_is_not_trained_again(base, tmp_path, monkeypatch):
    build(base, tmp_path, ("ab",))
    before = (tmp_path / "ab" / "adapter_model.safetensors").stat().st_mtime_ns
    trained = []
    monkeypatch.setattr(module, "train", lambda *a, **k: trained.append(k["output_dir"].name) or train(*a, **k))
    both = build(base, tmp_path)
    assert trained == [".cd.run"]
    assert list(both) == ["ab", "cd"]
    assert (tmp_path / "ab" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_half_skill_goes_on_to_the_same_bits(base, tmp_path):
    whole = build(base, tmp_path / "whole", ("ab",))
    stop = threading.Event()
    model, tokenizer = load_model(base, device="cpu")
    half = train(
        model, tokenizer, examples("ab"), adapter=skill_adapter(STEPS), output_dir=tmp_path / "half" / ".ab.run",
        steps=STEPS, batch_size=2, lr=1e-2, progress=False, stop=stop,
        on_log=lambda row: stop.set() if row["step"] >= 7 else None,
    )  # fmt: skip
    assert half.state == "stopped"
    resumed = build(base, tmp_path / "half", ("ab",))
    one, two = weights(whole["ab"]), weights(resumed["ab"])
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_other_settings_do_not_pass_for_a_finished_skill(base, tmp_path):
    build(base, tmp_path, ("ab",))
    with pytest.raises(ConfigError, match=r"ab holds a run with lr=0\.01, and this one has 0\.02"):
        build(base, tmp_path, ("ab",), lr=2e-2)
    with pytest.raises(ConfigError, match="holds a run with data="):
        train_skills(base, {"ab": examples("xy")}, output_dir=tmp_path, steps=STEPS, batch_size=2, device="cpu")


def test_any_adapter_of_peft_serves(base, tmp_path):
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["v_proj", "q_proj"])
    done = build(base, tmp_path, ("ab",), adapter=lora)
    assert (done.rows[0]["rank from"], done.rows[0]["rank to"]) == (3, 3.0)
    assert json.loads((done["ab"] / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]


def test_a_skill_without_rows_stops_everything_before_training(base, tmp_path):
    with pytest.raises(DataError, match="the skill 'cd' has no training example"):
        train_skills(base, {"ab": examples("ab"), "cd": []}, output_dir=tmp_path, device="cpu")
    with pytest.raises(DataError, match="the skill 'ef' has no training example"):
        train_skills(base, {"ab": examples("ab")}, skills=["ef"], output_dir=tmp_path, device="cpu")
    with pytest.raises(DataError, match=r"the skill \(none\)"):
        train_skills(base, {}, output_dir=tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="names a folder; take a plain word"):
        build(base, tmp_path, ("../ab",))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_skill_leaves_the_finished_ones(base, tmp_path):
    long = [Example(id="l", skill="cd", query="say", answer="ab" * 99)]
    with pytest.raises(CellError, match="tokens with their answer"):
        train_skills(
            base, {"ab": examples("ab"), "cd": long}, output_dir=tmp_path, steps=STEPS, batch_size=2, device="cpu"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["ab"]


def test_a_stop_starts_no_further_skill(base, tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(CellsStopped, match="stopped after 0 of 2"):
        build(base, tmp_path, stop=stop)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_shipped_skills_open_by_name(skill):
    name = f"classroom/skills/{skill}"
    assert adapter_folder(name) == model_folder(name) == data_samples_root() / "skills" / skill
    card = json.loads((adapter_folder(name) / "skill.json").read_text())
    assert (card["skill"], card["rank from"]) == (skill, 4)
    assert card["rank to"] < 2.1
    assert Delta.from_adapter(name, base=model_folder("classroom/base")).names


def test_a_shipped_skill_is_a_parent_of_a_merge_and_part_of_a_bank_by_name():
    names = [f"classroom/skills/{skill}" for skill in ("ner", "inference")]
    recipe = MergeRecipe(parents=names, base="classroom/base", method="task_arithmetic", weights=[1.0, 0.0])
    live = LiveMerge(recipe, device="cpu", dtype="float32")
    model, _ = load_model("classroom/base", device="cpu", dtype="float32")
    assert SkillBank.open(dict(zip("ab", names)), model).names == ("a", "b")
    ids = torch.tensor([[3, 5, 8, 13]])
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(model, adapter_folder(names[0])).eval()(input_ids=ids).logits
        assert torch.allclose(live.model(input_ids=ids).logits, wanted, atol=1e-4)


def test_the_command_puts_finished_skills_in_their_place(tmp_path, monkeypatch, capsys):
    made = tmp_path / "work" / "ner"
    made.mkdir(parents=True)
    (made / "skill.json").write_text("{}")
    asked = {}
    monkeypatch.setattr(command, "train_skills", lambda model, **given: asked.update(given) or {"ner": made})
    arguments = ["classroom", "skills", "--work", str(made.parent), "--out", str(tmp_path / "out"), "--seed", "3"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert (tmp_path / "out" / "ner" / "skill.json").is_file()
    assert asked == {"output_dir": made.parent, "seed": 3, "executor": "local", "device": "cpu"}
    assert "done in" in capsys.readouterr().out


def test_shipped_skills_are_small_and_a_wrong_name_is_told():
    files = [path for path in (data_samples_root() / "skills").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6e6
    with pytest.raises(ModelError, match="no classroom skill 'classroom/skills/cooking'"):
        adapter_folder("classroom/skills/cooking")
    with pytest.raises(ModelError, match="holds an adapter, not a whole model"):
        load_model("classroom/skills/ner")
