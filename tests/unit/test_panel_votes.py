"""Votes, rankings and limits of the panel: nothing acknowledged is lost, and no number is made up."""

import csv
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import ConfigError, DataError
from workbench.views.panel.limits import Limits, RateLimit, read_users
from workbench.views.panel.results import as_csv, as_html, standings, strengths
from workbench.views.panel.votes import Pane, Vote, VoteStore, answer_hash


def vote(round_, winner="", verdict="best", names=("a", "b"), prompt="why?"):
    panes = tuple(Pane(variant=name, recipe="", answer=answer_hash(name), tokens=3) for name in names)
    return Vote(
        round=round_, verdict=verdict, winner=winner, blind=True, prompt=prompt, settings={"seed": 0}, panes=panes
    )


def test_a_vote_comes_back_as_it_was_given(tmp_path):
    store = VoteStore(tmp_path / "deep" / "votes.jsonl")
    assert store.read() == []
    given_votes = [vote("1", "a", prompt='line\nbreak "quoted" \ud800 é'), vote("2", verdict="bad")]
    for one in given_votes:
        store.append(one)
    assert store.read() == given_votes
    assert oct(store.path.stat().st_mode & 0o777) == "0o600"


def test_a_second_vote_of_a_round_does_not_count(tmp_path):
    store = VoteStore(tmp_path / "votes.jsonl")
    store.append(vote("1", "a"))
    store.append(vote("1", "b"))
    assert [one.winner for one in store.read()] == ["a"]


@pytest.mark.parametrize("torn", [b'{"round": "x", "verd', b"\xff\xfe", b"[1, 2]", b'{"panes": 3}'])
def test_a_torn_line_spoils_only_itself(tmp_path, torn):
    store = VoteStore(tmp_path / "votes.jsonl")
    store.append(vote("1", "a"))
    with store.path.open("ab") as file:
        file.write(torn)
    store.append(vote("2", "b"))
    assert [one.round for one in store.read()] == ["1", "2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verdict": "great"}, r"verdict='great'; it is one of best, tie, bad"),
        ({"winner": "c"}, r"winner='c', verdict='best': only the best has a name, of \['a', 'b'\]"),
        ({"winner": "a", "verdict": "tie"}, r"winner='a', verdict='tie'"),
        ({"winner": "a", "names": ("a",)}, r"a vote on \['a'\]; it compares at least two"),
    ],
)
def test_a_vote_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        vote("1", **changes)


def test_a_disk_that_refuses_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"The vote cannot be written to .*file/votes.jsonl"):
        VoteStore(tmp_path / "file" / "votes.jsonl").append(vote("1", "a"))


def _writer(path, name, count):
    store = VoteStore(path)
    for i in range(count):
        store.append(vote(f"{name}-{i}", "a", prompt="x" * 5000))


def test_many_writers_lose_nothing(tmp_path):
    path = tmp_path / "votes.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_writer, args=(path, name, 25)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(VoteStore(path).read()) == 100
    assert all(json.loads(line) for line in path.read_text().splitlines())


KILLED = """
import sys; from test_panel_votes import vote; from workbench.views.panel.votes import VoteStore
store = VoteStore(sys.argv[1])
for i in range(10**6):
    store.append(vote(str(i), "a")); print(i, flush=True)
"""


def test_kill_loses_no_vote_that_was_acknowledged(tmp_path):
    path = tmp_path / "votes.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), os.getcwd()])}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.read().splitlines()
    process.wait()
    kept = {one.round for one in VoteStore(path).read()}
    assert {line.decode().strip() for line in said} <= kept


def test_shares_are_those_worked_out_by_hand():
    votes = [vote("1", "a"), vote("2", "a"), vote("3", verdict="tie"), vote("4", verdict="bad")]
    first, second = standings(votes)
    assert (first.variant, first.rounds, first.won, first.ties, first.bad) == ("a", 4, 2, 1, 1)
    assert first.share == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert second.share == pytest.approx(1 - first.share)
    assert first.low < first.share < first.high
    assert first.strength is None


def test_two_variants_have_the_closed_form_of_bradley_and_terry():
    votes = [vote(str(i), "a" if i < 9 else "b") for i in range(12)]
    points = strengths(votes, ["a", "b"])
    # With the added tie: 9.5 wins against 3.5, so p_a / p_b = 9.5 / 3.5.
    assert points["a"][0] - points["b"][0] == pytest.approx(400 * 0.43365, abs=0.05)
    # The information of 13 rounds at q = 9.5 / 13, for the half of the difference that is a's.
    q = 9.5 / 13
    half = 1.96 / (13 * q * (1 - q)) ** 0.5 / 2
    assert points["a"][2] - points["a"][0] == pytest.approx(400 * half / 2.302585, abs=0.1)


def test_two_votes_of_one_mind_are_no_certainty():
    votes = [vote(str(i), "a", names=("a", "b", "c")) for i in range(2)]
    first, second, _ = standings(votes)
    assert first.strength_low < second.strength_high


def test_strengths_order_variants_that_never_met():
    votes = [vote(f"x{i}", "a" if i % 4 else "b") for i in range(40)]
    votes += [vote(f"y{i}", "b" if i % 4 else "c", names=("b", "c")) for i in range(40)]
    rows = standings(votes)
    assert [row.variant for row in rows] == ["a", "b", "c"]
    assert rows == standings(votes)


def test_the_best_of_many_is_luces_choice():
    names = ("a", "b", "c")
    votes = [vote(str(i), names[0 if i < 6 else 1 if i < 9 else 2], names=names) for i in range(10)]
    points = strengths(votes, names)
    assert points["a"][0] - points["c"][0] == pytest.approx(400 * 0.676693, abs=0.05)  # log10((6 + 1/3) / (1 + 1/3))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["best", "tie", "bad"]), st.integers(0, 2)), min_size=1, max_size=12))
def test_shares_of_a_round_add_up_to_one(kinds):
    names = ("a", "b", "c")
    votes = [vote(str(i), names[k] if kind == "best" else "", kind, names) for i, (kind, k) in enumerate(kinds)]
    rows = standings(votes)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert all(row.low <= row.share <= row.high for row in rows)


def test_results_are_escaped_and_no_spreadsheet_computes_a_name():
    names = ("=HYPERLINK(1)", "<script>alert(1)</script>")
    rows = standings([vote("1", names[0], names=names)])
    assert "<script" not in as_html(rows)
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert read[0]["variant"] == "'=HYPERLINK(1)"
    assert "No vote yet" in as_html([])


def test_limits_say_what_is_allowed():
    limits = Limits(prompt_chars=5)
    assert limits.prompt("  why? ") == "why?"
    with pytest.raises(ConfigError, match="empty"):
        limits.prompt("  \n")
    with pytest.raises(ConfigError, match=r"1,000,000 characters; at most 5"):
        limits.prompt("x" * 10**6)
    with pytest.raises(ConfigError, match=r"answer_tokens=0; a limit is a whole number of at least 1"):
        Limits(answer_tokens=0)


def test_each_person_has_a_rate_of_their_own():
    rate = RateLimit(2)
    for person in ("ann", "bo"):
        rate.ask(person, 0)
        rate.ask(person, 10)
    with pytest.raises(ConfigError, match=r"2 questions in the last minute; 2 are allowed. Ask again in 40 seconds"):
        rate.ask("ann", 20)
    rate.ask("ann", 61)
    rate.ask("cy", 200)
    assert list(rate._asked) == ["cy"], "who is quiet is forgotten"


def test_users_come_from_a_file_and_no_password_is_repeated(tmp_path):
    path = tmp_path / "users"
    path.write_text("# the class\nann:pa:ss\n\nbo:word\n")
    assert read_users(path) == [("ann", "pa:ss"), ("bo", "word")]
    path.write_text("ann secret\n")
    with pytest.raises(ConfigError, match=r"line 1 of .* name:password") as caught:
        read_users(path)
    assert "secret" not in str(caught.value)
    path.write_text("#\n")
    with pytest.raises(ConfigError, match="names nobody"):
        read_users(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_users(tmp_path / "absent")
