"""Public benchmarks as examples: how each published file is read, in what words it is asked, which rows count."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.data import Choice, load_examples
from workbench.errors import ConfigError, DataError
from workbench.evaluation.suites import CLASSROOM, Task
from workbench.records import Example, records

_PARTS = {"val": "validation", "valid": "validation"} | {name: name for name in ("dev", "validation", "test", "train")}
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_SEVERAL = re.compile(r"'[A-Za-z](?:[\s,;、，|]*[A-Za-z])+'")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How one public benchmark is read and asked.

    Args:
        columns: Arguments of `load_examples` for its published files.
        group: The axis it counts towards.
        way: `letters`: the options stand in the prompt and their letters are compared, by the sum of log-likelihoods;
            `options`: their texts are compared, per byte, as `evaluate` does; `words`: their texts are compared by the
            sum and do not stand in the prompt; `written`: an answer is written.
        metric: Of a written answer; `likelihood` for the other ways.
        cue: Last line of the prompt, which asks for the answer.
        request: In its place where a letter is to be written.
        medical: Of a folder with a file for each subject: whether those of medicine count, or all others; None takes
            every file.
        hub: Hub id to the arguments of `load_examples` that differ there.
        max_new_tokens: Most tokens of a written answer.
    """

    columns: Mapping[str, Any]
    group: str = "exam"
    way: str = "letters"
    metric: str = "likelihood"
    cue: str = "Answer:"
    request: str = "Write the letter of the right option, and nothing else."
    medical: bool | None = None
    hub: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_new_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read for one benchmark.

    Args:
        benchmark: How it is asked.
        task: The rows that count.
        shots: Subject to the rows from which its few shots are taken; `""` for all subjects together.
        left_out: Reason to how many rows do not count, and why.
    """

    benchmark: Benchmark
    task: Task
    shots: Mapping[str, Sequence[Example]]
    left_out: Mapping[str, int]


def _cmexam_options(row: Mapping[str, Any]) -> dict[str, str]:
    """`Options` is one text with a line for each option: its letter, a space or a mark, and its text."""
    lines = (
        re.match(r"([A-Z])[\s.．、:：]*(.+)", line.strip()) for line in row["Options"].splitlines() if line.strip()
    )
    return {line[1]: line[2] for line in lines if line is not None}


def _exam(query: str, choices: Any, answer: str, first: int | str = "A", **more: Any) -> dict[str, Any]:
    return {"skill": "exam", "query": query, "choices": choices, "answer": Choice(answer, first=first), **more}


_FOUR = ["A", "B", "C", "D"]
_MMLU = _exam("question", _FOUR, "answer", columns=["question", *_FOUR, "answer"])
_MMLU_HUB = {"cais/mmlu": _exam("question", "choices", "answer", 0)}
_MEDICINE = {
    "anatomy", "clinical_knowledge", "college_biology", "college_medicine", "human_aging", "medical_genetics",
    "nutrition", "professional_medicine", "virology", "college_medical_statistics", "genetics",
    "traditional_chinese_medicine",
}  # fmt: skip
_MEDMCQA = _exam("question", ["opa", "opb", "opc", "opd"], "cop", 1, id="id")
_MEDMCQA_HUB = {"openlifescienceai/medmcqa": {"answer": Choice("cop", first=0), "split": "validation"}}
_PUBMEDQA: dict[str, Any] = {"skill": "reading_comprehension", "query": "QUESTION", "answer": "final_decision"} | {
    "context": lambda row: "\n".join(row["CONTEXTS"]),
    "choices": lambda row: ["yes", "no", "maybe"],
}
_KEPT = ["instruction_id_list", "kwargs"]
_IFEVAL = {"skill": "instruction", "query": "prompt", "answer": "", "id": "key", "meta": _KEPT}
_CHINESE: dict[str, Any] = {"cue": "答案：", "request": "请只写出正确选项的字母。"}

BENCHMARKS: dict[str, Benchmark] = {
    "medqa": Benchmark(columns=_exam("question", "options", "answer_idx")),
    "medmcqa": Benchmark(columns=_MEDMCQA, hub=_MEDMCQA_HUB),
    "mmlu_medical": Benchmark(columns=_MMLU, hub=_MMLU_HUB, medical=True),
    "mmlu_general": Benchmark(columns=_MMLU, hub=_MMLU_HUB, medical=False, group="general"),
    "cmb": Benchmark(columns=_exam("question", "option", "answer"), **_CHINESE),
    "cmexam": Benchmark(columns=_exam("Question", _cmexam_options, "Answer"), **_CHINESE),
    "cmmlu_medical": Benchmark(columns=_exam("Question", _FOUR, "Answer"), medical=True, **_CHINESE),
    "pubmedqa": Benchmark(columns=_PUBMEDQA, group="clinical", way="words"),
    "ifeval": Benchmark(
        columns=_IFEVAL, group="instructions", way="written", metric="ifeval", cue="", max_new_tokens=1280,
        hub={"google/IFEval": {"split": "train"}},
    ),
}  # fmt: skip
"""Name of a public benchmark to how it is read; the tasks of the classroom are known beside them."""


def benchmark_of(name: str) -> Benchmark:
    """Return how a benchmark or a task of the classroom is read.

    Raises:
        ConfigError: There is none of this name.
    """
    if name in CLASSROOM:
        group, metric = CLASSROOM[name]
        way = "options" if metric == "likelihood" else "written"
        return Benchmark(columns={}, group=group, way=way, metric=metric, cue="")
    if name not in BENCHMARKS:
        known = ", ".join([*BENCHMARKS, *CLASSROOM])
        raise ConfigError(f"benchmark {name!r} is not known; use one of {known}")
    return BENCHMARKS[name]


def read_benchmark(
    name: str,
    source: str | Path,
    *,
    split: str = "test",
    shuffle_options: int | None = None,
    on_bad: str = "error",
) -> Reading:
    """Read a benchmark from a file, a folder or the hub, into examples.

    In a folder the part of a file is the last of dev, val, valid, validation, test and train in its path, such as
    `dev/anatomy_dev.csv`, and its subject the rest of its name; rows of the part `split` count, and those of dev, or
    else of train, are there for few shots. A single file counts as a whole. Rows in our own format, such as
    the classroom's, say their split themselves. A question with several right options, as CMB and CMExam have them,
    cannot be answered by one option: it is left out and counted.

    Args:
        name: One of `BENCHMARKS`, or a task of the classroom.
        source: A file or folder in the published format; `classroom/<name>`; or a hub id, `org/name` or
            `org/name:config`, which is opened over the network. An id that the benchmark names is read in its columns
            there; any other one must have those of the files.
        split: `test`, `validation`, `dev` or `train`.
        shuffle_options: Seed by which each question's options change places, the answer with them; None leaves them.
        on_bad: What to do with a row without an answer, with an answer outside the options or unreadable otherwise:
            `error` says which there are, `skip` leaves them out and counts them.

    Raises:
        ConfigError: There is no such benchmark, an argument is out of range, or no row is in the split.
        DataError: The source cannot be read, has the columns of something else, or has bad rows under `error`.
    """
    benchmark, part = benchmark_of(name), _PARTS.get(split)
    if part is None or on_bad not in ("error", "skip"):
        raise ConfigError(
            f"split={split!r}, on_bad={on_bad!r}: use test, validation, dev or train, and 'error' or 'skip'"
        )
    examples, left_out = _load(name, benchmark, source, part, on_bad)
    places = [_place(example, source, benchmark) for example in examples]
    pool = "dev" if any(where == "dev" for where, _ in places) else "train"
    kept: list[Example] = []
    shots: dict[str, list[Example]] = {"": []}
    for example, (where, subject) in zip(examples, places, strict=True):
        example = _shuffled(example, shuffle_options)
        if subject and benchmark.medical not in (None, subject in _MEDICINE):
            left_out["of another subject"] += 1
        elif where in (None, part):
            kept.append(example)
        else:
            left_out[f"in {where}"] += 1
            for key in {"", subject} if where == pool else ():
                shots.setdefault(key, []).append(example)
    if not kept:
        raise ConfigError(
            f"benchmark {name!r}: no row of {source} counts in split {split!r} (left out: {dict(left_out)}); choose "
            "another split, or name the file itself"
        )
    task = Task(
        name=name, examples=kept, metric=benchmark.metric, group=benchmark.group,
        max_new_tokens=benchmark.max_new_tokens,
    )  # fmt: skip
    return Reading(benchmark=benchmark, task=task, shots=shots, left_out=left_out)


def subject_of(example: Example) -> str:
    """Return the subject that an example's file is named after, `""` where its name says none."""
    stem = Path(example.source.rpartition(":")[0]).stem
    return "_".join(word for word in stem.split("_") if word not in _PARTS)


def _load(
    name: str, benchmark: Benchmark, source: str | Path, part: str, on_bad: str
) -> tuple[list[Example], Counter[str]]:
    columns, hub = dict(benchmark.columns), _HUB.fullmatch(str(source))
    if hub and columns and not Path(source).exists():
        source = hub[1]
        columns |= {"split": part, "config": hub[2], **benchmark.hub.get(hub[1], {})}
    try:
        dataset, report = load_examples(source, on_error="collect", **columns)
    except DataError as error:
        raise DataError(f"benchmark {name!r}: {error}") from error
    mark = columns["answer"].column if isinstance(columns.get("answer"), Choice) else None
    bad = tuple(row for row in report.bad if row.column != mark or not _SEVERAL.fullmatch(row.value))
    if bad and on_bad == "error":
        raise DataError(
            f"benchmark {name!r}: {replace(report, bad=bad).complaint()}\n"
            "Mend the rows, or leave them out and have them counted with on_bad='skip'."
        )
    counts = {"several answers": len(report.bad) - len(bad), "bad row": len(bad)}
    return records(dataset.to_list()), Counter({reason: count for reason, count in counts.items() if count})


def _place(example: Example, source: str | Path, benchmark: Benchmark) -> tuple[str | None, str]:
    """Return the part of its benchmark that an example belongs to, None where nothing says so, and its subject."""
    if not benchmark.columns:
        return example.split, ""
    if not Path(source).expanduser().is_dir():
        return None, ""
    words = re.split(r"[/_.-]", example.source.rpartition(":")[0])
    return next((_PARTS[word] for word in reversed(words) if word in _PARTS), None), subject_of(example)


def _shuffled(example: Example, seed: int | None) -> Example:
    if seed is None or example.choices is None:
        return example
    order = random.Random(f"{seed}/{example.id}")
    return replace(example, choices=tuple(order.sample(example.choices, len(example.choices))))
