"""A training process is killed with SIGKILL at random moments, and goes on to the unbroken run's weights."""

import json
import os
import random
import shutil
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
    for name in ("adapter_model.safetensors", "history.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    one, two = (json.loads((folder / "adapter_config.json").read_text()) for folder in (whole, broken))
    # PEFT writes a set in the order of the process's hashes.
    assert sorted(one.pop("target_modules")) == sorted(two.pop("target_modules"))
    assert one == two


def test_two_processes_write_one_run_and_resume_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # The launcher of several processes starts them without looking for their devices.
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", *options.split()]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def finish(name):
        command = [*launch, "--main_process_port", "0", str(script), str(tmp_path / name), "adalora", "transformers"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=UNIT.parents[1])
        assert done.returncode == 0, done.stderr[-2000:]

    finish("whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 61))
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["identity"]["processes"] == 2
    # As if killed in the second stage, after its checkpoint at step 24.
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    newest = max((tmp_path / "broken" / "checkpoints" / "stage-01").iterdir(), key=lambda path: int(path.name[11:]))
    (newest / "checkpoint.json").unlink()
    (tmp_path / "broken" / "adapter_model.safetensors").unlink()
    finish("broken")
    for name in ("adapter_model.safetensors", "history.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name
