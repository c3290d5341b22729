r"""SA-MDKIF (arXiv 2402.00474): one AdaLoRA for each of twelve skills, then a router that fuses them for a task.

    python recipes/sa_mdkif.py --model meta-llama/Llama-3.1-8B --out runs/sa_mdkif \
        --skills ner=ner.jsonl summarisation=mts_dialog=MTS-Dialog-TrainingSet.csv ... \
        --task pubmedqa=pubmedqa.json --test pubmedqa=pubmedqa_test.json [--shots 16] [--executor ray]

With `--executor ray` the skills are trained side by side, a GPU each. With `--shots` CMA-ES finds the weights from so
many examples of the task, else AdamW from all of them, as the paper chooses by how much data there is. Base model, data
sets and ranks of the paper are not public to us; the ranks here are AdaLoRA's defaults in PEFT.
"""

from collections.abc import Sequence

import common
import sizing
from peft import AdaLoraConfig, get_peft_model

import workbench as wb


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the skills, fuse them, and score the test files."""
    parser = common.arguments(__doc__, lr=1e-3)
    parser.add_argument("--model", required=True)
    parser.add_argument("--skills", nargs="+", required=True, metavar="SKILL=[NAME=]PATH")
    parser.add_argument("--task", nargs="+", required=True, metavar="NAME=PATH", help="what the router is fitted to")
    parser.add_argument("--shots", type=int, default=None)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    options = parser.parse_args(arguments)
    given = [spec.partition("=")[::2] for spec in options.skills]
    pairs = [(skill, rest if "=" in rest else f"{skill}={rest}") for skill, rest in given]
    options.files = [spec for _, spec in pairs]
    ranks = {"init_r": 12, "target_r": 8, "total_step": options.steps}
    adapter = AdaLoraConfig(**ranks, target_modules="all-linear", task_type="CAUSAL_LM")
    sizing.announce(options, ["model"], adapter, steps=options.steps * (len(pairs) + (options.shots is None)))
    adapter.tinit, adapter.tfinal = options.steps // 10, 2 * options.steps // 5
    shared = {key: value for key, value in common.settings(options).items() if key not in ("batch_size", "lr")}
    skills = wb.train_skills(
        options.model,
        {skill: common.examples(options, [spec]) for skill, spec in pairs},
        output_dir=f"{options.out}/skills",
        adapter=adapter,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        executor=options.executor,
        resources={"num_gpus": 1} if options.device == "cuda" else None,
        device=options.device,
        **shared,
    )
    folders = {name: str(folder) for name, folder in skills.items()}
    model, tokenizer = common.load(options, options.model)
    rows = common.examples(options, options.task)
    if options.shots:
        found = wb.compose_skills(model, tokenizer, rows, folders, optimizer="cma", shots=options.shots)
        common.say(repr(found))
        router = wb.SkillRouterConfig(skills=folders, initial_weights=found.weights, task_type="CAUSAL_LM")
        fused = get_peft_model(model, router).eval()
    else:
        router = wb.SkillRouterConfig(skills=folders, task_type="CAUSAL_LM")
        place = {"output_dir": f"{options.out}/router", "steps": options.steps}
        run = wb.train(model, tokenizer, rows, adapter=router, **place, **common.settings(options, lr=1e-2))
        common.say(repr(run))
        fused = run.model
    common.measure(options, fused, tokenizer)


if __name__ == "__main__":
    common.call(main)
