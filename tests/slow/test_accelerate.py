"""Two processes under `accelerate launch`, side by side on CPUs (gloo), learn what one process learns.

The file is its own script: `accelerate launch ... test_accelerate.py FOLDER KIND ...` trains the kinds named. Both runs
read the same examples in an optimiser step. What may differ is the order in which numbers are added: with float64
throughout all values and weights are held to 1e-12. In float32 one unit in the last place of a loss of 6 is 5e-7, and
sixteen steps of Adam make up to 3e-6 of it in losses and weights, which are held to 1e-5, and up to 3e-5 in the norm of
a gradient, which is held to 1e-4.
"""

import hashlib
import json
import os
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from peft import AdaLoraConfig, LoraConfig
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from two_processes import DDP, FSDP, in_shards, launch, shard_on_cpus

UNIT = Path(__file__).parents[1] / "unit"
sys.path.insert(0, str(UNIT))

from pico_adapters import lora, saved  # noqa: E402
from pico_language import byte_tokenizer, pico  # noqa: E402

import workbench as wb  # noqa: E402
import workbench.curriculum.curriculum  # noqa: E402
from workbench.adapters import LoraMoeConfig, SkillRouterConfig  # noqa: E402
from workbench.curriculum.stage import Stage  # noqa: E402
from workbench.records import Example  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TARGETS = ["q_proj", "v_proj"]
BATCH, STEPS = 4, 8
MOE = {
    "r": 2, "num_experts": 3, "num_experts_per_tok": 2, "contrastive_loss_coef": 0.1, "router_aux_loss_coef": 0.1,
    "router_z_loss_coef": 0.01, "queue_size": 10, "target_modules": TARGETS,
}  # fmt: skip
KINDS = {
    "lora": lambda _: LoraConfig(r=2, target_modules=TARGETS),
    "adalora": lambda _: AdaLoraConfig(init_r=3, target_r=1, tinit=1, tfinal=1, total_step=99, target_modules=TARGETS),
    "moe": lambda _: LoraMoeConfig(**MOE),
    "moe_in_batch": lambda _: LoraMoeConfig(**MOE, contrastive="in_batch"),
    "moe_sequence": lambda _: LoraMoeConfig(**MOE, routing="sequence", router="layer"),
    "moe_trl": lambda _: LoraMoeConfig(**MOE),
    "skills_static": lambda folder: SkillRouterConfig(skills=skills(folder), initial_weights=0.2),
    "skills_input": lambda folder: SkillRouterConfig(skills=skills(folder), gate="input", initial_weights=0.2),
    "curriculum": lambda _: LoraMoeConfig(**MOE),
}


def examples(stage="", n=24):
    return [
        Example(id=f"{stage}{i}", skill="qa", query=f"say {stage} {i}", answer="ab" * (1 + i % 3), split="train")
        for i in range(n)
    ]


def skills(folder):
    """Return two skills, which the test that starts the processes has saved."""
    places = {name: folder / "skills" / name for name in ("first", "second")}
    for seed, place in enumerate(places.values()):
        if not place.exists():
            saved(pico(), lora(r=seed + 1, target_modules=TARGETS), place, seed=seed)
    return {name: str(place) for name, place in places.items()}


def curriculum():
    stages = [Stage(name=name, data=examples(name, 12), steps=STEPS) for name in ("general", "clinical")]
    return wb.Curriculum(
        stages, short_term=wb.ShortTermMemory(9), long_term=wb.LongTermMemory(16), replay_ratio=0.5, fine_tune_coef=0.5,
        batch_size=BATCH,
    )  # fmt: skip


def train(kind, folder, processes, **options):
    options |= {"curriculum": curriculum()} if kind == "curriculum" else {"examples": examples(), "steps": STEPS}
    options |= {"trainer": "trl"} if kind.endswith("trl") else {}
    model = pico().to(torch.get_default_dtype())
    run = wb.train(
        model, byte_tokenizer(chat=True), adapter=KINDS[kind](folder.parent), output_dir=folder / kind, lr=1e-2,
        batch_size=BATCH // processes, save_every=4, log_every=1, progress=False, **options,
    )  # fmt: skip
    return run, options.get("curriculum")


@contextmanager
def in_double():
    """Have everything computed in float64, also what asks for float32."""
    asked, mean = torch.Tensor.float, workbench.curriculum.curriculum.average
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    workbench.curriculum.curriculum.average = lambda values: mean(values.double())
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float, workbench.curriculum.curriculum.average = asked, mean


def held(run, curriculum):
    """Return what a process holds at the end: a digest of all weights and buffers of the adapter, and the memories."""
    digest = hashlib.sha256()
    for name, tensor in sorted(run.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    state = curriculum.state_dict() if curriculum else {}
    return {"bits": digest.hexdigest(), "state": {name: value for name, value in state.items() if name != "costs"}}


def main(folder, kinds, die_at):
    torch.set_num_threads(1)
    if fsdp := in_shards():
        shard_on_cpus()
    world = PartialState(cpu=True)

    def die(row):
        if row["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    for kind in kinds:
        with in_double() if os.environ.get("DOUBLE") else nullcontext():
            run, taught = train(kind, folder, world.num_processes, on_log=die)
        assert fsdp == any(isinstance(tensor, DTensor) for tensor in run.model.parameters())
        if not fsdp:
            (folder / f"{kind}.{world.process_index}.json").write_text(json.dumps(held(run, taught)))
    if not fsdp and len(kinds) > 1:
        # Each in a folder of its own, where what it writes can be told.
        train(kinds[-1], folder / f"of-{world.process_index}", world.num_processes)


def start(folder, kinds, kind=DDP, die_at=0, **environment):
    return launch(__file__, [folder, *kinds], kind, DIE_AT=str(die_at), **environment)


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, {kind: held(*train(kind, folder, 1)) for kind in KINDS}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    skills(folder)
    done = start(folder, KINDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def compare(one, two, near=1e-5, norm=1e-4):
    """Hold two runs' histories and adapters together: all to `near`, the gradient's norm to `norm`."""
    rows, others = history(one), history(two)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, float):
                rel = norm if name == "grad_norm" else near
                assert other[name] == pytest.approx(value, rel=rel, abs=near), (row["step"], name)
            elif name == "expert_load":
                assert other[name].keys() == value.keys()
                # A token on the edge between two experts may fall to either side; a load is rounded to 1e-4.
                assert all(other[name][router] == pytest.approx(value[router], abs=2e-4) for router in value)
            else:
                assert other[name] == value, (row["step"], name)
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], rtol=near, atol=near), name


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(alone, together, kind):
    compare(alone[0] / kind, together / kind)
    if kind.startswith(("moe", "curriculum")):
        assert any(row.get("contrastive", 0) > 1e-3 for row in history(together / kind))
    if kind == "adalora":
        assert {row["mean_rank"] for row in history(together / kind)} >= {3.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_both_processes_hold_the_same_bits_and_memories(together, kind):
    first, second = (json.loads((together / f"{kind}.{rank}.json").read_text()) for rank in (0, 1))
    assert first == second


def test_memories_are_those_of_one_process(alone, together):
    one, two = alone[1]["curriculum"]["state"], json.loads((together / "curriculum.0.json").read_text())["state"]
    short, long = one["memories"]
    assert len(short["ring"]) == 9
    assert [entry[:2] for entry in two["memories"][0]["ring"]] == [list(entry[:2]) for entry in short["ring"]]
    assert two["memories"][0]["counts"] == short["counts"]
    assert two["memories"][1] == long
    rows = history(together / "curriculum")
    assert any(row.get("consistency", 0) > 1e-4 for row in rows)
    assert any(row.get("fine_tune", 0) < 0 for row in rows)


def test_the_first_process_alone_writes(together):
    first, second = (
        {str(path.relative_to(together / name)) for path in (together / name).rglob("*") if path.is_file()}
        for name in ("of-0", "of-1")
    )
    assert {"curriculum/adapter_model.safetensors", "curriculum/history.jsonl", "curriculum/run.json"} <= first
    # The state of its own random numbers, which none but the process itself knows.
    assert {Path(name).name for name in second} == {"rng_state_1.pth"}


def test_killed_processes_resume_to_the_same_bits(together, tmp_path):
    died = start(tmp_path, ["curriculum"], die_at=13)
    assert died.returncode != 0
    assert not (tmp_path / "curriculum" / "adapter_model.safetensors").exists()
    kept = sorted(path.name for path in (tmp_path / "curriculum" / "checkpoints").rglob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-4", "checkpoint-8"]
    done = start(tmp_path, ["curriculum"])
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("adapter_model.safetensors", "history.jsonl"):
        assert (tmp_path / "curriculum" / name).read_bytes() == (together / "curriculum" / name).read_bytes(), name
    assert (tmp_path / "curriculum.1.json").read_text() == (together / "curriculum.1.json").read_text()


@pytest.mark.parametrize("kind", ["lora", "moe", "curriculum"])
def test_what_differs_is_rounding(tmp_path, kind):
    with in_double():
        train(kind, tmp_path / "alone", 1)
    done = start(tmp_path / "together", [kind], DOUBLE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    compare(tmp_path / "alone" / kind, tmp_path / "together" / kind, near=1e-12, norm=1e-12)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    skills(folder)
    done = start(folder, KINDS, FSDP)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_shards_learn_what_one_process_does(alone, shards, kind):
    compare(alone[0] / kind, shards / kind)


@pytest.mark.parametrize(("kind", "step"), [("moe", 6), ("adalora", 6), ("curriculum", 13)])
def test_killed_shards_resume(shards, tmp_path, kind, step):
    died = start(tmp_path, [kind], FSDP, die_at=step)
    assert died.returncode != 0
    assert not (tmp_path / kind / "adapter_model.safetensors").exists()
    done = start(tmp_path, [kind], FSDP)
    assert done.returncode == 0, done.stderr[-3000:]
    compare(shards / kind, tmp_path / kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:], int(os.environ["DIE_AT"]))
