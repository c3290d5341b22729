"""The steps of `make classroom` (`data`, `models --seed 0`) and `make skills` (`skills`)."""

import argparse
import os
import shutil
import time
from functools import partial
from pathlib import Path

import torch

from workbench.classroom.build import build_models, write_examples
from workbench.models import data_samples_root
from workbench.training.skills import train_skills


def main() -> None:
    """Run one of the steps of `make classroom`, or `make skills`."""
    parser = argparse.ArgumentParser(prog="python -m workbench.classroom", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("data", help="write data_samples/examples from data_samples/world")
    models = steps.add_parser("models", help="train tokenizer, base, instruct and clinical")
    models.add_argument("--seed", type=int, default=0, help="initialisation and order of examples (default 0)")
    models.add_argument("--out", type=Path, help="folder for the models (default data_samples/models)")
    models.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    models.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens read; below 1 for a quick try")
    skills = steps.add_parser("skills", help="train the twelve skills of the base; started again, it goes on")
    skills.add_argument("--seed", type=int, default=0, help="initialisation and order of examples (default 0)")
    skills.add_argument("--work", type=Path, default=Path("out/skills"), help="where they are trained")
    skills.add_argument("--out", type=Path, help="where they are put when all are there (default data_samples/skills)")
    skills.add_argument("--executor", default="local", help="local, or ray: one skill for each core")
    options = parser.parse_args()
    root, started = data_samples_root(), time.monotonic()
    if options.step == "data":
        for task, rows in write_examples(root).items():
            print(f"{task:24}{rows:6} rows")
    elif options.step == "skills":
        done = train_skills(
            "classroom/base", output_dir=options.work, seed=options.seed, executor=options.executor, device="cpu"
        )
        for skill, folder in done.items():
            shutil.copytree(folder, (options.out or root / "skills") / skill, dirs_exist_ok=True)
    else:
        torch.set_num_threads(options.threads)
        build_models(
            root,
            options.out or root / "models",
            seed=options.seed,
            scale=options.scale,
            report=partial(print, flush=True),
        )
    print(f"done in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
