"""Evaluating pico models: choices by likelihood, answers by metric, subsets, limits and every refusal."""

import threading

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from pico_adapters import lora, saved
from pico_language import byte_tokenizer, pico

from workbench.adapters import LoraMoeConfig, SkillRouterConfig
from workbench.errors import ConfigError, DataError, ModelError
from workbench.evaluation import CLASSROOM, METRICS, EvaluationStopped, Task, evaluate, runner
from workbench.evaluation.likelihood import choice_scores
from workbench.evaluation.suites import resolve
from workbench.generation import encode_prompt, generate_batch
from workbench.records import SKILLS, Example

TOKENIZER = byte_tokenizer(chat=True)


def asked(i: int, answer: str = "x", **columns) -> Example:
    return Example(
        **{"id": f"e{i}", "skill": "s", "query": f"question {'long ' * (i % 4)}{i}", "answer": answer, **columns}
    )


CHOICES = [
    asked(0, "yes", choices=("yes", "no")),
    asked(1, "c", choices=("a", "bb", "c", "dddd")),
    asked(2, "é", choices=("é", "long choice", "b")),
]


def by_hand(model, example: Example) -> list[float]:
    """One full pass for each choice, without cache or batch."""
    prompt = encode_prompt(TOKENIZER, example.prompt())
    scores = []
    for choice in example.choices:
        ids = TOKENIZER(choice, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            steps = torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1], -1)
        scores.append(float(steps[range(len(ids)), ids].sum()) / len(choice.encode()))
    return scores


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_choice_scores_are_those_of_full_passes(batch_size):
    model = pico()
    scores = choice_scores(model, TOKENIZER, CHOICES, batch_size=batch_size)
    for example, values in zip(CHOICES, scores, strict=True):
        assert values == pytest.approx(by_hand(model, example), abs=1e-5)


def step_by_step(model, example: Example) -> list[float]:
    """Prompt first, then each choice token by token, one sequence at a time."""
    prompt = torch.tensor([encode_prompt(TOKENIZER, example.prompt())])
    scores = []
    for choice in example.choices:
        said, total = model(prompt, use_cache=True), 0.0
        for token in TOKENIZER(choice, add_special_tokens=False)["input_ids"]:
            total += float(torch.log_softmax(said.logits[0, -1], -1)[token])
            said = model(torch.tensor([[token]]), past_key_values=said.past_key_values, use_cache=True)
        scores.append(total / len(choice.encode()))
    return scores


@torch.no_grad()
@pytest.mark.parametrize("kind", ["skill gate", "mixture"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_every_choice_keeps_the_route_of_its_prompt(kind, batch_size, tmp_path):
    targets = ["q_proj", "down_proj"]
    if kind == "mixture":
        config = LoraMoeConfig(r=2, num_experts=3, num_experts_per_tok=2, routing="sequence", target_modules=targets)
    else:
        for seed, name in enumerate("ab"):
            saved(pico(), lora(target_modules=targets), tmp_path / name, seed=seed)
        config = SkillRouterConfig(skills={name: str(tmp_path / name) for name in "ab"}, gate="input", strict=False)
    torch.manual_seed(0)
    model = get_peft_model(pico(), config).eval()
    for name, tensor in model.named_parameters():
        if "router" in name or "lora_moe" in name:
            tensor.data += torch.randn_like(tensor)
    scores = choice_scores(model, TOKENIZER, CHOICES, batch_size=batch_size)
    for example, values in zip(CHOICES, scores, strict=True):
        assert values == pytest.approx(step_by_step(model, example), abs=1e-4)


def test_dropout_does_not_count_while_a_model_in_training_is_scored():
    model = pico()
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    quiet = choice_scores(model, TOKENIZER, CHOICES)
    assert choice_scores(model.train(), TOKENIZER, CHOICES) == quiet
    assert model.training


def test_the_likeliest_choice_is_the_output():
    model = pico()
    scores = evaluate(model, TOKENIZER, {"exam": CHOICES}, progress=False)
    best = [max(zip(by_hand(model, e), e.choices))[1] for e in CHOICES]
    assert [output.text for output in scores.outputs["exam"]] == best
    assert [output.value for output in scores.outputs["exam"]] == [b == e.answer for b, e in zip(best, CHOICES)]
    assert scores["exam"].metric == "likelihood"


def test_written_answers_are_scored_in_the_order_of_the_examples(monkeypatch):
    answers = iter([["Asthma.", "wrong", ""], ["a b", "", "a"]])
    monkeypatch.setattr(runner, "generate_batch", lambda *args, **kwargs: next(answers))
    rows = [asked(i, "asthma") for i in range(3)]
    words = Task(name="words", metric="rouge_l", examples=[asked(i, "a b") for i in range(3)], group="text")
    scores = evaluate(pico(), TOKENIZER, [Task(name="facts", examples=rows), words], progress=False)
    assert [output.value for output in scores.outputs["facts"]] == [1, 0, 0]
    assert scores["facts"].value == pytest.approx(1 / 3)
    assert [output.value for output in scores.outputs["words"]] == pytest.approx([1, 0, 2 / 3])
    assert (scores["words"].group, scores["facts"].group, scores["words"].n) == ("text", "own", 3)


def test_answers_come_from_the_batched_decoder():
    model, rows = pico(), [asked(i, "xy") for i in range(4)]
    scores = evaluate(model, TOKENIZER, {"mine": rows}, batch_size=3, progress=False)
    # Room for an answer: the two tokens of the wanted ones and eight more.
    alone = [generate_batch(model, TOKENIZER, [row.prompt()], max_new_tokens=10)[0] for row in rows]
    assert [output.text for output in scores.outputs["mine"]] == alone
    assert scores.settings["max_new_tokens"] == {"mine": 10}


def test_tasks_without_wanted_answers_get_a_fixed_room():
    task = Task(name="open", metric="ifeval", examples=[asked(1, "")])
    assert runner.with_length(TOKENIZER, task).max_new_tokens == 256


def test_settings_say_what_the_figures_depend_on():
    settings = evaluate(pico(), TOKENIZER, {"exam": CHOICES}, limit=2, seed=4, progress=False).settings
    assert settings == {
        "suite": "own",
        "split": None,
        "limit": 2,
        "seed": 4,
        "chat_template": True,
        "decoding": "greedy",
        "dtype": "float32",
        "metrics": {"likelihood": 1},
        "max_new_tokens": {},
        "too_long_skipped": {},
        "tasks_without_rows": [],
    }


def test_a_dataset_of_rows_is_taken_and_gets_the_classrooms_metric_by_its_name():
    rows = Dataset.from_list([example.to_dict() for example in CHOICES])
    tasks = resolve({"exam_forward": rows, "classification": [asked(1)]}, split="test")
    assert [(task.group, task.metric) for task in tasks] == [("exam", "likelihood"), ("clinical", "label_f1")]
    assert tasks[0].rows() == tuple(CHOICES)


def test_a_limit_is_random_repeatable_and_part_of_a_larger_one():
    rows = [asked(i) for i in range(50)]

    def ids(limit, seed=0):
        return [e.id for e in resolve({"mine": rows}, split="test", limit=limit, seed=seed)[0].rows()]

    assert ids(10) == ids(10) != ids(10, seed=1)
    assert ids(10) != [row.id for row in rows[:10]]
    assert set(ids(10)) < set(ids(20))
    assert ids(99) == [row.id for row in rows]
    assert ids(10) == sorted(ids(10), key=lambda name: int(name[1:]))


def test_progress_counts_every_example_and_a_stop_ends_it():
    seen, stop = [], threading.Event()
    evaluate(pico(), TOKENIZER, {"exam": CHOICES, "mine": [asked(1), asked(2)]}, progress=seen.append)
    assert sum(seen) == 5
    stop.set()
    with pytest.raises(EvaluationStopped, match="stopped before the last example"):
        evaluate(pico(), TOKENIZER, {"exam": CHOICES}, progress=False, stop=stop)


def test_too_long_examples_are_an_error_that_counts_them():
    rows = [asked(0), asked(1, context="x" * 80)]
    with pytest.raises(ConfigError, match=r"1 of 2 examples of task 'mine' need up to \d+ tokens .* context holds 64"):
        evaluate(pico(), TOKENIZER, {"mine": rows}, progress=False)
    scores = evaluate(pico(), TOKENIZER, {"mine": rows}, progress=False, on_long="skip")
    assert (scores["mine"].n, scores.settings["too_long_skipped"]) == (1, {"mine": 1})


def test_a_task_of_which_all_examples_are_too_long_cannot_be_skipped_away():
    with pytest.raises(ConfigError, match="1 of 1 examples of task 'mine'"):
        evaluate(pico(), TOKENIZER, {"mine": [asked(1, context="x" * 80)]}, progress=False, on_long="skip")


def test_broken_weights_are_an_error():
    model = pico()
    model.lm_head.weight.data[:] = float("nan")
    for suite in ({"exam": CHOICES}, {"mine": [asked(1)]}):
        with pytest.raises(ModelError, match="not finite"):
            evaluate(model, TOKENIZER, suite, progress=False)


@pytest.mark.parametrize(
    ("suite", "options", "error", "message"),
    [
        ("school", {}, ConfigError, "suite 'school' is not known; use 'classroom', a dict"),
        ({}, {}, ConfigError, "needs at least one"),
        ({"mine": []}, {}, ConfigError, "task 'mine' has no example"),
        (
            {"mine": [asked(1)]},
            {"tasks": ["yours"]},
            ConfigError,
            r"tasks \['yours'\] are not in the suite; it has mine",
        ),
        ({"mine": [asked(1)]}, {"limit": 0}, ConfigError, "limit=0: it must be at least 1"),
        ({"mine": [asked(1)]}, {"on_long": "cut"}, ConfigError, "on_long='cut'; use 'error' or 'skip'"),
        ({"mine": [asked(1)]}, {"batch_size": 0}, ConfigError, "batch_size=0: it must be at least 1"),
        ({"exam": CHOICES}, {"batch_size": 0}, ConfigError, "batch_size=0: it must be at least 1"),
        ({"exam_forward": [asked(1)]}, {}, DataError, "example 'e1' has the choices .* needs choices"),
        ({"x": [asked(1, "b", choices=("a", "c"))]}, {}, DataError, "one of which is the answer"),
        ({"x": [asked(1, "a", choices=("a", ""))]}, {}, DataError, "empty choice"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(suite, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(pico(), TOKENIZER, suite, progress=False, **options)


def test_two_tasks_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="a name of its own"):
        resolve([Task(name="a", examples=[asked(1)]), Task(name="a", examples=[asked(2)])], split="test")


def test_the_classroom_measures_all_skills_with_known_metrics():
    assert {name for name, (group, _) in CLASSROOM.items() if group == "clinical"} == set(SKILLS)
    assert {metric for _, metric in CLASSROOM.values()} <= set(METRICS)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_classroom_task_resolves_and_its_own_answer_scores_full(split):
    tasks = resolve("classroom", split=split, limit=4)
    assert [task.name for task in tasks] == [*CLASSROOM]
    for task in tasks:
        for example in task.rows():
            assert runner.score(example, example.answer, task.metric) == 1, (task.name, example.id)


def test_a_split_that_some_tasks_lack_leaves_them_out_of_the_whole_only():
    names = {task.name for task in resolve("classroom", split="test_unseen", limit=1)}
    assert set(SKILLS) <= names < set(CLASSROOM)
    with pytest.raises(ConfigError, match="tasks instruction have no row in split 'test_unseen'; choose one of"):
        resolve("classroom", split="test_unseen", tasks=["instruction"])
