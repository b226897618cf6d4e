#!/usr/bin/env python3
"""What the client of `llmrun bench serve` costs, beside `wrk`, which is C and reads nothing of what comes.

    apt install wrk
    scripts/check_load.py [-C 1,4,16] [--requests 300] [--rounds 5] [-n 64]

Both ask the same stub in turn: a process of its own that answers every request with the same stream of server-sent
events, one write each, as fast as it can. Prints Markdown for docs/server.md: requests per second, and CPU time of a
request, by the system's count of each client's process. Without `wrk` it says so and measures the client alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.bench import http_load  # noqa: E402
from llmrun.bench.http_load import CHAT, HttpCall, Job  # noqa: E402

PROMPT = "time people way water words long little round year good " * 12
_WRK = """
wrk.method = "POST"
wrk.body = {body}
wrk.headers["Content-Type"] = "application/json"
"""


_HEAD = b"""HTTP/1.1 200 OK\r
Content-Type: text/event-stream\r
Transfer-Encoding: chunked\r
Connection: close\r
\r
"""


class Cost(NamedTuple):
    """Of one run. `cpu_s`: of a request."""

    per_s: float
    cpu_s: float


# -- the stub ---


def events(n: int) -> list[bytes]:
    """What a server of llama.cpp's kind sends for an answer of `n` tokens, each a chunk of HTTP."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    deltas = [{"role": "assistant", "content": ""}, *({"content": f" word{i}"} for i in range(n))]
    documents = [{**head, "choices": [{"index": 0, "delta": each, "finish_reason": None}]} for each in deltas]
    documents.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    documents.append({**head, "choices": [], "usage": {"prompt_tokens": 120, "completion_tokens": n}})
    lines = [*(f"data: {json.dumps(each)}\n\n".encode() for each in documents), b"data: [DONE]\n\n"]
    return [b"%x\r\n%b\r\n" % (len(line), line) for line in lines] + [b"0\r\n\r\n"]


async def stub(n: int) -> None:
    """Serves until its input is closed; the port is its first line."""
    answer = events(n)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: *(\d+)", asked, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(_HEAD)
            for each in answer:
                writer.write(each)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


@contextmanager
def running_stub(n: int) -> Iterator[str]:
    command = [sys.executable, __file__, "--stub", "-n", str(n)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


# -- the clients ---


def ours(address: str, in_flight: int, n_requests: int) -> Cost:
    calls = [HttpCall(PROMPT, 64)] * n_requests
    requests, cpu_s = http_load.run(Job(address, "stub", None, calls, in_flight))
    failed = [each.error for each in requests if each.error]
    if failed:
        raise SystemExit(f"{len(failed)} of {n_requests} requests failed: {failed[0]}")
    return Cost(n_requests / max(each.piece_s[-1] for each in requests), cpu_s / n_requests)


def wrk(address: str, in_flight: int, seconds: float) -> Cost:
    """By one thread, a connection for each request as ours has it."""
    body = json.dumps({"model": "stub", "messages": [{"role": "user", "content": PROMPT}], "stream": True})
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK.format(body=json.dumps(body)))
        script.flush()
        command = ["wrk", "-t1", f"-c{in_flight}", f"-d{max(1, round(seconds))}s", "-s", script.name, address + CHAT]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"(\d+) requests in ([\d.]+)s", said)
    if process.returncode or not found or "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"wrk ended with {process.returncode}:\n{said}")
    n = int(found[1])
    return Cost(n / float(found[2]), (usage.ru_utime + usage.ru_stime) / n)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-C", "--concurrency", default="1,4,16")
    options.add_argument("--requests", type=int, default=300, help="of ours, in each run")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("-n", "--n-gen", type=int, default=64, help="events with text of each answer")
    options.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.stub:
        asyncio.run(stub(asked.n_gen))
        return 0
    has_wrk = shutil.which("wrk") is not None
    if not has_wrk:
        print("wrk is not here (`apt install wrk`): it is left out", file=sys.stderr)
    print("| at once | requests/s | wrk | CPU of a request | wrk |\n|--:|--:|--:|--:|--:|")
    with running_stub(asked.n_gen) as address:
        for n in (int(each) for each in asked.concurrency.split(",")):
            mine: list[Cost] = []
            theirs: list[Cost] = []
            for _ in range(asked.rounds):
                mine.append(ours(address, n, asked.requests))
                theirs += [wrk(address, n, asked.requests / mine[-1].per_s)] if has_wrk else []
            print(
                f"| {n} | {_shown(mine, 0)} | {_shown(theirs, 0)} | {_shown(mine, 1)} | {_shown(theirs, 1)} |",
                flush=True,
            )
    return 0


def _shown(costs: list[Cost], field: int) -> str:
    if not costs:
        return "–"
    middle = statistics.median(cost[field] for cost in costs)
    return f"{middle * 1e3:.3g} ms" if field else f"{middle:.0f}"


if __name__ == "__main__":
    sys.exit(main())
