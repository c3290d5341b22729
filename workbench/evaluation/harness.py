"""What lm-evaluation-harness is given for a benchmark: documents, few shots, and our scorer for its results.

`tasks/*.yaml` names the functions here; there is one task for each kind of output.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import datasets
from lm_eval.api.samplers import ContextSampler

from workbench.errors import ConfigError, ModelError
from workbench.evaluation.exams import Benchmark, Reading, read_benchmark, subject_of
from workbench.evaluation.metrics import score
from workbench.records import Example, example_of

Document = dict[str, Any]
"""A row of an lm-eval task: `id`, `text` of the prompt, `choices` to compare, the place `gold` of the right one, the
`target` to write, the `example` and its few `shots` as JSON, and the benchmark's `way` and `metric`."""


def make_documents(reading: Reading, *, written: bool, num_fewshot: int = 0) -> list[Document]:
    """Return the rows of an lm-eval task.

    Args:
        reading: The benchmark's rows.
        written: Whether an answer is written: of an exam, the letter of an option.
        num_fewshot: Solved examples before each question, the first ones of its subject, or else of all; at least 0.

    Raises:
        ConfigError: There are fewer solved examples than are asked for.
    """
    found = []
    for example in reading.task.rows():
        pool = reading.shots.get(subject_of(example)) or reading.shots[""]
        if not 0 <= num_fewshot <= len(pool):
            raise ConfigError(
                f"num_fewshot={num_fewshot}: benchmark {reading.task.name!r} has {len(pool)} solved examples for "
                f"{example.id}; ask for at most so many, or pass a folder that has them in a part called dev or train"
            )
        shots = [_document(shot, reading.benchmark, written) for shot in pool[:num_fewshot]]
        found.append(_document(example, reading.benchmark, written) | {"shots": json.dumps(shots)})
    return found


def dataset(
    documents: Sequence[Document] = (), benchmark: str = "", source: str = "", written: bool = False, **settings: Any
) -> datasets.DatasetDict:
    """Return the data of an lm-eval task: given documents, or what a benchmark's source holds.

    Args:
        documents: As `make_documents` returns them.
        benchmark: Where there are none, its name, as in `read_benchmark`.
        source: Its source.
        written: Whether answers are written.
        settings: `split`, `shuffle_options` and `on_bad` of `read_benchmark`, and `num_fewshot`; what else lm-eval
            keeps beside them is not looked at.

    Raises:
        ConfigError: As `read_benchmark` and `make_documents` do.
        DataError: As `read_benchmark` does.
    """
    if not documents:
        reading = read_benchmark(
            benchmark,
            source,
            **{key: settings[key] for key in ("split", "shuffle_options", "on_bad") if key in settings},
        )
        documents = make_documents(reading, written=written, num_fewshot=settings.get("num_fewshot", 0))
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(list(documents))})


class OwnShots(ContextSampler):
    """Gives a question the few shots that its document carries, since each subject has its own."""

    def sample(self, n: int, eval_doc: Any = None, df: Any = None, **_: Any) -> list[Document]:
        """Return the first `n` shots of a document."""
        return json.loads(eval_doc["shots"])[:n]


def process_results(document: Document, results: Sequence[Any]) -> dict[str, float]:
    """Value what lm-eval found for a document, through the workbench's scorer.

    Args:
        document: The document.
        results: `(log-likelihood, greedy)` of each choice, or one written answer.

    Returns:
        `value`, 0 to 1; `empty`, 1 for an empty answer; `unread`, 1 for another one in which no option can be read.
        Either has the value 0.

    Raises:
        ModelError: A log-likelihood is no number.
        DataError: The example lacks what its metric needs.
    """
    answer = answer_of(document, results)
    empty = not answer.strip()
    if isinstance(results[0], str) and document["metric"] == "likelihood":
        answer = read_option(document, answer) or ""
    silent = not answer.strip()
    value = 0.0 if silent else score(example_of(json.loads(document["example"])), answer, document["metric"])
    return {"value": value, "empty": float(empty), "unread": float(silent and not empty)}


def answer_of(document: Document, results: Sequence[Any]) -> str:
    """Return the text of the likeliest option, or what was written.

    Raises:
        ModelError: A log-likelihood is no number.
    """
    if isinstance(results[0], str):
        return results[0]
    sums = [float(total) for total, _ in results]
    if not all(map(math.isfinite, sums)):
        raise ModelError(f"the log-likelihoods of {document['id']!r} are {sums}; they must be numbers: check the model")
    options = json.loads(document["example"])["choices"]
    if document["way"] == "options":
        sums = [total / len(option.encode()) for total, option in zip(sums, options, strict=True)]
    return options[max(range(len(sums)), key=sums.__getitem__)]


def read_option(document: Document, text: str) -> str | None:
    """Return the option that a written answer names, None where it names none or several.

    It is named by its letter alone, first, or after the word answer or 答案; or by its text and no other option's.
    What stands before `</think>` is not looked at.
    """
    options = json.loads(document["example"])["choices"]
    said = text.rpartition("</think>")[2].strip()
    letters = string.ascii_uppercase[: len(options)]
    mark = rf"[\s(（\[*\"':：]*([{letters}])(?![^\W\d_]| [a-z])"
    found = re.match(mark, said) or re.search(rf"(?:[Aa]nswer(?:\s+is)?|答案(?:是|为)?){mark}", said)
    if found is not None:
        return options[letters.index(found[1])]
    named = {option for option in options if option.casefold() in said.casefold()}
    return named.pop() if len(named) == 1 else None


def _document(example: Example, benchmark: Benchmark, written: bool) -> Document:
    options = example.choices or ()
    letters = list(string.ascii_uppercase[: len(options)])
    exam = benchmark.metric == "likelihood"
    listed = written or benchmark.way != "words"
    prompt = (example if listed else replace(example, choices=None)).prompt()
    cue = benchmark.request if written and exam else benchmark.cue
    gold = options.index(example.answer) if options else 0
    return {
        "id": example.id,
        "text": f"{prompt}\n{cue}" if cue else prompt,
        "choices": None if written else letters if benchmark.way == "letters" else list(options),
        "gold": gold,
        "target": letters[gold] if exam else example.answer,
        "example": json.dumps(example.to_dict()),
        "way": benchmark.way,
        "metric": benchmark.metric,
    }
