"""The experiment on the few-shot protocol: what it asks for, chooses and says; the cells are made up."""

import json

import pandas as pd
import pytest

BEST = {"merged": 0.02, "clinical": 0.005, "instruct": 0.01, "base": 0.01}


@pytest.fixture(scope="module")
def effect(script):
    return script("few_shot_effect")


@pytest.fixture
def asked(effect, monkeypatch):
    """What was asked of the protocol; a parent is best at a rate of its own, and better with each shot and seed."""
    calls = []

    def stand_in(parents, tasks, *, ks, seeds, split, lr, **rest):
        calls.append({"parents": parents, "tasks": tasks, "ks": ks, "seeds": seeds, "split": split, "lr": lr, **rest})
        rows = []
        for parent in parents:
            for k in ks:
                rate = 0.0 if not k else lr[parent, k] if isinstance(lr, dict) else lr
                for seed in [0] if not k else range(seeds) if isinstance(seeds, int) else seeds:
                    value = 0.2 + k / 1000 + seed / 1000 - abs(rate - BEST[parent]) * (k > 0)
                    scores = dict.fromkeys(("composite", "rouge_l", "bleu", "meteor"), value) | {"instruction": 0.9}
                    cells = {"parent": parent, "k": k, "seed": seed, "steps": 1, "lr": rate, "tokens": 10}
                    rows += [{**cells, "task": task, **scores} for task in tasks]
        return pd.DataFrame(rows)

    monkeypatch.setattr(effect, "few_shot", stand_in)
    return calls


@pytest.fixture
def places(tmp_path):
    names = {"settings": "settings.json", "out": "effect.csv", "store": "cells.sqlite"}
    return [part for name, file in names.items() for part in (f"--{name}", str(tmp_path / file))]


@pytest.mark.slow
def test_the_search_gives_each_parent_and_k_as_many_trials_on_validation_and_keeps_the_best(
    effect, asked, places, tmp_path
):
    effect.main([*places, "--search", "--split", "test"])
    assert [(call["split"], call["seeds"], call["ks"]) for call in asked] == [("validation", [100], [16, 64, 256])] * 3
    assert [call["lr"] for call in asked] == [*effect.RATES]
    found = json.loads((tmp_path / "settings.json").read_text())
    assert (pd.DataFrame(found["trials"]).groupby(["parent", "k"]).size() == 3).all()
    assert found["chosen"] == {f"{parent}, {k}": BEST[parent] for parent in BEST for k in (16, 64, 256)}
    assert found["recipe"]["weights"] == pytest.approx([0.6, 0.4]), "the plain ratio that was best on validation"


def test_the_table_takes_the_choice_and_says_what_holds(effect, asked, places, tmp_path, capsys):
    (tmp_path / "settings.json").write_text(json.dumps({"chosen": {"clinical, 16": 0.123}}))
    effect.main([*places, "--split", "test", "--save"])
    (call,) = asked
    assert call["lr"]["clinical", 16] == 0.123
    assert call["lr"]["merged", 16] == effect.RATES[1]
    assert (call["split"], call["seeds"], len(call["tasks"])) == ("test", 5, 5)
    rows = pd.read_csv(tmp_path / "effect.csv")
    assert len(rows) == 4 * 5 * (1 + 3 * 5)
    assert (rows["split"] == "test").all()
    assert rows["made"].str.contains("benchmarks/few_shot_effect.py").all()
    printed = capsys.readouterr().out
    # (0.2 + 0.064 - 0.01) - (0.2 + 0.256), the same with each seed
    assert "merged@64 at least instruct@256 does not hold: -20.2 (-20.2 to -20.2)" in printed
    assert "| merged@64 - clinical@256 " in printed
    assert "| merged   | 0  " in printed
    assert "Scores against the number of shots" in (tmp_path / "cells.html").read_text()


@pytest.mark.slow
def test_two_parents_at_one_k_need_no_aim(effect, asked, places, capsys):
    effect.main([*places, "--seeds", "1", "--ks", "0", "16"])
    assert "The aim needs merged@64, instruct@256 and two seeds." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ((0.1, 0.1), " holds: +10.0"),
        ((0.3, -0.1), "holds in the mean alone: +10.0"),
        ((-0.1, 0.0), "does not hold: -5"),
    ],
)
def test_the_verdict_is_that_of_the_paired_difference(effect, gaps, said):
    rows = [
        {
            "parent": parent,
            "k": k,
            "seed": seed,
            "task": "short_question",
            "composite": 0.4 + gap * (parent == "merged"),
        }
        for parent, k in effect.AIM
        for seed, gap in enumerate(gaps)
    ]
    assert said in effect.verdict(pd.DataFrame(rows))
