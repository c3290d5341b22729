"""Answers from an OpenAI-compatible endpoint (vLLM, llama.cpp), streamed with the standard library alone."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from workbench.errors import ConfigError, ModelError
from workbench.generation.lanes import Row
from workbench.generation.requests import Request

_LINE = 1 << 20
_AT_ONCE = 8


@dataclass(frozen=True)
class Endpoint:
    """A model behind `POST <url>/chat/completions`. What is asked of it leaves this process for that address.

    Args:
        url: Up to and with the version, e.g. `http://127.0.0.1:8000/v1`.
        model: Its name there.
        api_key_env: The environment variable that holds the key; None sends none.
        timeout: Most seconds of silence.

    Raises:
        ConfigError: The address is none.
    """

    url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or self.timeout <= 0:
            raise ConfigError(
                f"url={self.url!r}, timeout={self.timeout}: pass an address such as http://127.0.0.1:8000/v1, and more "
                "than 0 seconds"
            )


class EndpointEngine:
    """Asks an endpoint; each answer has a thread that waits for the network, at most eight at once."""

    model, steps, limit = None, 0, _AT_ONCE

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.lanes: dict[Hashable, Any] = {}
        self.ended: Callable[[], None] = lambda: None
        self._open: dict[Row, HTTPConnection] = {}

    def add(self, row: Row) -> None:
        """Begin an answer."""
        threading.Thread(target=self._answer, args=(row,), daemon=True).start()

    def turn(self) -> None:
        """Nothing is computed here."""

    def fail(self, error: BaseException) -> None:
        """End all answers."""
        for row in list(self._open):
            row.end("failed", error)

    def sweep(self) -> None:
        """Cut the connections of stopped answers."""
        for row, connection in list(self._open.items()):
            if row.answer.stopping:
                row.end("stopped")
                with suppress(OSError, AttributeError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _answer(self, row: Row) -> None:
        parts, text = urlsplit(self.endpoint.url), ""
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = self._open[row] = kind(parts.netloc, timeout=self.endpoint.timeout)
        try:
            for piece in _pieces(self._ask(connection, row.answer.request), str(self.endpoint.url)):
                text += piece
                if row.answer.stopping:
                    break
                row.answer.write(text=text)
            row.end("stopped" if row.answer.stopping else "done")
        except (OSError, HTTPException) as error:
            reason = error if isinstance(error, ModelError) else ModelError(_explained(self.endpoint, error))
            row.end("stopped" if row.answer.stopping else "failed", reason)
        except Exception as error:
            row.end("failed", error)
        finally:
            connection.close()
            del self._open[row]
            self.ended()

    def _ask(self, connection: HTTPConnection, request: Request) -> HTTPResponse:
        given = request.messages
        body = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": given}] if isinstance(given, str) else given,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "stream": True,
        }
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if name := self.endpoint.api_key_env:
            if name not in os.environ:
                raise ConfigError(f"the environment has no {name}, which is to hold the key of {self.endpoint.url}")
            headers["Authorization"] = f"Bearer {os.environ[name]}"
        path = urlsplit(self.endpoint.url).path.rstrip("/") + "/chat/completions"
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            said = response.read(300).decode("utf-8", "replace")
            raise ModelError(f"{self.endpoint.url} answered {response.status} {response.reason}: {said}")
        return response


def _pieces(response: HTTPResponse, url: str) -> Iterator[str]:
    """Yield the pieces of text from the events of a stream; each event is a line `data: {...}`."""
    finished = False
    while line := response.readline(_LINE):
        data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            return
        if not data:
            continue
        try:
            event = json.loads(data)
            choice = (event.get("choices") or [{}])[0]
            piece = (choice.get("delta") or {}).get("content") or ""
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            raise ModelError(
                f"{url} sent {data[:80]!r}, which is no event of a chat completion; check that it speaks OpenAI's API"
            ) from error
        if event.get("error"):
            raise ModelError(f"{url} broke off: {str(event['error'])[:300]}")
        finished = finished or bool(choice.get("finish_reason"))
        if piece:
            yield str(piece)
    if not finished:
        raise ModelError(f"{url} closed the connection before the answer was whole; ask again, or look at its log")


def _explained(endpoint: Endpoint, error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"{endpoint.url} was silent for {endpoint.timeout:g} seconds; is it busy? Raise timeout= or ask again"
    return f"{endpoint.url} cannot be reached ({type(error).__name__}: {error}); is the server running there?"
