"""Benchmarks through lm-eval on models that know nothing, and on a local server that answers, fails and is silent."""

import copy
import json
import math
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pico_language import byte_tokenizer, pico

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
from workbench.errors import ConfigError, ModelError
from workbench.evaluation import read_benchmark, run_benchmarks, served
from workbench.evaluation.harness import make_documents, process_results, read_option
from workbench.generation import Endpoint

OPTIONS = ["heart", "an ox", "liver", "skin"]


def exam(folder, count=4, question="Which organ {}?"):
    path = folder / "exam.csv"
    path.write_text("".join(f"{question.format(i)},{','.join(OPTIONS)},C\n" for i in range(count)), encoding="utf-8")
    return path


def document(folder, name="mmlu_medical", **settings):
    return make_documents(read_benchmark(name, exam(folder)), written=False, **settings)[0]


@pytest.fixture(scope="module")
def loaded():
    return pico(context=128), byte_tokenizer(chat=True)


@pytest.mark.parametrize(("sums", "value"), [([-4.0, -3.0, -2.0, -5.0], 1.0), ([-4.0, -1.0, -2.0, -5.0], 0.0)])
def test_the_likeliest_option_is_valued(sums, value, tmp_path):
    found = process_results(document(tmp_path), [(total, False) for total in sums])
    assert found == {"value": value, "empty": 0.0, "unread": 0.0}


def test_length_counts_only_where_the_texts_are_compared(tmp_path):
    sums = [(total, False) for total in (-5.0, -6.0, -4.1, -3.6)]  # per byte -0.82 for liver and -0.9 for skin
    values = [process_results(document(tmp_path) | {"way": way}, sums)["value"] for way in ("words", "options")]
    assert values == [0.0, 1.0]


def test_a_likelihood_that_is_no_number_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"'exam.csv:1' are \[nan, .*\]; they must be numbers"):
        process_results(document(tmp_path), [(math.nan, False)] * 4)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("C", "liver"),
        ("C.", "liver"),
        (" (C) liver", "liver"),
        ("**C**", "liver"),
        ("The answer is C", "liver"),
        ("答案：C", "liver"),
        ("正确答案是C。", "liver"),
        ("It is the liver.", "liver"),
        ("<think>A or B?</think>\nC", "liver"),
        ("C\n\nThe skin is another organ.", "liver"),
        ("A patient asks.", None),
        ("Cats have nine lives.", None),
        ("Heart or liver.", None),
        ("F", None),
        ("", None),
    ],
)
def test_options_are_read_out_of_written_answers(text, option, tmp_path):
    one = document(tmp_path)
    assert read_option(one, text) == option
    value, silent = float(option == "liver"), option is None
    assert process_results(one, [text]) == {
        "value": value,
        "empty": float(not text),
        "unread": float(silent and bool(text)),
    }


def test_prompts(tmp_path):
    path = exam(tmp_path, 1)
    listed = "Which organ 0?\nA. heart\nB. an ox\nC. liver\nD. skin"
    choice, asked = (make_documents(read_benchmark("mmlu_medical", path), written=way)[0] for way in (False, True))
    assert (choice["text"], choice["choices"], choice["gold"]) == (f"{listed}\nAnswer:", ["A", "B", "C", "D"], 2)
    assert asked["text"] == f"{listed}\nWrite the letter of the right option, and nothing else."
    assert (asked["choices"], asked["target"]) == (None, "C")
    with pytest.raises(
        ConfigError, match=r"num_fewshot=1: benchmark 'mmlu_medical' has 0 solved examples for exam.csv"
    ):
        make_documents(read_benchmark("mmlu_medical", path), written=False, num_fewshot=1)


def test_a_run_says_how_it_asked_and_leaves_everything_as_it_was(loaded, tmp_path):
    model, tokenizer = loaded
    model.train()
    noise, pad = torch.random.get_rng_state(), tokenizer.padding_side
    scores = run_benchmarks(model, tokenizer, {"mmlu_medical": exam(tmp_path, 6)}, limit=5, shuffle_options=3)
    assert model.training
    assert (tokenizer.padding_side, torch.equal(torch.random.get_rng_state(), noise)) == (pad, True)
    model.eval()
    told = scores.settings
    assert (told["limit"], told["shuffle_options"], told["chat_template"], told["num_fewshot"]) == (5, 3, True, 0)
    assert told["benchmarks"]["mmlu_medical"]["way"] == "letters"
    assert scores["mmlu_medical"].n == len(scores.outputs["mmlu_medical"]) == 5
    assert 0 <= scores["mmlu_medical"].low <= scores["mmlu_medical"].value <= scores["mmlu_medical"].high
    assert {output.text for output in scores.outputs["mmlu_medical"]} <= set(OPTIONS)
    plain = run_benchmarks(model, tokenizer, {"mmlu_medical": exam(tmp_path, 6)}, chat_template=False)
    assert plain.settings["chat_template"] is False


def test_questions_beyond_the_context_are_an_error_or_counted(loaded, tmp_path):
    short = exam(tmp_path, 3).read_text()
    path = exam(tmp_path, 1, "Which organ " + 99 * "x")
    path.write_text(short + path.read_text())
    files = {"mmlu_medical": path}
    with pytest.raises(ConfigError, match=r"1 of 4 examples of task 'mmlu_medical' need up to \d+ tokens .* holds 128"):
        run_benchmarks(*loaded, files)
    scores = run_benchmarks(*loaded, files, on_long="skip")
    assert scores.settings["too_long_skipped"] == {"mmlu_medical": 1}
    assert scores["mmlu_medical"].n == 3
    with pytest.raises(ConfigError, match=r"need up to .* or give on_long='skip'"):
        run_benchmarks(*loaded, files, on_long="skip", written=True, max_new_tokens=100)


def test_what_cannot_be_run(loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    files = {"mmlu_medical": exam(tmp_path)}
    with pytest.raises(ConfigError, match=r"chat_template=True, and the tokenizer has none"):
        run_benchmarks(model, byte_tokenizer(), files, chat_template=True)
    with pytest.raises(ConfigError, match=r"0 sources, batch_size=8"):
        run_benchmarks(model, tokenizer, {})
    with pytest.raises(ConfigError, match=r"on_long='drop': the numbers must be at least 1, and on_long 'error' or"):
        run_benchmarks(model, tokenizer, files, on_long="drop")
    endpoint = Endpoint("http://127.0.0.1:9/v1", "far")
    with pytest.raises(ConfigError, match=r"chat_template=False, and the endpoint applies its own"):
        run_benchmarks(endpoint, None, files, chat_template=False)
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/v1 tells no likelihoods .*written=True"):
        run_benchmarks(endpoint, None, files, written=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ConfigError, match=r"need lm-eval, which cannot be imported .*pip install 'workbench\[eval\]'"):
        run_benchmarks(model, tokenizer, files)


class Server(BaseHTTPRequestHandler):
    """Answers what its server's `answer` makes of the question; an answer of None is an error 503."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        self.server.asked.append((body["model"], question))
        text = self.server.answer(question)
        self.send_response(200 if text is not None else 503)
        self.end_headers()
        if text is not None:
            event = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.asked, server.answer = [], answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(served, "time", SimpleNamespace(sleep=found.append))
    return found


def test_an_endpoint_that_fails_once_is_asked_again(pauses, tmp_path):
    failures = iter([None, None])
    with serving(lambda question: next(failures, "C" if "1?" in question else "B")) as (server, url):
        scores = run_benchmarks(Endpoint(url, "good"), None, {"mmlu_medical": exam(tmp_path, 5)}, batch_size=3)
    assert [output.value for output in scores.outputs["mmlu_medical"]] == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert len(server.asked) == 7
    assert pauses == [0.0, 1.0, 0.0]
    assert scores.settings["model"] == f"good at {url}"
    assert scores.settings["benchmarks"]["mmlu_medical"]["way"] == "written"


def test_an_endpoint_that_fails_midway_goes_on_where_it_stopped(pauses, tmp_path):
    files, store = {"mmlu_medical": exam(tmp_path, 6)}, tmp_path / "answers"
    broken = {"Which organ 3?"}
    answer = lambda question: None if question.partition("\n")[0] in broken else "C"  # noqa: E731
    with serving(answer) as (server, url):
        endpoint = Endpoint(url, "good")
        with pytest.raises(ModelError, match=r"1 requests failed 3 times; the last one: .*503.* run again"):
            run_benchmarks(endpoint, None, files, batch_size=2, store=store)
        assert (len(server.asked), pauses) == (6, [0.0, 0.0, 1.0, 4.0])
        broken.clear()
        server.asked.clear()
        scores = run_benchmarks(endpoint, None, files, batch_size=2, store=store)
        assert {question.partition("\n")[0] for _, question in server.asked} == {f"Which organ {i}?" for i in (3, 4, 5)}
        assert scores["mmlu_medical"].value == 1.0
        server.asked.clear()
        again = run_benchmarks(endpoint, None, files, batch_size=2, store=store)
        assert (again.outputs, server.asked) == (scores.outputs, [])
        run_benchmarks(Endpoint(url, "other"), None, files, batch_size=2, store=store)
        assert [model for model, _ in server.asked] == ["other"] * 6


def test_empty_and_unreadable_answers_are_worth_nothing_and_counted(pauses, tmp_path):
    said = {"Which organ 0?": "C", "Which organ 1?": "", "Which organ 2?": " \n", "Which organ 3?": "I cannot say."}
    with serving(lambda question: said[question.partition("\n")[0]]) as (_, url):
        scores = run_benchmarks(Endpoint(url, "shy"), None, {"mmlu_medical": exam(tmp_path)})
    told = scores.settings["benchmarks"]["mmlu_medical"]
    assert (told["empty_answers"], told["unread_answers"]) == (2, 1)
    assert [(output.text, output.value) for output in scores.outputs["mmlu_medical"]] == [
        (text, float(text == "C")) for text in said.values()
    ]


def test_a_model_may_write_its_answers_too(loaded, tmp_path):
    scores = run_benchmarks(
        *loaded, {"mmlu_medical": exam(tmp_path, 2)}, written=True, max_new_tokens=3, on_long="skip"
    )
    told = scores.settings["benchmarks"]["mmlu_medical"]
    assert (told["way"], told["max_new_tokens"]) == ("written", 3)
    assert scores["mmlu_medical"].n == 2


def test_a_model_that_is_interrupted_goes_on_where_it_stopped(loaded, tmp_path, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = loaded
    files, store, calls = {"mmlu_medical": exam(tmp_path, 6)}, tmp_path / "answers", []
    compute = HFLM._model_call

    def counted(self, *args, **kwargs):
        calls.append(len(calls))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    stop = 0
    monkeypatch.setattr(HFLM, "_model_call", counted)
    wanted, whole = run_benchmarks(model, tokenizer, files, batch_size=1), len(calls)
    calls.clear()
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        run_benchmarks(model, tokenizer, files, batch_size=1, store=store)
    calls.clear()
    stop = 0
    assert run_benchmarks(model, tokenizer, files, batch_size=1, store=store).outputs == wanted.outputs
    assert 0 < len(calls) == whole - 3
    calls.clear()
    assert run_benchmarks(model, tokenizer, files, batch_size=1, store=store).outputs == wanted.outputs
    assert calls == []
    trained = copy.deepcopy(model)
    next(trained.parameters()).data.mul_(1.5)
    run_benchmarks(trained, tokenizer, files, batch_size=1, store=store)
    assert len(calls) == whole
    for alpha in (8, 16):
        calls.clear()
        torch.manual_seed(0)
        config = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        run_benchmarks(get_peft_model(copy.deepcopy(model), config), tokenizer, files, batch_size=1, store=store)
        assert len(calls) == whole, "the same weights with another alpha are another model"


def test_a_model_of_lm_eval_is_taken_as_it_is(loaded, tmp_path):
    from lm_eval.models.huggingface import HFLM

    files = {"mmlu_medical": exam(tmp_path)}
    given = run_benchmarks(HFLM(pretrained=loaded[0], tokenizer=byte_tokenizer(), batch_size=2), None, files)
    ours = run_benchmarks(loaded[0], byte_tokenizer(), files)
    assert given.outputs == ours.outputs
    assert (given.settings["chat_template"], ours.settings["chat_template"]) == (False, False)
    with pytest.raises(ConfigError, match=r"store='.*' keeps the answers of a model or an Endpoint; leave it out"):
        run_benchmarks(HFLM(pretrained=loaded[0], tokenizer=byte_tokenizer()), None, files, store=tmp_path)
