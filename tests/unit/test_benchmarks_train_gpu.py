"""The benchmark of training, end to end at a size where it can show nothing but that it works."""

import re

import pytest
import torch

SMALL = ["--shapes", "pico", "--batch", "2", "--tokens", "24", "--steps", "5", "--warm-up", "1"]


@pytest.fixture(scope="module")
def bench(script):
    return script("train_gpu")


def test_every_arm_has_a_row_with_its_figures(bench, capsys):
    bench.main(SMALL)
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (.+?) \| ([\d,]+) \| [\d.]+ \| not measured \| [\d.]+ MiB \| [\d.]+% \|$", printed, re.M)
    assert [arm for arm, _ in rows] == list(bench.adapters(5))
    speed = {arm: float(tokens.replace(",", "")) for arm, tokens in rows}
    mine, peer = speed["LoRA, wb.train"], speed["LoRA, PEFT alone"]
    told = float(re.search(r"LoRA, wb\.train / LoRA, PEFT alone ([\d.]+)", printed)[1])
    assert told == pytest.approx(mine / peer, abs=0.02)


def test_an_arm_without_memory_is_a_row(bench, capsys, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("no more")

    two = dict(list(bench.adapters(5).items())[:2])
    monkeypatch.setattr(bench, "adapters", lambda _: two)
    monkeypatch.setattr(bench, "ours", short)
    monkeypatch.setattr(bench, "alone", short)
    bench.main(SMALL)
    printed = capsys.readouterr().out
    assert printed.count("| out of memory |") == 2
    assert "no pair ran" in printed


def test_too_few_steps_are_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main([*SMALL[:-4], "--steps", "4"])
    assert "--steps 4: at least 7" in capsys.readouterr().err
