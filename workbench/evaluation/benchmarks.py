"""Public benchmarks measured by lm-evaluation-harness: one model or endpoint, many files, one table."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.evaluation.exams import Reading, read_benchmark
from workbench.evaluation.metrics import METRICS
from workbench.evaluation.runner import fitting, summary, with_length
from workbench.evaluation.suites import resolve
from workbench.generation import Endpoint, evaluating
from workbench.ops.digest import add_weights
from workbench.records import Output, Scores

_LETTER, _OPEN_ENDED = 64, 256


def run_benchmarks(
    model: Any,
    tokenizer: Any,
    sources: Mapping[str, str | Path],
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    shuffle_options: int | None = None,
    chat_template: bool | None = None,
    num_fewshot: int = 0,
    written: bool | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    on_bad: str = "error",
    on_long: str = "error",
    store: str | Path | None = None,
) -> Scores:
    """Score a model or an endpoint on benchmarks, as tasks of lm-evaluation-harness.

    Exams compare the log-likelihoods of their options' letters after the prompt, as lm-eval's own tasks of MMLU do;
    see `Benchmark` for the other ways. Nothing is downloaded unless a source is a hub id.

    Args:
        model: A causal language model of transformers; an `Endpoint`, which is asked over the network and applies its
            own chat template; or an lm-eval `LM`, such as its `local-completions`.
        tokenizer: The model's tokenizer; None beside an endpoint or an `LM`.
        sources: Name of a benchmark (`BENCHMARKS`, or a task of the classroom) to its file, folder or hub id.
        split: Which part of a folder counts: test, validation, dev or train.
        limit: Most questions of each, a random part that depends on `seed` and the name alone.
        seed: Of the limited part and of the bootstrap.
        shuffle_options: Seed by which each question's options change places, the answer with them; None leaves them.
        chat_template: Whether the model's chat template is applied; None applies it where the tokenizer has one.
        num_fewshot: Solved examples before each question, from a folder's part dev or train; at least 0.
        written: True lets an exam's answer be written, and read as a letter or an option; None does so for endpoints.
        max_new_tokens: Most tokens of a written answer; None takes 64 for exams, 1280 for IFEval, and 8 more than the
            longest wanted answer elsewhere (256 where no tokenizer tells its length).
        batch_size: Most sequences computed, or requests sent, together.
        on_bad: `error` or `skip`, as in `read_benchmark`.
        on_long: `error` or `skip`: what to do with a question that exceeds the model's context, with its answer.
        store: A folder in which answers are kept as they come, so that a run that failed goes on with those that are
            missing: bound to an endpoint's address and the model's name there, or to a model's weights, configuration
            (its adapter's, too) and vocabulary. lm-eval reads it by pickle: open none that someone else has written.

    Returns:
        Scores by benchmark. `settings["benchmarks"]` says of each how it was asked, what was left out and why, how
        many were too long, how many answers were empty, and in how many others no option could be read, which both
        have the value 0.

    Raises:
        ConfigError: An argument is out of range, a benchmark is unknown or has no row, questions are too long, or
            lm-eval is not installed.
        DataError: A source cannot be read, has another benchmark's columns or bad rows, or lacks what a metric needs.
        ModelError: An endpoint failed every time, or a log-likelihood is no number.
    """
    if not sources or min(batch_size, max_new_tokens or 1) < 1 or on_long not in ("error", "skip"):
        raise ConfigError(
            f"{len(sources)} sources, batch_size={batch_size}, max_new_tokens={max_new_tokens}, on_long={on_long!r}: "
            "the numbers must be at least 1, and on_long 'error' or 'skip'"
        )
    template = _template(model, tokenizer, chat_template)
    written = isinstance(model, Endpoint) if written is None else written
    reading = {"split": split, "shuffle_options": shuffle_options, "on_bad": on_bad}
    read = {name: read_benchmark(name, source, **reading) for name, source in sources.items()}
    measured = {}
    with _language_model(model, tokenizer, batch_size, store) as lm:
        for task in resolve([one.task for one in read.values()], split=split, limit=limit, seed=seed):
            one = replace(read[task.name], task=task)
            asked = _ask(one, written, max_new_tokens, tokenizer, num_fewshot)
            measured[task.name] = _measure(lm, one, asked, template, on_long)
    outputs = {name: tuple(outputs) for name, (outputs, _) in measured.items()}
    facts = {name: {"source": str(sources[name])} | facts for name, (_, facts) in measured.items()}
    settings = {"suite": ", ".join(sources), "limit": limit, "seed": seed, "num_fewshot": num_fewshot} | reading
    settings |= {"chat_template": template, "decoding": "greedy", "benchmarks": facts}
    settings["model"] = f"{model.model} at {model.url}" if isinstance(model, Endpoint) else type(model).__name__
    settings["too_long_skipped"] = {name: of["too_long"] for name, of in facts.items() if of["too_long"]}
    return Scores(
        tasks={name: summary(read[name].task, outputs[name], seed) for name in sources},
        settings=settings,
        outputs=outputs,
    )


def _ask(reading: Reading, written: bool, max_new_tokens: int | None, tokenizer: Any, num_fewshot: int) -> Any:
    """Return a benchmark as a task of lm-eval."""
    from lm_eval.tasks import TaskManager

    from workbench.evaluation.harness import make_documents

    written = written or reading.benchmark.way == "written"
    kind = "workbench_written" if written else "workbench_choice"
    data: Any = {"documents": make_documents(reading, written=written, num_fewshot=num_fewshot)}
    manager = TaskManager(include_path=str(Path(__file__).parent / "tasks"), include_defaults=False, metadata=data)
    task: Any = manager.load([kind])["tasks"][kind]
    task.set_config("task", reading.task.name)
    task.set_config("num_fewshot", num_fewshot)
    if written:
        room = max_new_tokens or _room(reading, tokenizer)
        task.set_config("generation_kwargs", {"max_gen_toks": room}, update=True)
    elif not reading.benchmark.cue:
        task.set_config("target_delimiter", "\n")
    return task


def _room(reading: Reading, tokenizer: Any) -> int:
    if reading.task.metric == "likelihood":
        return _LETTER
    task = reading.task if tokenizer is None else with_length(tokenizer, reading.task)
    return task.max_new_tokens or _OPEN_ENDED


def _measure(lm: Any, reading: Reading, task: Any, template: bool, on_long: str) -> tuple[list[Output], dict[str, Any]]:
    """Let lm-eval run a task; return its outputs, and what a reader of its score must know."""
    from lm_eval.evaluator import evaluate

    from workbench.evaluation.harness import answer_of

    name = reading.task.name
    kept: Any = _fitting(lm, task, template, skip=on_long == "skip")
    found: Any = evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}, "groups": {}},
        samples={name: kept},
        bootstrap_iters=0,
        apply_chat_template=template,
        fewshot_as_multiturn=True,
    )
    rows = found["samples"][name]
    outputs = [
        Output(id=row["doc"]["id"], text=answer_of(row["doc"], row["filtered_resps"]), value=float(row["value"]))
        for row in rows
    ]
    written = task.OUTPUT_TYPE == "generate_until"
    return outputs, {
        "way": "written" if written else reading.benchmark.way,
        "metric_version": METRICS[reading.task.metric].version,
        "max_new_tokens": task.config.generation_kwargs["max_gen_toks"] if written else None,
        "left_out": dict(reading.left_out),
        "too_long": len(task.eval_docs) - len(kept),
        "empty_answers": int(sum(row["empty"] for row in rows)),
        "unread_answers": int(sum(row["unread"] for row in rows)),
    }


def _fitting(lm: Any, task: Any, template: bool, *, skip: bool) -> Sequence[int]:
    """Return the places of the documents that fit the model's context; lm-eval would cut the others' beginnings off."""
    every, limit = range(len(task.eval_docs)), getattr(lm, "max_length", None)
    if limit is None:
        return every
    lengths = [_length(lm, task, document, template) for document in task.eval_docs]
    kept = fitting(task.config.task, lengths, limit, skip=skip)
    return kept if len(kept) < len(every) else every


def _length(lm: Any, task: Any, document: Mapping[str, Any], template: bool) -> int:
    """Return how many tokens a question takes; the last one of an option is not read."""
    chat = lm.apply_chat_template if template else None
    shots = task.config.num_fewshot
    context = task.fewshot_context(
        document, shots, apply_chat_template=template, fewshot_as_multiturn=True, chat_template=chat
    )
    if task.OUTPUT_TYPE == "generate_until":
        return len(lm.tok_encode(context)) + task.config.generation_kwargs["max_gen_toks"]
    asked = task.construct_requests(document, context, apply_chat_template=template)
    return max(len(lm.tok_encode("".join(one.args))) for one in asked) - 1


def _template(model: Any, tokenizer: Any, wanted: bool | None) -> bool:
    there = isinstance(model, Endpoint) or bool(getattr(tokenizer, "chat_template", None))
    if (wanted is False and isinstance(model, Endpoint)) or (wanted and tokenizer is not None and not there):
        raise ConfigError(
            f"chat_template={wanted}, and {'the endpoint applies its own' if there else 'the tokenizer has none'}; "
            "leave the argument out"
        )
    return there if wanted is None else wanted


@contextmanager
def _language_model(model: Any, tokenizer: Any, batch_size: int, store: str | Path | None) -> Iterator[Any]:
    """Yield lm-eval's view of a model, quietly; model and tokenizer are left as they were."""
    try:
        from lm_eval.api.model import LM, CachingLM
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            f"benchmarks need lm-eval, which cannot be imported ({error}). Run `pip install 'workbench[eval]'`."
        ) from error
    from workbench.evaluation.served import ServedModel

    if store is not None and isinstance(model, LM):
        raise ConfigError(
            f"store={str(store)!r} keeps the answers of a model or an Endpoint; leave it out for an LM of lm-eval, "
            "of which it cannot be told whose answers they are"
        )
    with ExitStack() as stack:
        log = logging.getLogger("lm_eval")
        stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        if isinstance(model, Endpoint):
            lm: Any = ServedModel(model, at_once=batch_size)
        elif isinstance(model, LM):
            lm = model
        else:
            stack.enter_context(evaluating(model))
            wrap: Any = HFLM
            lm = wrap(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch_size)
        if store is not None:
            lm = CachingLM(lm, str(Path(store) / f"{_identity(model, tokenizer)}.db"))
            stack.callback(lm.dbdict.close)
        yield lm


def _identity(model: Any, tokenizer: Any) -> str:
    """Return what answers are kept under: those of another model, or of the same one trained on, are not its own."""
    if isinstance(model, Endpoint):
        return hashlib.sha256(f"{model.url}\0{model.model}".encode()).hexdigest()[:32]
    # What the same weights say depends on settings such as an adapter's alpha.
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    active = getattr(model, "active_adapters", None)  # a method where there is no adapter
    settings = {**model.config.to_dict(), "_name_or_path": ""}
    about = [tokenizer.get_vocab(), settings, adapters, active if isinstance(active, list) else []]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=_plain).encode())
    add_weights(digest, model)
    return digest.hexdigest()[:32]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
