r"""LoraHub (arXiv 2307.13269): compose LoRA modules of FLAN-T5-large for a new task from a few examples.

    python recipes/lorahub.py --model google/flan-t5-large --out runs/lorahub --modules modules/*  \
        --task pubmedqa=pubmedqa.json --test pubmedqa=pubmedqa_test.json

A module is the folder of a PEFT LoRA adapter (safetensors). `--train NAME=PATH ...` trains one on each file first, as
the paper did (rank 16, alpha 32, learning rate 2e-4). The weights are searched as published: factors are mixed, NGOpt,
bounds +-1.5, 40 candidates, 5 examples, penalty 0.05, and at most 20 modules drawn at random.

An encoder-decoder is opened by transformers here, since `wb.load_model` and `wb.train` are for models that continue
text; modules are trained by its Trainer. `wb.compose_skills` reads both kinds.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import sizing
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

import workbench as wb
from workbench.adapters.skill_mix import SkillMix
from workbench.adapters.skill_router.model import open_bank
from workbench.evaluation import score


def main(arguments: Sequence[str] | None = None) -> None:
    """Train modules where asked, search their weights, and score the base and the composition."""
    parser = common.arguments(__doc__, length=512, batch_size=8, accumulate=1)
    parser.add_argument("--model", required=True)
    parser.add_argument("--modules", nargs="+", default=[], help="folders of LoRA adapters")
    parser.add_argument("--train", nargs="+", default=[], metavar="NAME=PATH", help="train a module on each")
    parser.add_argument("--task", required=True, metavar="NAME=PATH", help="the new task's examples")
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--budget", type=int, default=40)
    parser.add_argument("--most", type=int, default=20, help="modules to draw")
    options = parser.parse_args(arguments)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    sizing.announce(options, ["model"], adapter, steps=options.steps * len(options.train))
    if options.dry_run:
        options.budget, options.modules = 3, []  # given modules fit the full model only
    folders = [Path(folder) for folder in options.modules]
    folders += [train_module(options, adapter, spec) for spec in options.train]
    drawn = random.Random(options.seed).sample(folders, min(options.most, len(folders)))
    modules = {folder.name: str(folder) for folder in drawn}
    model, tokenizer = load(options)
    rows = common.examples(options, [options.task])
    found = wb.compose_skills(
        model,
        tokenizer,
        rows,
        modules,
        mix="factor",
        shots=min(options.shots, len(rows)),
        budget=options.budget,
        seed=options.seed,
        max_length=options.length,
        strict=False,
    )
    common.say(repr(found))
    Path(options.out).mkdir(parents=True, exist_ok=True)
    found.save(Path(options.out) / "composition.json")
    with SkillMix(open_bank(modules, model, False), "factor").on(model) as put:
        for name, weights in {"base": dict.fromkeys(modules, 0.0), "composed": found.weights}.items():
            put(weights)
            measure(options, model, tokenizer, name)


def load(options: Any) -> tuple[Any, Any]:
    """Open an encoder-decoder and its tokenizer; safetensors only, never remote code."""
    kind = {"dtype": torch.bfloat16, "use_safetensors": True, "trust_remote_code": False}
    model = AutoModelForSeq2SeqLM.from_pretrained(options.model, **kind).to(options.device)
    return model.eval(), AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)


def train_module(options: Any, adapter: LoraConfig, spec: str) -> Path:
    """Train a LoRA on one file; a finished one is taken as it is."""
    place = Path(options.out) / "modules" / spec.partition("=")[0]
    if (place / "adapter_config.json").exists():
        return place
    model, tokenizer = load(options)
    rows = [
        tokenizer(row.prompt(), text_target=row.answer, truncation=True, max_length=options.length)
        for row in common.examples(options, [spec])
    ]
    arguments = TrainingArguments(
        output_dir=str(place), max_steps=options.steps, per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate, learning_rate=options.lr, seed=options.seed, bf16=True,
        use_cpu=options.device == "cpu", save_strategy="no", report_to="none", logging_steps=50,
    )  # fmt: skip
    wrapped = get_peft_model(model, adapter)
    Trainer(wrapped, arguments, DataCollatorForSeq2Seq(tokenizer, wrapped), rows).train()
    wrapped.save_pretrained(place)
    return place


@torch.no_grad()
def measure(options: Any, model: Any, tokenizer: Any, name: str) -> None:
    """Print each test file's mean score: written answers by the file's metric, options by exact match."""
    for spec in options.test:
        task, values = common.task(spec), []
        metric = "exact_match" if task.metric == "likelihood" else task.metric
        for row in task.rows()[: options.limit]:
            read = tokenizer(row.prompt(), return_tensors="pt").to(model.device)
            written = model.generate(**read, max_new_tokens=task.max_new_tokens or 64, do_sample=False)[0]
            values.append(score(row, tokenizer.decode(written, skip_special_tokens=True), metric))
        common.say(f"{name}: {task.name} {metric} {sum(values) / len(values):.3f} (n {len(values)})")


if __name__ == "__main__":
    common.call(main)
