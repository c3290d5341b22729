r"""SparseDoctor (arXiv 2509.14269): a mixture of LoRA experts with a contrastive loss and an expert memory queue.

    python recipes/sparse_doctor.py --model Qwen/Qwen3-4B --out runs/sparse_doctor --train cmb=CMB-train.json \
        --test cmb=CMB-test.json cmexam=test.csv cmmlu_medical=cmmlu

Several GPUs: `accelerate launch recipes/sparse_doctor.py ...`. Experts, ranks and coefficients are those of CoMoE
(arXiv 2505.17553) and MixLoRA (arXiv 2404.15159), and the queue is our reading: the paper's own are not public to us.
"""

from collections.abc import Sequence

import common
import sizing

import workbench as wb


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the mixture, and score the test files."""
    parser = common.arguments(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--queue", type=int, default=256)
    options = parser.parse_args(arguments)
    adapter = wb.LoraMoeConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        lora_dropout=0.05,
        num_experts=options.experts,
        num_experts_per_tok=2,
        contrastive_loss_coef=0.01,
        router_aux_loss_coef=0.001,
        queue_size=options.queue,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    sizing.announce(options, ["model"], adapter, steps=options.steps)
    rows = common.examples(options, options.train)
    model, tokenizer = common.load(options, options.model)
    run = wb.train(
        model,
        tokenizer,
        rows,
        adapter=adapter,
        output_dir=options.out,
        steps=options.steps,
        **common.settings(options),
    )
    common.say(repr(run))
    common.measure(options, run.model, tokenizer)


if __name__ == "__main__":
    common.call(main)
