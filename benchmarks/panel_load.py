"""Many people at once at the real panel, over HTTP and its queue, with the classroom models; nothing may be mixed up.

    python benchmarks/panel_load.py                              # 30 people, 20 questions each
    python benchmarks/panel_load.py --users 5 --requests 4

Everyone has a slider position of their own. A question goes to the blend and to one parent; half of the questions are
sampled. Each answer is compared with the one that its model gives alone, and each person votes after each question.
Then a tab is closed in the middle of an answer, and at last the server is killed while people vote.
"""

from __future__ import annotations

import argparse
import html
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from gradio_client import Client

import workbench as wb
from workbench.generation import Request, Scheduler, make_variants
from workbench.views.panel.__main__ import PARENTS, SKILLS, classroom, prompts
from workbench.views.panel.panel import free_port
from workbench.views.panel.votes import VoteStore

LENGTH = 24


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.serve:
        return serve(options)
    with tempfile.TemporaryDirectory() as folder:
        votes = Path(folder) / "votes.jsonl"
        plan, expected = solo(options)
        server = Server(options, votes)
        people = [Person(server, i, plan[i]) for i in range(options.users)]
        began = time.perf_counter()
        run_all(people, lambda person: person.work())
        seconds = time.perf_counter() - began
        good = report(people, expected, server, seconds, len(VoteStore(votes).read()))
        freed = server.seconds_until_freed()
        print(f"- a closed tab frees its place after {freed:.2f} s (at most 1)")
        said, kept = kill_while_voting(server, people[:5], votes)
        print(f"- kill -9: {said} votes acknowledged, {kept} in the file")
    good &= freed < 1 and said <= kept
    print(f"- all held: {'yes' if good else 'NO'}")
    sys.exit(not good)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the server")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--votes", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def serve(options: argparse.Namespace) -> None:
    """Be the server; tell on each line of stdin how many people are being answered."""
    panel = classroom(options.votes)
    panel.desk.rate.per_minute = 10**6
    panel.launch(server_port=options.serve, prevent_thread_lock=True, quiet=True, inline=False)
    print("up", flush=True)
    for _ in sys.stdin:
        print(len(panel.desk.running), flush=True)


class Server:
    """The server's process, its memory, and what it says of itself."""

    def __init__(self, options: argparse.Namespace, votes: Path) -> None:
        self.port = free_port("127.0.0.1")
        command = [sys.executable, __file__, "--serve", str(self.port), "--votes", str(votes)]
        command += ["--threads", str(options.threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, **pipes)
        while self.process.stdout.readline().strip() != "up":
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
        self.memory: list[float] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def running(self) -> int:
        """Return how many people are being answered."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def seconds_until_freed(self) -> float:
        """Close a tab in the middle of an answer, and return how long its place stays taken."""
        given = [None, "Tell me a long story.", "named", False, ["base"], 256, 2.0, 0, "nothing", 0.5]
        body = json.dumps({"fn_index": 0, "session_hash": "gone", "data": given}).encode()
        asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        asking.request("POST", "/gradio_api/queue/join", body, {"Content-Type": "application/json"})
        asking.getresponse().read()
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as listening:
            listening.sendall(b"GET /gradio_api/queue/data?session_hash=gone HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            while not self.running():
                listening.recv(1000)
        closed = time.perf_counter()
        while self.running() and time.perf_counter() < closed + 30:
            time.sleep(0.01)
        return time.perf_counter() - closed

    def _watch(self) -> None:
        while self.process.poll() is None:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            time.sleep(0.5)


class Person:
    """One browser tab: asks, reads, votes."""

    def __init__(self, server: Server, number: int, questions: list[tuple]) -> None:
        self.client = Client(f"http://127.0.0.1:{server.port}/", verbose=False)
        self.number, self.questions = number, questions
        self.answers: list[list[str]] = []
        self.firsts: list[float] = []
        self.totals: list[float] = []
        self.thanked = 0

    def work(self) -> None:
        """Ask everything, and vote each time."""
        for question in self.questions:
            self.ask(question)
            self.vote()

    def ask(self, question: tuple) -> None:
        """Ask one question and note the times and the answers."""
        prompt, other, heat, seed, share = question
        began, first, outputs = time.perf_counter(), None, None
        given = (prompt, "named", False, ["merged", other], LENGTH, heat, seed, "nothing", share)
        for outputs in self.client.submit(*given, api_name="/ask"):
            if first is None and any(texts(outputs)):
                first = time.perf_counter() - began
        self.totals.append(time.perf_counter() - began)
        self.firsts.append(self.totals[-1] if first is None else first)
        self.answers.append(texts(outputs))

    def vote(self) -> None:
        """Vote, and count the thanks."""
        said = self.client.predict(False, api_name="/vote_tie")
        self.thanked += "Thank you" in str(said[0])


def texts(outputs: tuple) -> list[str]:
    panes = [one.get("value") if isinstance(one, dict) else one for one in outputs[1:5]]
    found = [re.search(r"<div class='wb-answer'>(.*?)</div><footer>", pane or "", re.DOTALL) for pane in panes]
    return [html.unescape(one.group(1)) for one in found if one]


def solo(options: argparse.Namespace) -> tuple[list[list[tuple]], dict[tuple, list[str]]]:
    """Return everyone's questions, and the answers that the models give when nobody else asks."""
    asked = [prompt for task in list(SKILLS.values())[:6] for prompt in prompts(task)]
    live = wb.LiveMerge(wb.MergeRecipe(parents=PARENTS, weights=[0.5, 0.5]))
    models = {
        "clinical": live.parent(1),
        "instruct": live.parent(0),
        "merged": wb.RatioSpectrum(live.recipe, live=live),
    }
    plan, expected = [], {}
    with Scheduler(make_variants(models, live.tokenizer)) as scheduler:
        for i in range(options.users):
            plan.append([])
            share = round(i / max(options.users - 1, 1), 2)
            for j in range(options.requests):
                heat, other = (0.0, 0.8)[j % 2], ("clinical", "instruct")[(i + j) % 2]
                question = (asked[(7 * i + j) % len(asked)], other, heat, 1000 * i + j, share)
                plan[-1].append(question)
                expected[question] = [alone(scheduler, name, question) for name in (other, "merged")]
    return plan, expected


def alone(scheduler: Scheduler, name: str, question: tuple) -> str:
    prompt, _, heat, seed, share = question
    ratio = share if name == "merged" else None
    answer = scheduler.submit(Request(name, prompt, max_new_tokens=LENGTH, temperature=heat, seed=seed, ratio=ratio))
    answer.wait()
    return answer.text.lstrip()


def run_all(people: list[Person], work) -> None:
    threads = [threading.Thread(target=work, args=(person,), daemon=True) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def report(people: list[Person], expected: dict, server: Server, seconds: float, votes: int) -> bool:
    asked = sum(len(person.questions) for person in people)
    got = [pair for person in people for pair in zip(person.questions, person.answers)]
    pairs = [(mine, alone) for question, answers in got for mine, alone in zip(answers, expected[question])]
    same = sum(mine == alone for mine, alone in pairs)
    firsts = np.concatenate([person.firsts for person in people])
    totals = np.concatenate([person.totals for person in people])
    memory = np.array(server.memory[len(server.memory) // 10 :])
    early, late = (part.mean() for part in np.array_split(memory, 3)[1:])
    print(f"\n{len(people)} people, {asked} questions to two models each, {seconds:.0f} s\n")
    print("| | p50 | p95 |\n|---|---|---|")
    print(f"| seconds to the first token | {np.quantile(firsts, 0.5):.2f} | {np.quantile(firsts, 0.95):.2f} |")
    print(f"| seconds in all | {np.quantile(totals, 0.5):.2f} | {np.quantile(totals, 0.95):.2f} |\n")
    print(f"- answers: {len(pairs)} of {2 * asked}; equal to the model's own answer alone: {same}")
    print(f"- votes: {votes} in the file, {sum(person.thanked for person in people)} acknowledged, {asked} given")
    print(f"- memory of the server: {early:.0f} MiB in the second third, {late:.0f} in the last ({late / early:.3f})")
    # A sampled answer may part where two tokens tie in another batch shape: rounding, not another's answer.
    return len(pairs) == 2 * asked == 2 * votes and same >= 0.995 * len(pairs) and late < 1.1 * early


def kill_while_voting(server: Server, people: list[Person], votes: Path) -> tuple[int, int]:
    before = len(VoteStore(votes).read())
    for person in people:
        person.thanked = 0

    def work(person: Person) -> None:
        while True:
            try:
                person.ask(person.questions[0])
                person.vote()
            except Exception:
                return

    threads = [threading.Thread(target=work, args=(person,), daemon=True) for person in people]
    for thread in threads:
        thread.start()
    while sum(person.thanked for person in people) < 2 * len(people):
        time.sleep(0.05)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    time.sleep(1)
    return sum(person.thanked for person in people), len(VoteStore(votes).read()) - before


if __name__ == "__main__":
    main()
