"""The five clinical generation tasks: how their public files are read, and what a report on one of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.data import Constant
from workbench.evaluation.embedding_f1 import embedding_f1
from workbench.evaluation.intervals import interval
from workbench.evaluation.metrics import known_metric, score
from workbench.evaluation.pairs import paired
from workbench.records import Output, Rows

GENERATION: dict[str, dict[str, Any]] = {
    "note_section": {
        "skill": Constant("note_section"),
        "context": "dialogue",
        "query": lambda row: f"From this visit, write the note's section {row['section_header']}.",
        "answer": "section_text",
        "id": "ID",
        "meta": ["section_header"],
    },
    "full_note": {
        "skill": Constant("full_note"),
        "context": "dialogue",
        "query": Constant("Turn this visit into a clinical note."),
        "answer": "note",
        "id": "encounter_id",
    },
    "impression": {
        "skill": Constant("impression"),
        "context": "findings",
        "query": Constant("Write the impression of this radiology report."),
        "answer": "impression",
        "id": "uid",
    },
    "discharge_summary": {
        "skill": Constant("discharge_summary"),
        "context": "input",
        "query": Constant("Sum up the hospital course."),
        "answer": "target",
        "id": "note_id",
    },
    "short_question": {
        "skill": Constant("short_question"),
        "context": "question",
        "query": Constant("Ask this in one short question."),
        "answer": "summary",
    },
}
"""Task to the arguments with which `load_examples` reads its public files, in this order: MTS-Dialog, ACI-Bench, chest
X-ray reports of Indiana University, MIMIC-IV-Ext-BHC, MeQSum. Add `on_error="collect"` for reports without findings.

Our reading: of arXiv 2604.01538 only some of the five tasks are known to us by name, and none of its prompts."""

_ALONE = ("rouge_1", "rouge_2", "rouge_l", "bleu", "meteor")
_COMPOSITE = ("rouge_l", "bleu", "meteor", "embedding_f1")


def generation_report(
    examples: Rows,
    outputs: Sequence[str] | Sequence[Output],
    *,
    encoder: tuple[Any, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the figures of a generation task with 95 % intervals: each part of the composite, and the composite.

    Args:
        examples: With the reference as answer.
        outputs: One text for each, or the records of `Scores.outputs[task]`.
        encoder: A model and its tokenizer for the embedding F1, see `embedding_f1`.
        batch_size: Most texts that the encoder reads together.
        seed: Of the bootstrap over examples.

    Returns:
        Rows ROUGE-1, -2 and -L, BLEU, METEOR, with an encoder its precision, recall and F1, and their composite: the
        mean of ROUGE-L, BLEU, METEOR and, with an encoder, F1. Columns: metric; value, low and high, 0 to 100; n;
        empty_outputs, those without text, which are worth 0 and count in n.

    Raises:
        ConfigError: sacrebleu is not installed, or the encoder's tokenizer is not of the fast kind.
        DataError: As for `paired`; or an example has no answer.
        ModelError: The encoder's hidden states are not numbers.
    """
    known_metric("composite")
    pairs = paired(examples, outputs)
    values = {metric: [score(example, text, metric) for example, text in pairs] for metric in _ALONE}
    if encoder is not None:
        references, texts = [example.answer for example, _ in pairs], [text for _, text in pairs]
        found = zip(*embedding_f1(references, texts, *encoder, batch_size=batch_size), strict=True)
        values |= {f"embedding_{part}": list(column) for part, column in zip(("precision", "recall", "f1"), found)}
    parts = [values[metric] for metric in _COMPOSITE if metric in values]
    values["composite"] = [sum(row) / len(row) for row in zip(*parts, strict=True)]
    empty = sum(not text.strip() for _, text in pairs)
    rows = []
    for metric, column in values.items():
        ends = interval(column, graded=True, seed=seed)
        rows.append((metric, *(100 * end for end in ends), len(column), empty))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n", "empty_outputs"])
