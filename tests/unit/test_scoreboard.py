"""The scoreboard: its verdicts follow from the tables, and the committed page from the committed tables."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from workbench.models import data_samples_root

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "scoreboard"


@pytest.fixture(scope="module")
def board():
    sys.path.insert(0, str(FOLDER))
    names = ("claims", "page")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(FOLDER))
    for name in names:
        del sys.modules[name]


def mixture_table(gaps):
    arms = ("LoRA-MoE, queue", "LoRA, equal parameters", "LoRA-MoE, no contrast", "LoRA-MoE, in-batch contrast")
    return pd.DataFrame(
        {"arm": arm, "seed": seed, "average": 0.8 + (gap if arm == arms[0] else 0.0)}
        for seed, gap in enumerate(gaps)
        for arm in arms
    )


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ((0.05, 0.06, 0.05, 0.06, 0.05), "holds"),
        ((0.00, 0.06, -0.01, 0.05, 0.02), "open"),
        ((0.01, 0.01, 0.011, 0.009, 0.01), "does not hold"),  # above nothing, below the paper's 2.29
        ((-0.05, -0.06, -0.05, -0.06, -0.05), "does not hold"),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_aim(board, gaps, verdict):
    claims = board["claims"]
    claim = next(claim for claim in claims.CLAIMS if claim.aim == 2.29)
    figure = claim.measure({"lora_moe_effect": mixture_table(gaps)})
    assert figure.value == pytest.approx(100 * sum(gaps) / 5)
    assert claims.verdict(figure, claim.aim) == verdict


def test_draws_are_paired_and_an_arm_without_draws_stands_beside_each(board):
    shots = [("router, static", 5, seed, task, score) for seed in (0, 1) for task, score in (("a", 0.4), ("b", 0.8))]
    base = [("base", -1, 0, task, score) for task, score in (("a", 0.3), ("b", 0.1))]
    rows = pd.DataFrame([*shots, *base], columns=["arm", "shots", "seed", "task", "score"])
    tables = {"skills_effect": rows.assign(track="unseen task")}
    arms = (("router, static", 5), ("base", -1), "unseen task")
    assert board["claims"].skills(*arms)(tables).value == pytest.approx(40)
    most = board["claims"].best_task(*arms)(tables)
    assert most.value == pytest.approx(70)
    assert most.behind == "2 seeds, b"


def test_a_table_that_is_not_there_leaves_its_claims_open(tmp_path):
    (tmp_path / "results").mkdir()
    table = pd.read_csv(data_samples_root() / "results" / "lora_moe_effect.csv")
    table.to_csv(tmp_path / "results" / "lora_moe_effect.csv", index=False)
    written = assemble(tmp_path, "--results", str(tmp_path / "results"))
    assert "skills_effect.csv is not made yet" in written
    assert written.count("| not measured |") == written.count("○ open") - 2 > 5


def test_texts_are_escaped(board):
    page, claims = board["page"], board["claims"]
    hostile = claims.Claim(
        idea="<script>", paper="1", stated="a & b", setting="<b>", table="t", unit="%", aim=0.0, measure=len
    )
    row = page.Row(hostile, claims.Figure(1.0, 0.5, 1.5, "<i>"))
    shown = page.page([row], ["<u>"], "today")
    assert not re.search(r"<(script|b|i|u)>", shown)
    assert "a &amp; b" in shown


def test_the_committed_page_is_what_the_committed_tables_give(tmp_path):
    committed = (ROOT / "docs" / "scoreboard.md").read_text(encoding="utf-8")
    assert undated(assemble(tmp_path)) == undated(committed)
    html = (ROOT / "docs" / "scoreboard.html").read_text(encoding="utf-8")
    assert undated((tmp_path / "out" / "scoreboard.html").read_text(encoding="utf-8")) == undated(html)
    assert not re.search(r"(src|href)=", html)  # it needs nothing beside itself


def assemble(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(FOLDER), "--out", str(folder / "out"), *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return (folder / "out" / "scoreboard.md").read_text(encoding="utf-8")


def undated(text: str) -> str:
    return re.sub(r"Assembled \S+", "Assembled", text)
