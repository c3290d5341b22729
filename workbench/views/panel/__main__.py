"""Open the panel on its own: `python -m workbench.views.panel` with the classroom models, or with models of yours."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from workbench.data import load_examples
from workbench.merging.live import LiveMerge
from workbench.merging.recipe import MergeRecipe
from workbench.merging.spectrum import RatioSpectrum
from workbench.models import load_model
from workbench.paths import data_samples_root
from workbench.records import Example
from workbench.views.answers import short_names
from workbench.views.panel.panel import ComparePanel, compare_panel

PARENTS = ("classroom/instruct", "classroom/clinical")
SKILLS = {
    "follow an instruction": "instruction",
    "short answer": "question_answering",
    "consultation": "conversation",
    "summary": "summarisation",
    "reading": "reading_comprehension",
    "exam": "exam_forward",
    "medicine in a given form": "both",
    "everyday fact": "general_knowledge",
}
"""What an example's button says, and the classroom's task that it takes its prompts from."""


def main() -> None:
    """Read the command line and serve until interrupted."""
    options = arguments()
    panel = classroom(options.votes) if not options.models else chosen(options.models, options.votes)
    panel.launch(
        server_name=options.host,
        server_port=options.port,
        root_path=options.root_path,
        auth=options.auth,
        inbrowser=options.open,
        inline=False,
    )


def classroom(votes: str | Path) -> ComparePanel:
    """Return the panel of the classroom: its three models, and the blend of two of them."""
    live = LiveMerge(MergeRecipe(parents=PARENTS, weights=[0.6, 0.4]))
    # A row of the batch for each person's ratio: nobody waits for the weights to be set to another person's.
    merged = RatioSpectrum([live.recipe], live=live)
    variants = {"base": "classroom/base", "clinical": live.parent(1), "instruct": live.parent(0), "merged": merged}
    results = data_samples_root() / "results"
    scores = pd.read_csv(results / "models.csv").set_index("model").loc["classroom/base"]
    return compare_panel(
        variants,
        live.tokenizer,
        examples={label: prompts(task) for label, task in SKILLS.items()},
        front=pd.read_csv(results / "ratio_sweep.csv"),
        points={"base": (scores["instructions"], scores["clinical"])},
        votes=votes,
    )


def chosen(models: list[str], votes: str | Path) -> ComparePanel:
    """Return a panel of models by name or folder; the first one's tokenizer is taken for all."""
    first, tokenizer = load_model(models[0])
    given = [first, *models[1:]]
    return compare_panel(dict(zip(short_names(models), given)), tokenizer, votes=votes)


def prompts(task: str, count: int = 6) -> list[str]:
    """Return some prompts of a task's validation rows, spread over all of them."""
    rows = load_examples(f"classroom/{task}", split="validation")
    step = max(len(rows) // count, 1)
    return [Example(**rows[i]).prompt() for i in range(0, len(rows), step)][:count]


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m workbench.views.panel", description=__doc__)
    parser.add_argument("models", nargs="*", help="names or folders of models; none: the classroom's")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="127.0.0.1", help="another place than this machine needs --auth")
    parser.add_argument("--auth", type=Path, help="file with one name:password in a line")
    parser.add_argument("--votes", type=Path, default=Path("votes.jsonl"), help="where votes are appended")
    parser.add_argument("--root-path", help="path under which a proxy shows the panel, e.g. /proxy/{port}")
    parser.add_argument("--open", action="store_true", help="open a browser")
    return parser.parse_args()


if __name__ == "__main__":
    main()
