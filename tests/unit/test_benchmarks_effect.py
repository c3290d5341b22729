"""The experiment on the mixture's effect, at a size where it can show nothing but that it works."""

import json
import math

import pandas as pd
import pytest
from pico_language import byte_tokenizer, pico

SMALL = ["--tasks", "entity_synonymy", "exam_backward", "--limit", "1", "--watched", "1", "--batch-size", "2"]


@pytest.fixture(scope="module")
def effect(script):
    return script("lora_moe_effect")


@pytest.fixture
def places(tmp_path):
    model = pico(context=512)
    model.save_pretrained(tmp_path / "pico")
    byte_tokenizer(chat=True).save_pretrained(tmp_path / "pico")
    names = {"model": "pico", "settings": "settings.json", "out": "effect.csv", "store": "cells.sqlite"}
    return [part for name, file in names.items() for part in (f"--{name}", str(tmp_path / file))]


def test_pairs_all_arms_and_goes_on_from_its_store(effect, places, tmp_path, capsys):
    command = [*SMALL, *places, "--seeds", "1", "--steps", "2", "--every", "1", "--save"]
    effect.main(command)
    rows = pd.read_csv(tmp_path / "effect.csv")
    assert rows.groupby("seed")["arm"].agg(list).tolist() == [list(effect.ARMS)]
    assert (rows.groupby("seed")["tokens"].nunique() == 1).all(), "arms must read the same batches"
    assert rows["average"].tolist() == pytest.approx(rows[["skills", "exam"]].mean(axis=1).tolist(), abs=1e-5)
    assert {"step_0", "step_1", "step_2", "parameters", "train_s", "made"} <= set(rows)
    assert (rows["split"] == "validation").all()
    printed = capsys.readouterr().out
    assert "not searched" in printed
    assert "+0.0 (one seed)" in printed, "the reference differs from itself by nothing"

    kept = (tmp_path / "cells.sqlite").read_bytes()
    effect.main(command)
    assert (tmp_path / "cells.sqlite").read_bytes() == kept
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "effect.csv"), rows)


def test_search_gives_every_arm_as_many_trials_and_its_choice_is_used(effect, places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(effect, "RATES", (1e-3,))
    arms = ["--arms", effect.REFERENCE, "LoRA-MoE, queue"]
    effect.main([*SMALL, *places, *arms, "--steps", "1", "--search"])
    found = json.loads((tmp_path / "settings.json").read_text())
    tried = pd.DataFrame(found["trials"])
    assert tried["arm"].value_counts().to_dict() == {effect.REFERENCE: 3, "LoRA-MoE, queue": 3}
    assert found["seed"] == 100
    for arm, chosen in found["chosen"].items():
        mine = tried[tried["arm"] == arm]
        same = mine[[(row[list(chosen)] == pd.Series(chosen)).all() for _, row in mine.iterrows()]]
        assert same["average"].max() == mine["average"].max()
    found["chosen"]["LoRA-MoE, queue"]["contrastive_loss_coef"] = 0.02
    (tmp_path / "settings.json").write_text(json.dumps(found))
    effect.main([*SMALL, *places, *arms, "--steps", "1", "--seeds", "1", "--every", "1", "--save"])
    settings = pd.read_csv(tmp_path / "effect.csv").set_index("arm").loc["LoRA-MoE, queue", "settings"]
    assert json.loads(settings)["contrastive_loss_coef"] == 0.02
    assert "settings of the search" in capsys.readouterr().out


def test_every_arm_is_searched_over_as_many_settings(effect):
    assert set(effect.KNOBS) == set(effect.ARMS)
    assert len({len(values) for _, values in effect.KNOBS.values()}) == 1


def test_equal_rank_is_the_nearest(effect):
    model = pico()
    mixture = effect.size(model, effect.wb.LoraMoeConfig(**effect._MIXTURE, target_modules="all-linear"))
    off = [abs(effect.size(model, effect.LoraConfig(r=r, target_modules="all-linear")) - mixture) for r in (17, 18, 19)]
    assert effect.equal_rank(model) == 17 + off.index(min(off))


def test_steps_to_the_same_score_by_hand(effect):
    assert effect.crossing([(0, 0.2), (10, 0.4), (20, 0.8)], 0.6) == pytest.approx(15)
    assert effect.crossing([(0, 0.7), (10, 0.4)], 0.6) == 0
    assert math.isnan(effect.crossing([(0, 0.2), (10, 0.4)], 0.6))


def test_summary_by_hand(effect):
    other = "LoRA-MoE, queue"
    common = {"parameters": 7, "tokens": 9, "train_s": 1.0, "skills": 0.5, "exam": 0.5, "step_0": 0.0}
    rows = pd.DataFrame(
        [
            {"arm": effect.REFERENCE, "seed": 0, "average": 0.50, "step_10": 0.5, "step_20": 1.0, **common},
            {"arm": effect.REFERENCE, "seed": 1, "average": 0.60, "step_10": 0.5, "step_20": 1.0, **common},
            {"arm": other, "seed": 0, "average": 0.51, "step_10": 0.9, "step_20": 1.0, **common},
            {"arm": other, "seed": 1, "average": 0.63, "step_10": 0.4, "step_20": 0.5, **common},
        ]
    )
    table = effect.summary(rows).set_index("arm")
    # Differences 1 and 3 points: mean 2, standard error 1, t(1 degree of freedom) 12.7.
    assert table.loc[other, "difference (95 %)"] == "+2.0 (-10.7 to +14.7)"
    assert table.loc[effect.REFERENCE, "steps"] == pytest.approx(18)
    assert table.loc[other, "steps"] == pytest.approx(10)
    assert table.loc[other, "reached"] == "1 of 2"
    assert table.loc[other, "steps less (95 %)"] == "+8.0 (one seed)"
