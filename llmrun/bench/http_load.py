"""A load at an address that speaks OpenAI's chat completions: the client, in a process of its own.

    run(Job) ──► python -m llmrun.bench.http_load ──► a thread for each request in flight ──► outcomes, and what it cost

A process of its own so that neither reads the other's time: what the client takes of the CPU is told beside what it
saw. A piece of an answer may have several tokens; how many there were altogether the server says at the end (`usage`).
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from llmrun import codec
from llmrun.bench.load import Outcome, Result
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


class Seen(Struct):
    """What became of a request, in seconds on `time.perf_counter`.

    Attributes:
        piece_s: when each piece with text came.
        server_prompt_ms, server_tps: what the server says of it, where it does.
    """

    asked_s: float
    piece_s: list[float]
    n_prompt: int = 0
    n_cached: int = 0
    n_made: int = 0
    server_prompt_ms: float | None = None
    server_tps: float | None = None
    error: str | None = None

    def outcome(self) -> Outcome:
        return Outcome(self.asked_s, tuple(self.piece_s), self.n_prompt, self.n_cached, self.error, n_made=self.n_made)


class Report(Struct):
    """`cpu_s`: of the client, for all of them."""

    seen: list[Seen]
    cpu_s: float

    @property
    def result(self) -> Result:
        return Result([each.outcome() for each in self.seen])


def run(job: Job) -> Report:
    """Do it, in a process of its own. Raises `NetworkError` where that fails as a whole."""
    done = subprocess.run(
        [sys.executable, "-m", "llmrun.bench.http_load"], input=codec.encode(job), capture_output=True, check=False
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        raise NetworkError(f"the client of the load ended with {done.returncode}: {last[-1] if last else 'no word'}")
    return codec.decode(done.stdout, Report)


def check_address(address: str) -> str:
    """Without a slash at its end, or /v1. Raises `UsageError`."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{address!r} is no address: http://127.0.0.1:8080 is one")
    return address.rstrip("/").removesuffix("/v1")


# -- the process ---


class _Client:
    """Sends the calls of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._parts = urlsplit(job.address)
        self.seen: list[Seen] = []
        self._lock = threading.Lock()

    def run(self) -> None:
        job, begin_s = self._job, time.perf_counter()
        if job.in_flight is not None:
            left = deque(job.calls)
            threads = [threading.Thread(target=self._from, args=(left,)) for _ in range(job.in_flight)]
            for thread in threads:
                thread.start()
        else:
            threads = []
            for call in sorted(job.calls, key=lambda each: each.at_s):
                time.sleep(max(0.0, begin_s + call.at_s - time.perf_counter()))
                threads.append(threading.Thread(target=self._ask, args=(call, begin_s + call.at_s)))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def _from(self, left: deque[HttpCall]) -> None:
        while True:
            try:
                call = left.popleft()
            except IndexError:
                return
            self._ask(call, time.perf_counter())

    def _ask(self, call: HttpCall, asked_s: float) -> None:
        seen = Seen(asked_s, [])
        try:
            self._read(call, seen)
        except (OSError, http.client.HTTPException, ValueError) as error:
            seen.error = f"{type(error).__name__}: {error}"[:300]
        if seen.error is None and not seen.piece_s:
            seen.error = "the answer has no text"
        with self._lock:
            self.seen.append(seen)

    def _read(self, call: HttpCall, seen: Seen) -> None:
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
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        assert parts.hostname
        connection = kind(parts.hostname, parts.port, timeout=job.limit_s)
        try:
            connection.request("POST", parts.path + CHAT, codec.encode(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                seen.error = f"{response.status}: {_reason(response.read())}"
                return
            for line in response:
                if line.startswith(b"data: {"):
                    self._take(codec.decode(line[6:], _Chunk), seen)
        finally:
            connection.close()

    def _take(self, chunk: _Chunk, seen: Seen) -> None:
        if chunk.error is not None:
            seen.error = str(chunk.error)[:300]
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None and (delta.content or delta.reasoning_content or delta.reasoning):
                seen.piece_s.append(time.perf_counter())
        if (usage := chunk.usage) is not None:
            seen.n_prompt, seen.n_made = usage.prompt_tokens or 0, usage.completion_tokens or 0
            seen.n_cached = (usage.prompt_tokens_details or _Details()).cached_tokens or 0
        if (timings := chunk.timings) is not None:
            seen.server_prompt_ms, seen.server_tps = timings.prompt_ms, timings.predicted_per_second


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Struct):
    delta: _Delta | None = None


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Timings(Struct):
    prompt_ms: float | None = None
    predicted_per_second: float | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


class _Error(Struct):
    message: str = ""


class _Refusal(Struct):
    error: _Error | str


def _reason(body: bytes) -> str:
    try:
        error = codec.decode(body, _Refusal).error
    except codec.Malformed:
        return body[:200].decode(errors="replace")
    return (error if isinstance(error, str) else error.message)[:200]


def _main(data: bytes) -> bytes:
    client = _Client(codec.decode(data, Job))
    before_s = time.process_time()
    client.run()
    return codec.encode(Report(client.seen, time.process_time() - before_s))


if __name__ == "__main__":
    sys.stdout.buffer.write(_main(sys.stdin.buffer.read()))
