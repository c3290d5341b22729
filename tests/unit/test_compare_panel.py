"""The panel over real HTTP: what it shows, what it hides, what it refuses, and that nobody sees another's blend."""

import html
import http.client
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from gradio_client import Client
from pico_language import byte_tokenizer, pico

import workbench as wb
from workbench.errors import ConfigError
from workbench.generation import stream
from workbench.views.panel.limits import Limits
from workbench.views.panel.panel import compare_panel, free_port, proxied
from workbench.views.panel.votes import VoteStore

PARENTS = ["pico/general", "pico/medical"]
NASTY = [
    "<script>alert(1)</script>",
    "![x](http://example.org/x.png)",
    "<img src=x onerror=alert(1)>",
    "${alert(1)} {{value}} {{{value}}}",
    "</section></div><iframe src='http://example.org'></iframe>",
    "\u202e\x00'\"&amp;",
]


class Broken:
    """A model whose every step fails, as a device out of memory does."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device
        self.generation_config, self.training = model.generation_config, False

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, **_):
        raise RuntimeError("<b>no memory</b>")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(chat=True)


@pytest.fixture(scope="module")
def live(tokenizer):
    recipe = wb.MergeRecipe(parents=PARENTS, weights=[0.5, 0.5])
    return wb.LiveMerge(recipe, models=[pico(seed=0, context=600), pico(seed=1, context=600)], tokenizer=tokenizer)


@pytest.fixture(scope="module")
def panel(live, tokenizer, tmp_path_factory):
    variants = {"one": live.parent(0), "<b>two</b>": live.parent(1), "merged": live, "broken": Broken(pico(seed=2))}
    votes = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    limits = Limits(prompt_chars=400, answer_tokens=500, asks_per_minute=1000, turns=3)
    made = compare_panel(variants, tokenizer, votes=votes, limits=limits, examples=["hello"])
    made.launch(prevent_thread_lock=True, quiet=True, inline=False)
    yield made
    made.close()


@pytest.fixture
def client(panel):
    one = Client(panel.local_url, verbose=False)
    yield one
    one.close()


def ask(
    client, prompt, *, view="named", chat=False, models=("one", "merged"), seed=0, mark="nothing", share=0.5, heat=0
):
    return client.predict(prompt, view, chat, list(models), 8, heat, seed, mark, share, api_name="/ask")


def texts(outputs):
    """The answers of all visible panes, as a browser's text would be."""
    panes = [one["value"] if isinstance(one, dict) else one for one in outputs[1:5]]
    found = [re.search(r"<div class='wb-answer'>(.*?)</div><footer>", pane or "", re.DOTALL) for pane in panes]
    return [html.unescape(one.group(1)) for one in found if one]


def solo(model, tokenizer, prompt, **settings):
    return list(stream(model, tokenizer, prompt, max_new_tokens=8, **settings))[-1].lstrip()


def test_answers_are_those_that_the_models_give_alone(client, live, tokenizer):
    live.apply(live.recipe.with_ratio(0.25))
    expected = [solo(live.parent(0), tokenizer, "fever"), solo(live.model, tokenizer, "fever")]
    live.apply(live.recipe.with_ratio(0.5))
    assert texts(ask(client, "fever", share=0.25)) == expected
    assert texts(ask(client, "fever", share=0.25)) == expected, "same prompt, seed and settings: same answers"


def test_many_people_with_many_blends_never_see_each_others(panel, live, tokenizer):
    shares = [i / 5 for i in range(6)]
    expected = {}
    for share in shares:
        live.apply(live.recipe.with_ratio(share))
        expected[share] = solo(live.model, tokenizer, "cough", temperature=1.0, seed=3)
    live.apply(live.recipe.with_ratio(0.5))
    got = {}

    def person(share):
        client = Client(panel.local_url, verbose=False)
        got[share] = texts(ask(client, "cough", models=["merged"], share=share, seed=3, heat=1.0))[0]
        client.close()

    people = [threading.Thread(target=person, args=(share,)) for share in shares]
    for one in people:
        one.start()
    for one in people:
        one.join(60)
    assert got == expected
    assert len(set(got.values())) > 3


@pytest.mark.parametrize("prompt", NASTY)
def test_no_text_becomes_markup(client, prompt):
    shown = ask(client, prompt, chat=True, models=["one", "<b>two</b>"], mark="differences")
    shown += ask(client, prompt + "!", chat=True, models=["one", "<b>two</b>"], mark="surprise: one")
    page = "".join(str(one) for one in shown)
    assert not re.search(r"<(script|img|iframe|b>two)", page)
    assert "&lt;b&gt;two" in page


def test_a_failing_variant_is_said_in_its_pane_and_stops_no_other(client):
    outputs = ask(client, "fever", models=["one", "broken"])
    assert "This model could not answer. RuntimeError: &lt;b&gt;no memory&lt;/b&gt;" in str(outputs[2])
    assert texts(outputs)[0]


def test_a_blind_round_hides_names_until_the_vote(client):
    outputs = ask(client, "fever", view="blind", models=["one", "merged"])
    assert "merged" not in str(outputs[1:5])
    assert "share" not in str(outputs[1:5])
    assert str(outputs[1:5]).count("name hidden") == 2


def test_a_conversation_keeps_each_models_own_answers_and_ends_somewhere(client, live, tokenizer):
    first = texts(ask(client, "fever", chat=True))
    second = texts(ask(client, "and?", chat=True))
    told = [
        {"role": "user", "content": "fever"},
        {"role": "assistant", "content": list(stream(live.parent(0), tokenizer, "fever", max_new_tokens=8))[-1]},
        {"role": "user", "content": "and?"},
    ]
    assert second[0] == solo(live.parent(0), tokenizer, told)
    assert first[0] in html.unescape(str(ask(client, "more?", chat=True)[1]))
    assert "3 turns, the most allowed here" in str(ask(client, "more?", chat=True)[0])


@pytest.mark.parametrize(("prompt", "said"), [("", "The prompt is empty"), ("x" * 100_000, "at most 400 are allowed")])
def test_a_prompt_of_no_or_too_great_length_is_refused_in_words(client, prompt, said):
    assert said in str(ask(client, prompt)[0])


def test_nothing_but_the_panel_is_served(panel):
    for path in ("/gradio_api/file=/etc/passwd", f"/gradio_api/file={panel.desk.store.path}", "/file=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(panel.local_url.rstrip("/") + path, timeout=10)
        assert caught.value.code in (403, 404)
    page = urllib.request.urlopen(panel.local_url, timeout=10).read().decode()
    styles = urllib.request.urlopen(panel.local_url + "theme.css", timeout=10).read().decode()
    assert "fonts.googleapis.com" not in page + styles
    assert "fonts.gstatic.com" not in page + styles
    assert "@font-face" not in styles
    assert panel.analytics_enabled is False


def test_a_closed_connection_frees_its_place_within_a_second(panel):
    given = [None, "fever", "named", False, ["one"], 500, 0, 0, "nothing", 0.5]
    body = json.dumps({"fn_index": 0, "session_hash": "gone", "data": given}).encode()
    port = panel.server_port
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    asking.request("POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    assert asking.getresponse().status == 200
    with socket.create_connection(("127.0.0.1", port), timeout=20) as listening:
        listening.sendall(b"GET /gradio_api/queue/data?session_hash=gone HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        listening.recv(1000)
        assert wait_for(lambda: "gone" in panel.desk.running, 10)
    assert wait_for(lambda: "gone" not in panel.desk.running, 1)
    asking.close()


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_round_has_one_vote_with_all_that_its_answers_depend_on(panel, live, tokenizer, tmp_path):
    from workbench.views.panel.panes import Written
    from workbench.views.panel.session import Session

    session = Session(tokenizer=tokenizer)
    settings = {"max_new_tokens": 8, "temperature": 0.0, "seed": 5}
    session.begin("fever", ["one", "merged"], settings, blind=True, chat=False, turns=3)
    with pytest.raises(ConfigError, match="0 answers are there"):
        session.vote("A")
    for name in session.order:
        session.answers[name] = Written(text=f"says {name}", state="done", tokens=2, recipe="{}")
    vote = session.vote("B")
    assert vote.winner == session.order[1]
    assert (vote.blind, vote.settings["seed"], vote.settings["turn"]) == (True, 5, 1)
    assert "says" not in json.dumps([pane.answer for pane in vote.panes])
    session.voted = True
    with pytest.raises(ConfigError, match="this round has its vote"):
        session.vote("A")


def test_a_vote_is_on_the_disk_before_it_is_acknowledged(panel, tokenizer):
    from workbench.views.panel.panes import Written
    from workbench.views.panel.session import Session

    session = Session(tokenizer=tokenizer)
    session.begin("fever", ["one", "merged"], {}, blind=False, chat=False, turns=3)
    session.answers = {name: Written(text=name, state="done") for name in session.order}
    before = len(VoteStore(panel.desk.store.path).read())
    shown = panel.desk.vote("tie", session, False)
    assert len(VoteStore(panel.desk.store.path).read()) == before + 1
    assert "Thank you" in shown[panel.desk.ui.status]
    assert "this round has its vote" in panel.desk.vote("tie", session, False)[panel.desk.ui.status]


def test_it_opens_to_nobody_unasked(panel, live):
    with pytest.raises(ConfigError, match=r"server_name='0.0.0.0' opens the panel to others"):
        panel.launch(server_name="0.0.0.0")
    with pytest.raises(ConfigError, match="share=True"):
        panel.launch(share=True)


def test_who_has_no_password_sees_no_panel_and_a_proxys_path_is_heard(live, tokenizer, tmp_path):
    (tmp_path / "users").write_text("ann:secret\n")
    made = compare_panel({"one": live.parent(0)}, tokenizer, votes=tmp_path / "votes.jsonl")
    quiet = {"prevent_thread_lock": True, "quiet": True, "inline": False}
    made.launch(auth=tmp_path / "users", root_path="/proxy/{port}", **quiet)
    url = f"http://127.0.0.1:{made.server_port}"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}/config", timeout=20)
    assert caught.value.code == 401
    visitor = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    visitor.open(f"{url}/login", b"username=ann&password=secret", timeout=20)
    assert json.load(visitor.open(f"{url}/config", timeout=20))["root"].endswith(f"/proxy/{made.server_port}")
    made.close()


def test_a_proxy_of_jupyterhub_is_found(monkeypatch):
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    assert proxied(None, 7) == ""
    assert proxied("/lab/proxy/{port}/", 7) == "/lab/proxy/7"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann/")
    assert proxied(None, 7) == "/user/ann/proxy/7"
    assert 0 < free_port("127.0.0.1") < 65536


def test_what_cannot_be_compared_is_refused(tokenizer, live):
    with pytest.raises(ConfigError, match="27 variants; a panel has a letter for each"):
        compare_panel({str(i): live for i in range(27)}, tokenizer)
    with pytest.raises(ConfigError, match="pass their common tokenizer"):
        compare_panel({"one": live.parent(0)})


def test_a_saved_notebook_has_the_answers_as_a_table(panel):
    still = panel.still("<i>fever")
    assert "<table" in still
    assert "&lt;i&gt;fever" in still
    assert "B · &lt;b&gt;two&lt;/b&gt;" in still
