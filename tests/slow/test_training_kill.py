"""A training process is killed with SIGKILL at random moments, and goes on to the unbroken run's weights."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

UNIT = Path(__file__).parents[1] / "unit"
SCRIPT = f"""
import sys
sys.path.insert(0, {str(UNIT)!r})
import torch
torch.set_num_threads(1)
import test_training
from types import SimpleNamespace
from pathlib import Path

rows = test_training.examples(30)
parts = {{"a": rows[:15], "b": rows[10:]}}
stages = [SimpleNamespace(name=name, examples=part, steps=30) for name, part in parts.items()]
test_training.train(
    test_training.pico(), test_training.byte_tokenizer(chat=True), curriculum=stages,
    adapter=test_training.ADAPTERS[sys.argv[2]], output_dir=sys.argv[1], batch_size=2, lr=1e-2, save_every=4,
    validation=rows[:3], trainer=sys.argv[3], progress=False,
)
"""


def start(folder, adapter, trainer):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), adapter, trainer]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def lines(folder):
    path = folder / "history.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill_after(process, folder, rows, delay):
    """Wait until the history has so many rows, a moment longer, and kill; False if the process ended before."""
    while process.poll() is None and lines(folder) < rows:
        time.sleep(0.01)
    time.sleep(delay)
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return not ended


@pytest.mark.parametrize(
    ("adapter", "trainer"), [("lora", "trl"), ("adalora", "transformers"), ("moe", "transformers")]
)
def test_killed_five_times_and_still_the_same_bits(tmp_path, adapter, trainer):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(whole, adapter, trainer)
    assert process.wait() == 0, process.stderr.read().decode()[-2000:]
    process.communicate()
    total, rng = lines(whole), random.Random(f"{adapter}/{trainer}")
    killed = 0
    for part in range(5):
        target = rng.randrange(part * total // 5 + 1, (part + 1) * total // 5)
        killed += kill_after(start(broken, adapter, trainer), broken, target, rng.random() * 0.1)
    assert killed >= 3, "the process ended before it could be killed"
    process = start(broken, adapter, trainer)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    for name in ("adapter_model.safetensors", "adapter_config.json", "history.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
