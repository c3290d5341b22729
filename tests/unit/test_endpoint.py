"""A small local server that speaks OpenAI's streaming API, well and badly."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pico_language import byte_tokenizer, pico

from workbench.errors import ConfigError
from workbench.generation import Endpoint, Request, Scheduler, make_variants

TOKENIZER = byte_tokenizer()
WORDS = ["Good ", "morn", "", "ing ☀"]


def event(text, **more):
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, **more}]})}\n\n".encode()


class Server(BaseHTTPRequestHandler):
    """Streams WORDS; the model's name says what goes wrong."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        kind = body["model"]
        self.send_response(401 if kind == "locked" else 200, "no key" if kind == "locked" else "ok")
        self.end_headers()
        if kind == "locked":
            self.wfile.write(b"who are you?")
            return
        if kind == "page":
            self.wfile.write(b"data: <html>\n\n")
            return
        try:
            self.write_words(kind)
        except OSError:
            self.server.gone.set()

    def write_words(self, kind):
        self.wfile.write(b": a comment\n\nevent: message\n" + event(None, role="assistant"))
        for word in WORDS * (500 if kind == "endless" else 1):
            self.wfile.write(event(word))
            self.wfile.flush()
            time.sleep(0.01 if kind == "endless" else 0)
        if kind == "silent":
            self.server.gone.wait(5)
        if kind == "breaks":
            self.wfile.write(b'data: {"error": {"message": "out of memory"}}\n\n')
        if kind == "well":
            self.wfile.write(event("", finish_reason="stop") + b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.seen, server.gone = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()


def asked(endpoint, **settings):
    with Scheduler(make_variants({"far": endpoint}, TOKENIZER)) as one:
        answer = one.submit(Request("far", "Hello?", **settings))
        assert answer.wait(20)
    return answer


def test_an_answer_is_streamed_with_the_requests_settings(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret")
    with serving() as (server, url):
        answer = asked(Endpoint(url, "well", "TEST_KEY"), max_new_tokens=9, temperature=0.5, seed=3)
    assert (answer.state, answer.text, answer.token_ids) == ("done", "Good morning ☀", ())
    assert 0 < answer.first_token_s <= answer.seconds
    (path, key, body) = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body == {
        "model": "well",
        "messages": [{"role": "user", "content": "Hello?"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "stream": True,
    }


@pytest.mark.parametrize(
    ("model", "text", "error"),
    [
        ("locked", "", "answered 401 no key: who are you?"),
        ("page", "", "sent b'<html>', which is no event of a chat completion"),
        ("breaks", "Good morning ☀", "broke off: {'message': 'out of memory'}"),
        ("cut", "Good morning ☀", "closed the connection before the answer was whole"),
        ("silent", "Good morning ☀", "was silent for 0.3 seconds"),
    ],
)
def test_what_goes_wrong_there_is_said_here(model, text, error):
    with serving() as (_, url):
        answer = asked(Endpoint(url, model, timeout=0.3))
    assert (answer.state, answer.text) == ("failed", text)
    assert error in answer.error


def test_a_stop_closes_the_connection_and_others_go_on():
    with serving() as (server, url):
        variants = make_variants({"far": Endpoint(url, "endless"), "near": pico()}, TOKENIZER)
        with Scheduler(variants) as one:
            far = [one.submit(Request("far", "x")) for _ in range(9)]
            near = one.submit(Request("near", "x", max_new_tokens=4))
            assert near.wait(20)
            while not far[7].text:
                time.sleep(0.01)
            assert (far[8].state, far[8].place) == ("waiting", 1)
            far[0].stop()
            assert far[0].wait(1)
            assert server.gone.wait(5)
            while far[8].state == "waiting":
                time.sleep(0.01)
        assert {answer.state for answer in far} == {"stopped"}


def test_nobody_there_and_no_key():
    with serving() as (_, url):
        pass
    assert "cannot be reached (ConnectionRefusedError" in asked(Endpoint(url, "well")).error
    assert "the environment has no TEST_KEY" in asked(Endpoint(url, "well", "TEST_KEY")).error
    with pytest.raises(ConfigError, match="pass an address such as"):
        Endpoint("localhost:8000", "well")
    one = Scheduler(make_variants({"far": Endpoint(url, "well")}, TOKENIZER))
    with one, pytest.raises(ConfigError, match="'far' is an endpoint"):
        one.surprise(Request("far", "x"), "y")


def test_a_panel_shows_an_endpoint_beside_a_model():
    from gradio_client import Client

    from workbench.views.panel.panel import compare_panel

    with serving() as (server, url):
        panel = compare_panel({"far": Endpoint(url, "well"), "near": pico(context=600)}, byte_tokenizer(chat=True))
        panel.launch(prevent_thread_lock=True, quiet=True, inline=False)
        client = Client(panel.local_url, verbose=False)
        try:
            outputs = client.predict("fever", "named", False, ["far", "near"], 8, 0, 0, "nothing", api_name="/ask")
        finally:
            client.close()
            panel.close()
    panes = " ".join(str(one) for one in outputs)
    assert "Good morning ☀" in panes
    assert server.seen[0][2]["messages"][-1]["content"] == "fever"
