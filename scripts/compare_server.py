#!/usr/bin/env python3
"""Serves one model by llmrun and by llama.cpp's own server, and loads both in turn; prints Markdown for docs/server.md.

    scripts/compare_server.py MODEL.gguf --peer LLAMA-SERVER [--rounds 5] [-C 1,4,8] [-p 128] [-n 64] [--shared 512]
        [--spread 50] [--whole-prompts]

Both have the same file, as many slots, the same context each, threads and types of keys and values; both are loaded all
the time and idle while the other is asked. `--whole-prompts`: ours has answers wait for prompts, as the other one does.
The client is a process of its own, whose cost is shown. A ratio is the median of the rounds' ratios, llmrun ÷ peer.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.bench import serving  # noqa: E402
from llmrun.bench.load_row import LoadRow  # noqa: E402
from llmrun.bench.serving import Server, Wanted  # noqa: E402
from llmrun.machine import hardware  # noqa: E402

_N_CTX = 4096
Figure = Callable[[LoadRow], float | None]
_Row = tuple[int, int, list[tuple[LoadRow, LoadRow]]]  # how many at once, words shared, ours and theirs by round
FIGURES: dict[str, Figure] = {
    "t/s": lambda row: row.tokens_per_s,
    "TTFT p50": lambda row: row.result.ttft_s(0.5),
    "gap p99": lambda row: row.result.itl_s(0.99),
    "E2E p50": lambda row: row.result.e2e_s(0.5),
}


@contextmanager
def started(command: list[str], address: str) -> Iterator[Server]:
    """Until it says that it is well."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(3000):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            try:
                with opener.open(f"{address}/health", timeout=2) as response:
                    if response.status == 200:
                        break
            except OSError:
                time.sleep(0.1)
        yield Server(address)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", type=Path)
    options.add_argument("--peer", required=True, help="llama.cpp's llama-server, of the same source")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("-C", "--concurrency", default="1,4,8")
    options.add_argument("-p", "--n-prompt", type=int, default=128)
    options.add_argument("-n", "--n-gen", type=int, default=64)
    options.add_argument("--requests", type=int, help="of each load; else four for each in flight, at least 8")
    options.add_argument("--shared", type=int, default=0, help="words that all prompts begin with, in a second part")
    options.add_argument(
        "--spread", type=float, default=0.0, help="by how many percent lengths differ from that at most"
    )
    options.add_argument("--whole-prompts", action="store_true", help="ours with this option")
    asked = options.parse_args()
    numbers = [int(each) for each in asked.concurrency.split(",")]
    threads, most = hardware.default_threads(), max(numbers)
    ports = free_port(), free_port()
    addresses = [f"http://127.0.0.1:{port}" for port in ports]
    ours = [sys.executable, "-m", "llmrun", "serve", str(asked.model), "--port", str(ports[0]), "-np", str(most)]
    ours += ["-c", str(_N_CTX), "--no-prompt-cache", "-t", str(threads), "--no-tune", "--thread-guard", "off"]
    ours += ["--whole-prompts"] if asked.whole_prompts else []
    theirs = [asked.peer, "-m", str(asked.model), "--host", "127.0.0.1", "--port", str(ports[1]), "-np", str(most)]
    theirs += ["-c", str(_N_CTX * most), "-t", str(threads), "-tb", str(threads), "--no-webui", "--jinja", "-fa", "on"]
    with started(ours, addresses[0]) as mine, started(theirs, addresses[1]) as other:
        rows: list[_Row] = []
        for shared in dict.fromkeys((0, asked.shared)):
            for n in numbers:
                requests = asked.requests or max(8, 4 * n)
                extra: dict[str, object] = {"temperature": 0, "ignore_eos": True}
                wanted = Wanted(asked.n_prompt, asked.n_gen, shared, requests, extra=extra, spread=asked.spread / 100)
                pairs = []
                for turn in range(1, asked.rounds + 1):
                    order = (mine, other) if turn % 2 else (other, mine)
                    # Of no two loads the same prompts: what one left in a server's memory would answer the next.
                    prompts = 1000 * len(rows) + turn
                    found = {server: serving.closed(server, wanted, n, prompts) for server in order}
                    pairs.append((found[mine], found[other]))
                rows.append((n, shared, pairs))
                show(rows[-1], first=len(rows) == 1)
    return 0


def show(row: _Row, *, first: bool) -> None:
    n, shared, pairs = row
    if first:
        print(f"| at once | shared | {' | '.join(FIGURES)} | ours, theirs | errors | client's CPU of a request |")
        print("|--:|--:|" + "--:|" * len(FIGURES) + "---|--:|--:|")
    ratios, shown = [], []
    for name, figure in FIGURES.items():
        both = [(figure(a), figure(b)) for a, b in pairs]
        known = [(a, b) for a, b in both if a and b]
        ratios.append(f"{statistics.median(a / b for a, b in known):.3f}" if known else "–")
        if name in ("t/s", "TTFT p50") and known:
            middle = [statistics.median(each) for each in zip(*known, strict=True)]
            shown.append(f"{middle[0]:.3g}, {middle[1]:.3g} {'t/s' if name == 't/s' else 's'}")
    errors = sum(side.result.n_errors for pair in pairs for side in pair)
    cost = statistics.median(side.client_s or 0.0 for pair in pairs for side in pair)
    print(
        f"| {n} | {shared} | {' | '.join(ratios)} | {'; '.join(shown)} | {errors} | {cost * 1e3:.2g} ms |", flush=True
    )


if __name__ == "__main__":
    sys.exit(main())
