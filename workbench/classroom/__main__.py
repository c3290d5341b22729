"""`python -m workbench.classroom data` writes the examples, `... models --seed 0` trains the three models."""

import argparse
import os
import time
from functools import partial
from pathlib import Path

import torch

from workbench.classroom.build import build_models, write_examples
from workbench.models import data_samples_root


def main() -> None:
    """Run one of the two steps of `make classroom`."""
    parser = argparse.ArgumentParser(prog="python -m workbench.classroom", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    steps.add_parser("data", help="write data_samples/examples from data_samples/world")
    models = steps.add_parser("models", help="train tokenizer, base, instruct and clinical")
    models.add_argument("--seed", type=int, default=0, help="initialisation and order of examples (default 0)")
    models.add_argument("--out", type=Path, help="folder for the models (default data_samples/models)")
    models.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    models.add_argument("--scale", type=float, default=1.0, help="multiplies the tokens read; below 1 for a quick try")
    options = parser.parse_args()
    root, started = data_samples_root(), time.monotonic()
    if options.step == "data":
        for task, rows in write_examples(root).items():
            print(f"{task:24}{rows:6} rows")
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
