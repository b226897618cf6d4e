"""A load at an address that speaks OpenAI's chat completions: the client, in a process of its own.

    run(Job) ──► python -m llmrun.bench.http_load ──► a thread for each request in flight
             ◄── a line for each request that ended ◄──┘
             ◄── what the client cost

A process of its own so that neither reads the other's time: what the client takes of the CPU is told beside what it
saw. A piece of an answer may have several tokens; how many there were altogether the server says at the end (`usage`).
"""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from llmrun import codec
from llmrun.bench.chat_stream import Chunk
from llmrun.bench.load_row import Request
from llmrun.codec import Struct
from llmrun.errors import NetworkError, UsageError

CHAT = "/v1/chat/completions"


class HttpCall(Struct):
    """One request. `at_s`: when it comes, from the beginning; in a closed loop of no effect."""

    prompt: str
    max_tokens: int
    at_s: float = 0.0


class Job(Struct):
    """What the client is to do.

    Attributes:
        address: "http://127.0.0.1:8080", with what comes before /v1.
        in_flight: of a closed loop; None: each call comes at its time.
        extra: further fields of each body.
        limit_s: of one request.
    """

    address: str
    model: str | None
    key: str | None
    calls: list[HttpCall]
    in_flight: int | None
    extra: dict[str, Any] = codec.field(default_factory=dict)
    limit_s: float = 600.0


_LONGEST = 1 << 20
"""Bytes of a line, and of a body that says why there is no answer."""


class _Cost(Struct):
    """The last line of the client. `cpu_s`: its CPU time, for all requests."""

    cpu_s: float


def run(job: Job, on_request: Callable[[int], None] = lambda _n: None) -> tuple[list[Request], float]:
    """Do it, in a process of its own: the requests as they ended, and the client's CPU time in seconds.

    `on_request` is told how many have ended. Raises `NetworkError` where that fails as a whole.
    """
    command = [sys.executable, "-m", "llmrun.bench.http_load"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as client,
    ):
        assert client.stdin and client.stdout
        found: list[Request] = []
        try:
            with suppress(BrokenPipeError), client.stdin:
                client.stdin.write(codec.encode(job))
            for line in client.stdout:
                if line.startswith(b'{"cpu_s":'):
                    return found, codec.decode(line, _Cost).cpu_s
                found.append(codec.decode(line, Request))
                on_request(len(found))
            client.wait()
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()
        finally:
            client.kill()
    raise NetworkError(f"the client of the load ended with {client.returncode}: {last[-1] if last else 'no word'}")


def check_address(address: str) -> str:
    """Without a slash at its end, or /v1. Raises `UsageError`."""
    try:
        parts = urlsplit(address)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        has_name = "@" in parts.netloc
    except ValueError:  # a port that is no number, an address of IPv6 that is none
        is_good = has_name = False
    if has_name:
        raise UsageError("a name or a password in an address is not sent", hint="the server's key in LLMRUN_API_KEY")
    if not is_good or not re.fullmatch("[!-~]+", address):
        raise UsageError(f"{address!r} is no address: http://127.0.0.1:8080 is one")
    return address.rstrip("/").removesuffix("/v1")


# -- the process ---


class _Broken(Exception):
    """There is no answer, or no whole one. The arguments: of what kind the error is, and its text."""


class _Client:
    """Sends the calls of a job, and tells each request when it has ended."""

    def __init__(self, job: Job, put: Callable[[bytes], object]) -> None:
        self._job, self._put = job, put
        self._parts = urlsplit(job.address)
        self._lock = threading.Lock()

    def run(self) -> None:
        job, self._begin_s = self._job, time.perf_counter()
        if job.in_flight is not None:
            left = deque(job.calls)
            threads = [threading.Thread(target=self._from, args=(left,)) for _ in range(job.in_flight)]
            for thread in threads:
                thread.start()
        else:
            threads = []
            for call in sorted(job.calls, key=lambda each: each.at_s):
                time.sleep(max(0.0, call.at_s - self._now_s()))
                threads.append(threading.Thread(target=self._ask, args=(call, call.at_s)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _now_s(self) -> float:
        return time.perf_counter() - self._begin_s

    def _from(self, left: deque[HttpCall]) -> None:
        while True:
            try:
                call = left.popleft()
            except IndexError:
                return
            self._ask(call, self._now_s())

    def _ask(self, call: HttpCall, asked_s: float) -> None:
        piece_s: list[float] = []
        told: dict[str, Any] = {}
        try:
            self._read(call, piece_s, told)
        except _Broken as error:
            told["error_kind"], told["error"] = error.args
        except TimeoutError as error:
            told |= {"error_kind": "timeout", "error": f"{error} within {self._job.limit_s:g} s"}
        except ConnectionRefusedError:
            told |= {"error_kind": "connection", "error": f"nothing listens at {self._job.address}"}
        except (OSError, http.client.HTTPException) as error:
            told |= {"error_kind": "connection", "error": f"{type(error).__name__}: {error}"[:300]}
        except ValueError as error:
            told |= {"error_kind": "stream", "error": f"what came is not JSON of a stream: {error}"[:300]}
        ended = Request(round(asked_s, 6), tuple(round(each, 6) for each in piece_s), **told)
        line = codec.encode(ended) + b"\n"
        with self._lock:
            self._put(line)

    def _read(self, call: HttpCall, piece_s: list[float], told: dict[str, Any]) -> None:
        """Raises `_Broken`, and what a connection raises."""
        job, parts = self._job, self._parts
        body = {
            **({"model": job.model} if job.model else {}),
            "messages": [{"role": "user", "content": call.prompt}],
            "max_tokens": call.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **job.extra,
        }
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if job.key:
            headers["Authorization"] = f"Bearer {job.key}"
        connection = connect(job.address, job.limit_s)
        is_whole = False
        try:
            connection.request("POST", parts.path + CHAT, codec.encode(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _Broken(f"http {response.status}", f"{response.status}: {_reason(response.read(_LONGEST))}")
            while line := response.readline(_LONGEST):
                if len(line) == _LONGEST:
                    raise _Broken("stream", f"a line of more than {_LONGEST:,} bytes")
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].lstrip()
                if data.startswith(b"{"):
                    chunk = codec.decode(data, Chunk)
                    is_whole |= any(choice.finish_reason for choice in chunk.choices or ())
                    self._take(chunk, piece_s, told)
                elif data.startswith(b"[DONE]"):
                    is_whole = True
        finally:
            connection.close()
        if not is_whole:
            raise _Broken("cut short", f"the stream ended behind {len(piece_s)} pieces, before its answer did")
        if not piece_s:
            raise _Broken("no text", "the answer has no text")

    def _take(self, chunk: Chunk, piece_s: list[float], told: dict[str, Any]) -> None:
        if chunk.error is not None:
            raise _Broken("stream", _message(chunk.error)[:300])
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None and (delta.content or delta.thought):
                piece_s.append(self._now_s())
        if (usage := chunk.usage) is not None:
            told["n_prompt"], told["n_made"] = usage.prompt_tokens, usage.completion_tokens
            told["n_cached"] = usage.n_cached
        if (timings := chunk.timings) is not None:
            told["server_prompt_s"], told["server_decode_s"] = timings.prompt_s, timings.decode_s
            told["server_tps"] = timings.predicted_per_second


def connect(address: str, limit_s: float) -> http.client.HTTPConnection:
    """Not open yet; through no proxy."""
    parts = urlsplit(address)
    assert parts.hostname
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname, parts.port, timeout=limit_s)


class _Refusal(Struct):
    error: Any = None


def _reason(body: bytes) -> str:
    try:
        return _message(codec.decode(body, _Refusal).error)[:200]
    except codec.Malformed:
        return body[:200].decode(errors="replace")


def _message(error: Any) -> str:
    """Of an error as OpenAI has it, or a text."""
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _main() -> None:
    out = sys.stdout.buffer

    def put(line: bytes) -> None:
        out.write(line)
        out.flush()

    client = _Client(codec.decode(sys.stdin.buffer.read(), Job), put)
    before_s = time.process_time()
    client.run()
    put(codec.encode(_Cost(time.process_time() - before_s)) + b"\n")


if __name__ == "__main__":
    _main()
