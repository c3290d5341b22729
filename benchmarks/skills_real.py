"""Train two skills on public data and a router over them, and score them with each field's own metric.

    python benchmarks/skills_real.py FOLDER [--skills bc5cdr meqsum] [--tasks bc5cdr meqsum negex] [--steps 60]

FOLDER holds bc5cdr_ner, ncbi_disease, chemprot_re, negex_assertion, meqsum, mts_dialog, medmcqa and pubmedqa as their
authors publish them; `MAPPINGS` says how each becomes one of the twelve skills. A classroom model knows none of this
English, so low scores are expected: what is shown is the whole way, from public files over skills and a router, which
learns on all tasks together which skill a text needs, to scores.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel

import workbench as wb
from workbench.data import Choice
from workbench.evaluation import Task
from workbench.records import Example, records


def entities(row: Mapping[str, Any]) -> str:
    """Write IOB tags as `Type: entity; Type: entity`, or `none`."""
    found: list[list[str]] = []
    for token, tag in zip(row["tokens"], row["tags"]):
        if tag.startswith("B-"):
            found.append([tag[2:] + ":", token])
        elif tag.startswith("I-") and found:
            found[-1].append(token)
    # A semicolon or colon within an entity would part it.
    return "; ".join(" ".join(words[:1] + [w for w in words[1:] if w not in ";:|"]) for words in found) or "none"


NER = {
    "skill": "ner",
    "context": lambda row: " ".join(row["tokens"]),
    "query": "Name the entities.",
    "answer": entities,
}
QUESTION = {"query": "QUESTION", "answer": "final_decision"}
MAPPINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bc5cdr": ("bc5cdr_ner", "entity_f1", NER),
    "ncbi": ("ncbi_disease", "entity_f1", NER),
    "chemprot": ("chemprot_re", "exact_match", {
        "skill": "relation_extraction", "context": "text", "query": "How do the two relate?", "answer": "label",
    }),
    "negex": ("negex_assertion/negation_temporality.tsv", "exact_match", {
        "skill": "entity_attribute", "columns": ["number", "blank", "phrase", "sentence", "polarity", "time", "who"],
        "context": "sentence", "query": lambda row: f"Is '{row['phrase']}' affirmed or negated?", "answer": "polarity",
    }),
    "meqsum": ("meqsum/questions_800.jsonl", "rouge_l", {
        "skill": "summarisation", "context": "question", "query": "Ask it in one line.", "answer": "summary",
    }),
    "mts_dialog": ("mts_dialog", "rouge_l", {
        "skill": "summarisation", "context": "dialogue", "query": "Summarise the visit.", "answer": "section_text",
    }),
    "medmcqa": ("medmcqa/dev.json", "likelihood", {
        "skill": "multiple_choice", "query": "question", "choices": ["opa", "opb", "opc", "opd"],
        "answer": Choice("cop", first=1),
    }),
    "pubmedqa": ("pubmedqa/pqal_dev.json", "exact_match", QUESTION | {"skill": "question_answering"}),
    "pubmedqa_abstract": ("pubmedqa/pqal_dev.json", "exact_match", QUESTION | {
        "skill": "reading_comprehension", "context": lambda row: "\n".join(row["CONTEXTS"]),
    }),
}  # fmt: skip
"""Name to the file or folder, the metric of the field, and how its rows become examples of a skill."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--skills", nargs="+", choices=MAPPINGS, default=["bc5cdr", "meqsum"], metavar="SET")
    parser.add_argument("--tasks", nargs="+", choices=MAPPINGS, default=["bc5cdr", "meqsum", "negex"], metavar="SET")
    parser.add_argument("--model", default="classroom/base")
    parser.add_argument("--train", type=int, default=400, help="training rows of each set; they are not scored")
    parser.add_argument("--limit", type=int, default=60, help="most rows of each task to score")
    parser.add_argument("--steps", type=int, default=60, help="of each skill and of the router")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    data = {name: rows_of(options.folder, name, options.seed) for name in {*options.skills, *options.tasks}}
    lessons = {name: rows[: options.train] for name, rows in data.items()}
    suite = [
        Task(name=name, examples=data[name][options.train :], metric=MAPPINGS[name][1], max_new_tokens=48)
        for name in options.tasks
    ]
    ask: dict[str, Any] = {"limit": options.limit, "on_long": "skip", "seed": options.seed, "progress": False}
    learn = {"steps": options.steps, "batch_size": 8, "seed": options.seed, "too_long": "drop"}
    start, scores = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        places = {"output_dir": f"{folder}/skills", "threads": options.threads, "device": options.device}
        chosen = {name: lessons[name] for name in options.skills}
        skills = wb.train_skills(options.model, chosen, **places, **learn)
        model, tokenizer = wb.load_model(options.model, device=options.device)
        scores["base"] = wb.evaluate(model, tokenizer, suite, **ask)
        for name, place in skills.items():
            with_skill = PeftModel.from_pretrained(model, place).eval()
            scores[f"skill {name}"] = wb.evaluate(with_skill, tokenizer, suite, **ask)
            model = with_skill.unload()
        router = wb.SkillRouterConfig(skills={name: str(place) for name, place in skills.items()}, gate="input")
        together = [row for name in options.tasks for row in lessons[name]]
        run = wb.train(
            model, tokenizer, together, adapter=router, output_dir=f"{folder}/router", lr=1e-2, progress=False, **learn
        )
        scores["router"] = wb.evaluate(run.model, tokenizer, suite, **ask)
    table = pd.concat([found.to_frame().assign(model=who) for who, found in scores.items()])
    table = table.loc[table["metric"] != "macro", ["model", "task", "metric", "value", "low", "high", "n"]]
    print(f"\n{time.perf_counter() - start:.0f} s, seed {options.seed}, {options.steps} steps of 8 examples.\n")
    print(table.to_markdown(index=False, floatfmt=".3f"))


def rows_of(folder: Path, name: str, seed: int) -> list[Example]:
    """Return a set's rows in an order of the seed's: many are sorted by document."""
    place, _, mapping = MAPPINGS[name]
    return records(wb.load_examples(folder / place, **mapping).shuffle(seed=seed).to_list())


if __name__ == "__main__":
    main()
