"""Votes in a file that only grows: one line of JSON each, on the disk before anyone is thanked for it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows: the lock of this process is all there is.
    fcntl = None

VERDICTS = ("best", "tie", "bad")


@dataclass(frozen=True, kw_only=True)
class Pane:
    """One answer that was voted on.

    Args:
        variant: Its name in the panel.
        recipe: The merge behind it as JSON text, empty for a model that is not merged here.
        answer: SHA-256 of the answer's UTF-8 bytes, in hexadecimal digits.
        tokens: Length of the answer.
    """

    variant: str
    recipe: str
    answer: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What somebody thought of the answers to one prompt.

    Args:
        round: Names the answers that were shown; two votes of one round count once.
        verdict: `best` (one answer is the best), `tie`, or `bad` (all of them).
        winner: The best variant; empty with another verdict.
        blind: True where names were hidden.
        prompt: What was asked; in a conversation every turn of the user, joined by line breaks.
        settings: `max_new_tokens`, `temperature`, `seed` and `turn`.
        panes: The answers, from left to right.
        time: When, ISO 8601 in UTC.

    Raises:
        ConfigError: The verdict is unknown, there are fewer than two answers, or the winner is none of them.
    """

    round: str
    verdict: str
    winner: str = ""
    blind: bool
    prompt: str
    settings: dict[str, Any]
    panes: tuple[Pane, ...]
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def __post_init__(self) -> None:
        names = [pane.variant for pane in self.panes]
        if self.verdict not in VERDICTS:
            raise ConfigError(f"verdict={self.verdict!r}; it is one of {', '.join(VERDICTS)}")
        if len(names) < 2:
            raise ConfigError(f"a vote on {names}; it compares at least two answers")
        if (self.winner in names) != (self.verdict == "best"):
            raise ConfigError(f"winner={self.winner!r}, verdict={self.verdict!r}: only the best has a name, of {names}")


def answer_hash(text: str) -> str:
    """Return the SHA-256 of an answer, by which its vote is found again."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class VoteStore:
    """Append votes to a file, and read them back.

    Several processes and threads may append at once. A process that dies in the middle of a line spoils this line only.

    Args:
        path: The file; it and its folder are made at the first vote.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self._guard = threading.Lock()

    def append(self, vote: Vote) -> None:
        """Write a vote; when this returns, it is on the disk.

        Raises:
            DataError: The disk refuses; the vote does not count.
        """
        line = json.dumps(asdict(vote), ensure_ascii=True).encode() + b"\n"
        try:
            with self._guard:
                self._write(line)
        except OSError as error:
            raise DataError(f"The vote cannot be written to {self.path} ({error}). Free some space there.") from error

    def _write(self, line: bytes) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            # After a death in mid-line the next vote must not be glued to the torn one.
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(handle, line) != len(line):
                raise OSError("only a part of the line fitted")
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def read(self) -> list[Vote]:
        """Return all whole votes in the order in which they came, each round once."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        votes: dict[str, Vote] = {}
        for line in lines:
            vote = _parse(line)
            if vote is not None:
                votes.setdefault(vote.round, vote)
        return list(votes.values())


def _parse(line: bytes) -> Vote | None:
    """Return the vote of a line, or None where a writer died in the middle of it."""
    try:
        row = json.loads(line)
        return Vote(**{**row, "panes": tuple(Pane(**pane) for pane in row["panes"])})
    except (ValueError, TypeError, KeyError):
        return None
