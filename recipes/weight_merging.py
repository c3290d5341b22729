r"""Weight-space merging (arXiv 2604.01538): a clinical and a general instruct model blended, then tuned on few shots.

    python recipes/weight_merging.py --instruct meta-llama/Llama-3.1-8B-Instruct --clinical FOLDER \
        --base meta-llama/Llama-3.1-8B --out runs/merging --validation medmcqa=dev.json ifeval=ifeval.jsonl \
        --test ... [--few-shot mts_dialog=train.csv --few-shot-test mts_dialog=test.csv --keep ifeval=ifeval.jsonl]

FOLDER is a clinical derivative of Llama-3.1-8B that you have. Every ratio of every method is scored on the validation
files; the best by the mean of all of them is exported and scored on the test files. Methods, ratios and the few-shot
protocol are our reading: the paper's are not public to us.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import common
import pandas as pd
import sizing
from peft import LoraConfig

import workbench as wb
from workbench.records import Example
from workbench.search.few_shot import few_shot

PARENTS = ["instruct", "clinical", "base"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the ratios, export the best merge, score it, and compare parents by few-shot tuning."""
    parser = common.arguments(__doc__)
    for name in PARENTS:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--validation", nargs="+", required=True, metavar="NAME=PATH", help="the ratio is chosen here")
    parser.add_argument("--methods", nargs="+", default=["linear", "slerp"])
    parser.add_argument("--ratios", type=int, default=11)
    parser.add_argument("--few-shot", nargs="+", default=[], metavar="NAME=PATH", help="tasks to tune all parents on")
    parser.add_argument("--few-shot-test", nargs="+", default=[], metavar="NAME=PATH", help="their rows to score")
    parser.add_argument("--keep", nargs="+", default=[], metavar="NAME=PATH", help="instructions, before and after")
    parser.add_argument("--shots", nargs="+", type=int, default=[0, 16, 64, 256])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--executor", choices=["local", "ray"], default="local")
    options = parser.parse_args(arguments)
    tuned, asked = ({spec.partition("=")[0] for spec in specs} for specs in (options.few_shot, options.few_shot_test))
    if tuned != asked:
        parser.error(f"--few-shot names {sorted(tuned)} and --few-shot-test {sorted(asked)}; give both for each task")
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    cells = len(options.few_shot) * len(options.shots) * options.seeds * (len(PARENTS) + 1)
    # While ratios are scored, both parents and the merge are held.
    sizing.announce(options, PARENTS, adapter, steps=options.steps * cells, exports=1, parents=2)
    if options.dry_run:
        options.ratios, options.seeds, options.shots = 2, 1, [0, 2]
    out = Path(options.out)
    resources = {"num_gpus": 1} if options.device == "cuda" else None
    fronts = []
    for method in options.methods:
        recipe = recipe_of(options, method, 0.5)
        front = wb.sweep(
            recipe,
            options.ratios,
            [common.task(spec, "validation") for spec in options.validation],
            limit=options.limit,
            seed=options.seed,
            store=out / "sweep.sqlite",
            on_long="skip",
            executor=options.executor,
            resources=resources,
        )
        fronts.append(front.assign(method=method))
    table = pd.concat(fronts, ignore_index=True)
    tasks = [spec.partition("=")[0] for spec in options.validation]
    best = table.loc[table[tasks].mean(axis=1).idxmax()]
    common.say(table[["method", "ratio", *tasks]].to_markdown(index=False, floatfmt=".3f"))
    merged = out / f"{best['method']}-{best['ratio']:.2f}"
    if not merged.exists():
        wb.export_merge(recipe_of(options, best["method"], best["ratio"]), merged)
    common.say(f"Chosen on validation, and exported: {merged}")
    common.measure(options, *common.load(options, str(merged)))
    if options.few_shot:
        shared = {key: value for key, value in common.settings(options).items() if key != "seed"}
        parents = {"merged": str(merged)} | {name: getattr(options, name) for name in PARENTS}
        shots, asked = labelled(options.few_shot, "train"), labelled(options.few_shot_test, "test")
        rows = few_shot(
            parents,
            {name: shots[name] + asked[name] for name in shots},
            split="test",
            keep=labelled(options.keep, "test"),
            ks=options.shots,
            seeds=options.seeds,
            steps=options.steps,
            on_long="skip",
            limit=options.limit,
            adapter=adapter,
            dtype="bfloat16",
            device=options.device,
            store=out / "few_shot.sqlite",
            executor=options.executor,
            resources=resources,
            **shared,
        )
        common.say(rows.to_markdown(index=False, floatfmt=".3f"))


def recipe_of(options: object, method: str, ratio: float) -> wb.MergeRecipe:
    """Return the merge of both parents at a share of the clinical one."""
    parents = [getattr(options, name) for name in PARENTS[:2]]
    return wb.MergeRecipe(parents=parents, method=method, weights=[1 - ratio, ratio], dtype="bfloat16")


def labelled(specs: Sequence[str], split: str) -> dict[str, list[Example]]:
    """Read files by their names, and say of their rows which part they are."""
    found = [common.task(spec, split) for spec in specs]
    return {task.name: [replace(row, split=split) for row in task.rows()] for task in found}


if __name__ == "__main__":
    common.call(main)
