r"""ICFT (arXiv 2502.00832): a curriculum from general to specialist with two memories, on LoRA.

    python recipes/icft.py --model meta-llama/Llama-3.1-8B-Instruct --out runs/icft --general general.jsonl \
        --medical medmcqa=medmcqa/train.json --specialist mts_dialog=MTS-Dialog-TrainingSet.csv --test ...

Several GPUs: `accelerate launch recipes/icft.py ...`. The paper's stages, memories and numbers are not public to us;
rank, alpha, learning rate and warm-up are those of MaLP (arXiv 2309.11696), which its wording is nearest to.
"""

from collections.abc import Sequence

import common
import sizing
from accelerate import PartialState
from peft import LoraConfig

import workbench as wb
from workbench.curriculum.stage import Stage

STAGES = ("general", "medical", "specialist")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the stages in order, and score the test files."""
    parser = common.arguments(__doc__, lr=5e-5)
    parser.add_argument("--model", required=True)
    for name in STAGES:
        parser.add_argument(f"--{name}", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--replay-ratio", type=float, default=0.2)
    options = parser.parse_args(arguments)
    adapter = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    # Consistency reads rehearsed examples once more, without a gradient.
    sizing.announce(options, ["model"], adapter, steps=options.steps * len(STAGES))
    stages = [
        Stage(name=name, data=common.examples(options, getattr(options, name)), steps=options.steps) for name in STAGES
    ]
    curriculum = wb.Curriculum(
        stages,
        short_term=wb.ShortTermMemory(256),
        long_term=wb.LongTermMemory(1024),
        replay_ratio=options.replay_ratio,
        batch_size=options.batch_size * options.accumulate * PartialState().num_processes,
        seed=options.seed,
    )
    model, tokenizer = common.load(options, options.model)
    run = wb.train(
        model,
        tokenizer,
        curriculum=curriculum,
        adapter=adapter,
        output_dir=options.out,
        **common.settings(options, warmup=0.1),
    )
    common.say(repr(run))
    common.measure(options, run.model, tokenizer)


if __name__ == "__main__":
    common.call(main)
