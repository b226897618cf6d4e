"""A server of ours, asked by a client of its own: addresses, requests, streams, and what its errors are here.

By http.client, as the client of a load does it (`bench/http_load.py`): what is said to an address that was typed goes
there, and to no proxy that the environment names.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llmrun import codec
from llmrun.codec import Struct
from llmrun.errors import (
    Act,
    Change,
    EngineCrashed,
    LlmrunError,
    NetworkError,
    NotFound,
    OutOfMemory,
    PromptTooLong,
    UsageError,
)
from llmrun.text import printable
from llmrun.units import duration

_USUAL_PORT = 8080
_CONNECT_S = 10.0
_SILENT_S = 60.0
"""A stream that has begun says something every ten seconds, if only that it is there."""
_MOST_LINE = 16 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
T = TypeVar("T")


class _Error(Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Refusal(Struct):
    error: _Error | str


class _Event(Struct):
    error: _Error | str | None = None


def address_of(typed: str) -> str:
    """ "http://127.0.0.1:8080", of what a person writes: that, "127.0.0.1:8080", ":8080", with /v1 or without.

    Raises `UsageError`.
    """
    text = typed.strip()
    if re.fullmatch(r":?\d{1,5}", text):
        text = f"127.0.0.1:{text.lstrip(':')}"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise _no_address(typed) from None
    strange = parts.query or parts.fragment or parts.username is not None or re.search(r"[\s\\]", text)
    if parts.scheme not in ("http", "https") or not parts.hostname or strange:
        raise _no_address(typed)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port is None and "://" not in text:
        port = _USUAL_PORT
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}"


def _no_address(typed: str) -> UsageError:
    return UsageError(
        f"{printable(typed)!r} is not an address", field="server", value=typed, hint=Change({"server": ":8080"})
    )


class Client:
    """Attributes:
    address: "http://127.0.0.1:8080", without /v1.
    key: that it wants; None: none.
    """

    def __init__(self, address: str, key: str | None = None) -> None:
        self.address, self.key = address, key

    @property
    def is_readable(self) -> bool:
        """Whether others on the way can read what is said."""
        parts = urlsplit(self.address)
        return parts.scheme == "http" and parts.hostname not in _LOOPBACK

    def get(self, path: str, kind: type[T]) -> T:
        """A document. Raises `LlmrunError`."""
        return self._whole("GET", path, None, kind)

    def post(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        return self._whole("POST", path, body, kind)

    def _whole(self, method: str, path: str, body: dict[str, Any] | None, kind: type[T]) -> T:
        with closing(Exchange(self, method, path, body)) as exchange:
            data = exchange.whole()
        try:
            return codec.decode(data, kind)
        except codec.Malformed:
            raise UsageError(f"{self.address} is no server of llmrun: its {path} is another", hint=Act("ps")) from None

    def error_of(self, status: int | None, data: bytes, again_s: str | None = None) -> LlmrunError:
        """What it says went wrong, as an error of ours. `status`: of HTTP; None: in the middle of a stream."""
        try:
            error = codec.decode(data, _Refusal).error
        except codec.Malformed:
            error = _Error(data[:300].decode(errors="replace"))
        error = _Error(error) if isinstance(error, str) else error
        at, said = self.address, printable(error.message.strip(), 400) or "no reason"
        match error.code:
            case "context_length_exceeded":
                return PromptTooLong(said)
            case "model_not_found":
                return NotFound(f"{at}: {said}")
            case "engine_crashed":
                return EngineCrashed(f"at {at}: {said}")
            case "out_of_memory":
                return OutOfMemory(f"at {at}: {said}")
        match status:
            case 401:
                what = "takes another key than this one" if self.key else "needs a key"
                return UsageError(f"{at} {what}", remedies=(Change({"api_key_file": "FILE"}), "LLMRUN_API_KEY=…"))
            case 429:
                again = f"again in {again_s} s" if again_s and again_s.isdigit() else "again in a moment"
                return NetworkError(f"{at} has too much to do: {said}", hint=again)
            case 404 | 405:
                return UsageError(f"{at} is no server of llmrun: {said}", hint=Act("ps"))
            case 503:
                return NetworkError(f"{at} can't answer now: {said}")
            case None:
                return NetworkError(f"{at} ended the answer: {said}")
            case _ if status < 500:
                return UsageError(f"{at} refuses it: {said}")
        return NetworkError(f"{at} failed with {status}: {said}")


class Exchange:
    """One request, and what comes back. Closing it has the server end what it computes for it."""

    def __init__(self, client: Client, method: str, path: str, body: dict[str, Any] | None) -> None:
        self._client, self._method, self._path, self._body = client, method, path, body
        parts = urlsplit(client.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname
        self._connection = kind(parts.hostname, parts.port, timeout=_CONNECT_S)
        self._prefix = parts.path
        self._limit_s: float | None = _CONNECT_S
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None
        self.is_stopped = False

    def stop(self) -> None:
        """Have whoever reads find the end. May be called by a signal handler, and by another thread."""
        self.is_stopped = True
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Safe to call twice."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def whole(self) -> bytes:
        with self._errors():
            response = self._begun()
            return response.read()

    def events(self) -> Iterator[bytes]:
        """The documents of a stream of events, as they come. Raises `LlmrunError` for one that is an error, and where
        it ends without having said so."""
        with self._errors():
            response = self._begun()
            self._limit(_SILENT_S)
            while line := response.readline(_MOST_LINE):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                if b'"error"' in data and codec.decode(data, _Event).error is not None:
                    raise self._client.error_of(None, data)
                yield data
        raise NetworkError(f"{self._client.address} broke off in the middle")

    def _begun(self) -> http.client.HTTPResponse:
        """The answer's head. A request may wait for its turn for as long as it takes."""
        client, connection = self._client, self._connection
        connection.connect()
        self._socket = connection.sock
        if self.is_stopped:
            raise ConnectionAbortedError("stopped")
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if client.key:
            headers["Authorization"] = f"Bearer {client.key}"
        data = None if self._body is None else codec.encode(self._body)
        connection.request(self._method, self._prefix + self._path, data, headers)
        self._limit(_CONNECT_S if self._method == "GET" else None)
        self._response = response = connection.getresponse()
        if response.status != 200:
            raise client.error_of(response.status, response.read(_MOST_LINE), response.headers.get("Retry-After"))
        return response

    def _limit(self, seconds: float | None) -> None:
        self._limit_s = seconds
        if self._socket is not None:
            self._socket.settimeout(seconds)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What goes wrong on the way, as `NetworkError`."""
        at = self._client.address
        try:
            yield
        except ConnectionRefusedError:
            raise NetworkError(f"nothing listens at {at}", hint=Act("ps")) from None
        except TimeoutError:
            raise NetworkError(f"{at} has said nothing for {duration(self._limit_s)}") from None
        except (ConnectionError, http.client.HTTPException):
            raise NetworkError(f"{at} broke off the connection") from None
        except OSError as error:
            why = error.strerror or str(error)
            raise NetworkError(f"{at} can't be reached: {printable(why, 200)}") from None
        except ValueError as error:  # no JSON, or a key with a line break
            raise NetworkError(f"{at}: {printable(str(error), 200)}") from None
