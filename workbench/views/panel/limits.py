"""What one person may ask of a shared panel: length of a prompt and an answer, how often, and who is let in."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, fields
from pathlib import Path

from workbench.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one panel does for one person, and for all of them.

    Args:
        prompt_chars: Most characters of one prompt, at least 1.
        answer_tokens: Most tokens of one answer, at least 1.
        asks_per_minute: Most questions of one person in any 60 seconds, at least 1.
        turns: Most turns of one conversation, at least 1.
        at_once: Most answers written at the same time; others wait, and see their place in the queue.
        waiting: Most answers in that queue; others are asked to come back.

    Raises:
        ConfigError: A number is below 1.
    """

    prompt_chars: int = 4000
    answer_tokens: int = 256
    asks_per_minute: int = 30
    turns: int = 8
    at_once: int = 64
    waiting: int = 1000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{field.name}={value!r}; a limit is a whole number of at least 1")

    def prompt(self, text: str | None) -> str:
        """Return a prompt without the blanks around it.

        Raises:
            ConfigError: Nothing is left, or it is too long.
        """
        text = (text or "").strip()
        if not text:
            raise ConfigError("The prompt is empty. Write a question, or take one of the examples.")
        if len(text) > self.prompt_chars:
            raise ConfigError(
                f"The prompt has {len(text):,} characters; at most {self.prompt_chars:,} are allowed here. Shorten it."
            )
        return text


class RateLimit:
    """Count each person's questions over the last 60 seconds.

    Args:
        per_minute: Most questions of one person in any 60 seconds.
    """

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._asked: dict[str, deque[float]] = {}
        self._guard = threading.Lock()

    def ask(self, person: str, now: float | None = None) -> None:
        """Count one question.

        Args:
            person: Who asks.
            now: Seconds of any clock that only goes forward; None reads one.

        Raises:
            ConfigError: This person has asked too often.
        """
        now = time.monotonic() if now is None else now
        with self._guard:
            # Whoever has been quiet for a minute is forgotten, so that memory follows those who are here.
            for name in [name for name, times in self._asked.items() if times[-1] <= now - 60]:
                del self._asked[name]
            times = self._asked.get(person, deque())
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= self.per_minute:
                raise ConfigError(
                    f"{len(times)} questions in the last minute; {self.per_minute} are allowed. "
                    f"Ask again in {times[0] + 60 - now:.0f} seconds."
                )
            times.append(now)
            self._asked[person] = times


def read_users(path: str | Path) -> list[tuple[str, str]]:
    """Return the users of a file with one `name:password` in each line; empty lines and `#` lines are passed over.

    Raises:
        ConfigError: The file cannot be read, names nobody, or has a line of another form; no password is repeated.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"auth={str(path)!r} cannot be read ({type(error).__name__}); name a text file") from error
    users = []
    for number, line in enumerate(lines, 1):
        name, colon, password = line.strip().partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not (colon and name and password):
            raise ConfigError(f"line {number} of {path} is not of the form name:password; write it so, or remove it")
        users.append((name, password))
    if not users:
        raise ConfigError(f"{path} names nobody; write one name:password in a line")
    return users
