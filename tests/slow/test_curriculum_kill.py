"""A curriculum's training is killed at five random steps, and ends with the unbroken run's weights and memories."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Seven processes are started, one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNIT = Path(__file__).parents[1] / "unit"
SCRIPT = f"""
import sys
sys.path.insert(0, {str(UNIT)!r})
import json, torch
torch.set_num_threads(1)
import test_curriculum_losses as unit
from pathlib import Path

stages = [unit.Stage(name=name, data=unit.rows(name, 40), steps=20) for name in unit.NAMES]
made = unit.Curriculum(
    stages, short_term=unit.ShortTermMemory(16), long_term=unit.LongTermMemory(60), batch_size=4, replay_ratio=0.4
)
unit.learn(Path(sys.argv[1]), made, save_every=3)
held = {{"short": made.short_term.rows(), "long": made.long_term.rows(), "history": made.history}}
Path(sys.argv[1], "memory.json").write_text(json.dumps(held, sort_keys=True))
"""


def start(folder):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def finish(folder):
    process = start(folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]


def lines(folder):
    path = folder / "history.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill_at(folder, target, delay):
    """Kill the run a moment after its history has so many rows; return whether it was still at work."""
    process = start(folder)
    while process.poll() is None and lines(folder) < target:
        time.sleep(0.01)
    time.sleep(delay)
    at_work = process.poll() is None
    if at_work:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return at_work


def test_killed_at_five_random_steps_and_still_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    total, rng = lines(whole), random.Random("curriculum")
    targets = [rng.randrange(part * total // 5 + 1, (part + 1) * total // 5) for part in range(5)]
    assert sum(kill_at(broken, target, rng.random() * 0.1) for target in targets) >= 4
    finish(broken)
    for name in ("adapter_model.safetensors", "history.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    one, two = (json.loads((folder / "memory.json").read_text()) for folder in (whole, broken))
    assert one == two
    assert any(row["consistency"] > 0 for row in two["history"])
