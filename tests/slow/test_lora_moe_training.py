"""Mixtures under other people's trainers: TRL's on one process, and two processes under `accelerate launch`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

UNIT = Path(__file__).parents[1] / "unit"
sys.path.insert(0, str(UNIT))

from pico_language import byte_tokenizer, pico  # noqa: E402

from workbench.adapters import LoraMoeConfig, auxiliary_losses  # noqa: E402

pytestmark = pytest.mark.slow

CONFIG = {"r": 2, "num_experts": 3, "queue_size": 8, "queue_dim": 6, "target_modules": ["q_proj", "down_proj"]}
SCRIPT = """
import sys
import torch
from accelerate import Accelerator
from peft import get_peft_model
sys.path.insert(0, sys.argv[1])
from pico_language import pico
from workbench.adapters import LoraMoeConfig, auxiliary_losses

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = get_peft_model(pico(), LoraMoeConfig(**eval(sys.argv[3])))
torch.manual_seed(0)
for name, tensor in model.named_parameters():
    if tensor.requires_grad:
        tensor.data += 0.1 * torch.randn_like(tensor)
model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.enable_input_require_grads()
optimizer = torch.optim.SGD([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
model.train()
ids = torch.randint(4, 260, (4, 9), generator=torch.Generator().manual_seed(1))
mine = ids[2 * accelerator.process_index :][:2]
for _ in range(6):
    loss = model(input_ids=mine, labels=mine, attention_mask=torch.ones_like(mine)).loss
    losses = auxiliary_losses(model)
    accelerator.backward(loss + sum(losses.values()))
    optimizer.step()
    optimizer.zero_grad()
assert losses["contrastive"] > 0
for name, tensor in accelerator.unwrap_model(model).named_parameters():
    if tensor.requires_grad:
        both = accelerator.gather(tensor.detach().flatten()[None])
        assert torch.equal(both[0], both[1]), name
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(sys.argv[2])
"""


def test_two_processes_train_one_adapter(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # `--cpu` starts one process; the launcher of several starts them without looking for their devices.
    options = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split(), "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(script), str(UNIT), str(tmp_path / "out"), repr(CONFIG)],
        capture_output=True, text=True, env=environment, timeout=280, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    written = [tensor for name, tensor in saved.items() if name.endswith("written")]
    assert len(written) == 4
    # Six micro-batches of two sequences from each of two processes, of which a sequence may skip an expert.
    assert all(12 < tensor.max() <= 24 for tensor in written)


def test_trl_trains_saves_and_resumes(tmp_path):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    rows = [{"prompt": f"patient {i} has ", "completion": "a cough<eos>"} for i in range(8)]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=0.05, save_steps=3,
        logging_steps=1, use_cpu=True, report_to=[], max_length=48, bf16=False, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, disable_tqdm=True,
    )  # fmt: skip

    def trainer():
        return trl.SFTTrainer(
            model=pico(), args=settings, train_dataset=datasets.Dataset.from_list(rows),
            processing_class=byte_tokenizer(), peft_config=LoraMoeConfig(**CONFIG, task_type="CAUSAL_LM"),
        )  # fmt: skip

    first = trainer()
    first.train()
    assert type(first.model.peft_config["default"]) is LoraMoeConfig
    losses = [row["loss"] for row in first.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    ids = torch.tensor([[5, 9, 11]])
    second = trainer()
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    first.model.eval()
    second.model.eval()
    assert torch.allclose(first.model(input_ids=ids).logits, second.model(input_ids=ids).logits, atol=1e-5)
    first.model.train()
    first.model(input_ids=ids)
    assert auxiliary_losses(first.model)
