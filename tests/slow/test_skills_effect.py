"""The experiments on skills, at a size where they can show nothing but that they work."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from pico_language import byte_tokenizer, pico

from workbench.evaluation.metrics import score
from workbench.records import SKILLS, Example, records
from workbench.training.skills import skill_adapter, train_skills

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.slow
shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public data sets are not at {SHARED}")


@pytest.fixture(scope="module")
def effect(script):
    return script("skills_effect")


@pytest.fixture(scope="module")
def real(script):
    return script("skills_real")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "pico"
    pico(context=512).save_pretrained(folder)
    byte_tokenizer(chat=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def command(model, effect):
    rows = {skill: [Example(id="1", skill=skill, query="say it", answer=skill)] for skill in SKILLS}
    settings = {"steps": 6, "batch_size": 1, "device": "cpu", "progress": False}
    train_skills(model, rows, output_dir=model.parent / "skills", **settings)
    effect.STEPS = {5: 6, 64: 6, effect.ALL: 6}
    effect.WATCHED = 2
    places = {"model": "pico", "skills": "skills", "store": "cells.sqlite", "out": "effect.csv", "settings": "s.json"}
    paths = [part for name, file in places.items() for part in (f"--{name}", str(model.parent / file))]
    return [*paths, "--limit", "1", "--seeds", "1", "--pooled", "6", "1"]


@pytest.mark.timeout(900)
def test_all_arms_give_a_row_and_it_goes_on_from_its_store(effect, command, model, capsys, monkeypatch):
    small = [*command, "--tasks", "ner", "referral", "--shots", "5", "--save"]
    effect.main(small)
    rows = pd.read_csv(model.parent / "effect.csv")
    assert sorted(rows["arm"]) == sorted([*effect.ARMS] * 2)
    assert rows.groupby("task")["track"].first().to_dict() == {"ner": "unseen data", "referral": "unseen task"}
    assert rows["score"].between(0, 1).all()
    read = rows[rows["task"] == "ner"].set_index("arm")["read_tokens"]
    assert read["in context"] > 1.5 * read["base"] == 1.5 * read["LoraHub, faithful"]
    uniform = json.loads(rows.set_index(["arm", "task"]).loc[("uniform weights", "ner"), "used"])
    assert uniform == dict.fromkeys(SKILLS, round(1 / 12, 3))  # weights are kept to three places
    printed = capsys.readouterr().out
    assert "not searched" in printed
    assert "(one seed)" in printed
    kept = (model.parent / "cells.sqlite").read_bytes()
    monkeypatch.setattr(effect, "run_cell", print)
    effect.main(small)
    assert (model.parent / "cells.sqlite").read_bytes() == kept


def test_the_search_keeps_every_trial_and_its_choice_is_used(effect, command, model, capsys, monkeypatch):
    monkeypatch.setattr(effect, "KNOBS", {"LoraHub, improved": ("l1", (0.0, 0.5))})
    monkeypatch.setattr(effect, "FEW", (5,))
    arms = ["--arms", "base", "LoraHub, improved", "--shots", "5", "--tasks", "referral"]
    effect.main([*command, *arms, "--search"])
    found = json.loads((model.parent / "s.json").read_text())
    assert [row["value"] for row in found["trials"]] == [0.0, 0.5]
    assert found["chosen"]["LoraHub, improved, 5"] in (0.0, 0.5)
    effect.main([*command, *arms])
    assert "settings of the search" in capsys.readouterr().out


def test_ray_trains_the_same_skills_bit_for_bit(model, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a token would be written to the home folder
    # Looked for, not imported: imported here, Ray could no longer be confined to this machine.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'workbench[cluster]'")
    rows = {name: [Example(id="1", skill=name, query="say it", answer=name)] for name in ("ab", "cd")}
    folders = []
    for executor in ("local", "ray"):
        place = model.parent / executor
        done = train_skills(model, rows, output_dir=place, steps=6, batch_size=1, device="cpu", executor=executor)
        folders.append(done["cd"])
        assert [row["skill"] for row in done.rows] == ["ab", "cd"]
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_trained_skills_are_asked_of_held_out_conditions_in_the_test_alone(effect):
    assert effect.split_of("ner", "test") == "test_unseen"
    assert effect.split_of("ner", "validation") == "validation"
    assert effect.split_of("referral", "test") == "test"
    assert len(effect.UNSEEN_DATA) >= 4
    assert len(effect.UNSEEN_TASKS) >= 3
    assert len(effect.TASKS) == 9


def test_the_pooled_arm_has_the_rank_of_all_skills(effect):
    assert effect.scaled(100, 12).init_r == 12 * skill_adapter(100).init_r
    assert effect.scaled(100, 12).lora_alpha / effect.scaled(100, 12).init_r == 4


def test_tags_become_entities(real):
    inside = ["I-Disease"] * 3
    row = {"tokens": ["Low", "bone", ";", "loss", "by", "X"], "tags": ["B-Disease", *inside, "O", "B-Drug"]}
    assert real.entities(row) == "Disease: Low bone loss; Drug: X"
    assert real.entities({"tokens": ["no"], "tags": ["O"]}) == "none"


@shared
def test_public_sets_become_examples_of_the_twelve_skills(real):
    for name, (place, metric, mapping) in real.MAPPINGS.items():
        rows = records(real.wb.load_examples(SHARED / place, limit=300, **mapping))
        assert {row.skill for row in rows} <= set(SKILLS), name
        assert all(score(row, row.answer, metric) == pytest.approx(1) for row in rows), name
    assert len({mapping["skill"] for _, _, mapping in real.MAPPINGS.values()}) == 7


@shared
@pytest.mark.filterwarnings("ignore:.*They are left out:workbench.errors.WorkbenchWarning")
def test_two_skills_and_a_router_from_public_files_to_scores(real, model, capsys):
    small = ["--train", "20", "--limit", "2", "--steps", "6", "--tasks", "bc5cdr", "negex", "meqsum"]
    real.main([str(SHARED), "--model", str(model), *small])
    table = capsys.readouterr().out
    for word in ("entity_f1", "exact_match", "rouge_l", "skill meqsum", "router"):
        assert word in table
