#!/usr/bin/env python3
"""Ten minutes of a mixed load at `llmrun serve`, with all that goes wrong; prints what came of it, for docs/server.md.

    scripts/soak_server.py [MODEL] [--minutes 10] [--workers 16]

Whole answers and streams, streams that are left in the middle, malformed bodies, readers that are slow, a crash of the
engine every minute. Every request gets an answer or an error; memory is looked at from the second minute on.

Exit status: 0 all right, 1 a request without an answer or an error, a traceback, or more than 50 MB of growth.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

_GROWTH = 50e6


class Soak:
    def __init__(self, address: str, pid: int) -> None:
        self.parts, self.pid = urlsplit(address), pid
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.stop = threading.Event()

    def ask(self, body: bytes, *, leave_after: int | None = None, slow: bool = False) -> bytes:
        """All that comes back; of one that is left, what came until then."""
        with socket.create_connection((self.parts.hostname or "", self.parts.port or 80), timeout=600) as connection:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.parts.netloc}\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            data = b""
            while piece := connection.recv(512 if slow else 65536):
                data += piece
                if leave_after is not None and len(data) > leave_after:
                    break
                if slow:
                    time.sleep(0.02)
            return data

    def work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stop.is_set():
            kind = chance.choices(["whole", "stream", "leave", "malformed", "slow"], [4, 3, 2, 1, 1])[0]
            marker = f"{chance.getrandbits(40):x}"
            body = {"prompt": f"{marker} {marker} {marker}", "max_tokens": chance.choice([1, 8, 40]), "temperature": 0}
            try:
                if kind == "malformed":
                    data = self.ask(chance.choice([b"{", b"[]", b"\xff", b'{"prompt": 1}', b'{"prompt": "a", "x": 1}']))
                    self.note(kind, data, 400)
                elif kind == "leave":
                    body |= {"stream": True, "max_tokens": 4000, "ignore_eos": True}
                    self.ask(json.dumps(body).encode(), leave_after=chance.choice([0, 300, 2000]))
                    self.counts["left"] += 1
                else:
                    body["stream"] = kind != "whole"
                    self.note(kind, self.ask(json.dumps(body).encode(), slow=kind == "slow"), None)
            except OSError as error:
                self.problems.append(f"{kind}: {error}")

    def note(self, kind: str, data: bytes, wanted: int | None) -> None:
        head, _, rest = data.partition(b"\r\n\r\n")
        status = int(head[9:12] or 0) if head.startswith(b"HTTP/1.1 ") else 0
        if b"Traceback" in data:
            self.problems.append("a traceback in an answer")
        if status == 200 and (b"[DONE]" in rest or b'"usage"' in rest or b'"error"' in rest):
            self.counts["an error in a stream" if b'"error"' in rest else f"{kind}: answered"] += 1
        elif status in (400, 429, 503) and b'"error"' in rest:
            self.counts[str(status)] += 1
        else:
            self.problems.append(f"{kind}: {status} {data[-200:]!r}")
        if wanted is not None and status != wanted:
            self.problems.append(f"{kind}: {status} and not {wanted}")

    def kill_engines(self, every_s: float) -> None:
        while not self.stop.wait(every_s):
            for child in psutil.Process(self.pid).children():
                os.kill(child.pid, signal.SIGKILL)
                self.counts["engines killed"] += 1


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="tiny")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--workers", type=int, default=16)
    asked = options.parse_args()
    command = [sys.executable, "-m", "llmrun", "serve", asked.model, "--port", "0", "--max-queue", "64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    address = process.stderr.readline().strip()
    said: list[str] = []
    stderr = process.stderr
    threading.Thread(target=lambda: said.extend(stderr), daemon=True).start()
    soak = Soak(address, process.pid)
    threads = [threading.Thread(target=soak.work, args=(seed,)) for seed in range(asked.workers)]
    threads.append(threading.Thread(target=soak.kill_engines, args=(60.0,)))
    for thread in threads:
        thread.start()
    begin_s, rss = time.monotonic(), list[tuple[float, int]]()
    while time.monotonic() - begin_s < 60 * asked.minutes and process.poll() is None:
        time.sleep(2)
        rss.append((time.monotonic() - begin_s, psutil.Process(process.pid).memory_info().rss))
    soak.stop.set()
    for thread in threads:
        thread.join()
    ended = process.poll()
    process.terminate()
    process.wait(60)
    early = [n for at, n in rss if 60 * asked.minutes * 0.2 <= at] or [n for _, n in rss]
    growth = early[-1] - min(early[:5])
    if ended is not None:
        soak.problems.append(f"the server ended with {ended}")
    if any("Traceback" in line for line in said):
        soak.problems.append("a traceback on standard error")
    if growth > _GROWTH:
        soak.problems.append(f"memory grew by {growth / 1e6:.0f} MB")
    for name, n in sorted(soak.counts.items()):
        print(f"{name}: {n}")
    since = 0.2 * asked.minutes
    print(f"memory from minute {since:g} to the end: {growth / 1e6:+.1f} MB, {early[-1] / 1e6:.0f} MB in all")
    for problem in soak.problems[:20]:
        print(f"PROBLEM {problem}")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
