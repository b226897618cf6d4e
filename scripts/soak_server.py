#!/usr/bin/env python3
"""What must not happen at `llmrun serve`, however much is asked of it; prints what came of it, for docs/server.md.

    scripts/soak_server.py [MODEL] [--minutes 10] [--workers 16]    a mixed load, with all that goes wrong
    scripts/soak_server.py [MODEL] --markers 1000 [--workers 16]    each answer is that of its own request

Markers: each request's grammar allows one marker of its own alone, behind a prompt of its own; whole answers and
streams, chats and completions, one, two or three answers each. The mixed load:
Whole answers and streams, streams that are left in the middle, malformed bodies, readers that are slow, a crash of the
engine every minute. Every request gets an answer or an error; memory is looked at from the second minute on.

Exit status: 0 all right, 1 a request without an answer or an error, or with that of another, a traceback, or more than
50 MB of growth.
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

    def ask(
        self, body: bytes, path: str = "/v1/completions", *, leave_after: int | None = None, slow: bool = False
    ) -> bytes:
        """All that comes back; of one that is left, what came until then."""
        with socket.create_connection((self.parts.hostname or "", self.parts.port or 80), timeout=600) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: {self.parts.netloc}\r\nContent-Type: application/json\r\n"
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

    def ask_for_markers(self, seed: int, n: int) -> None:
        chance = random.Random(seed)
        for _ in range(n):
            marker = f"{chance.getrandbits(80):020x}"[: chance.choice([4, 12, 20])] + f"-{seed}"
            is_chat, streams, n_answers = chance.random() < 0.5, chance.random() < 0.5, chance.choice([1, 1, 2, 3])
            text = f"{marker} " * chance.randint(1, 12)
            asked = {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
            body = {**asked, "grammar": f'root ::= "{marker}"', "max_tokens": 100, "n": n_answers, "stream": streams}
            data = self.ask(json.dumps(body).encode(), "/v1/chat/completions" if is_chat else "/v1/completions")
            texts = _texts(data, n_answers, streams=streams)
            self.counts["answers of their own"] += texts.count(marker)
            self.counts["requests"] += 1
            if texts != [marker] * n_answers:
                self.problems.append(f"{marker} was asked for, and answered: {texts} {data[:200]!r}")

    def kill_engines(self, every_s: float) -> None:
        while not self.stop.wait(every_s):
            for child in psutil.Process(self.pid).children():
                os.kill(child.pid, signal.SIGKILL)
                self.counts["engines killed"] += 1


def _texts(data: bytes, n: int, *, streams: bool) -> list[str]:
    """Of the answers to one request, by their index."""
    _, _, rest = data.partition(b"\r\n\r\n")
    found = [""] * n
    lines = [line.removeprefix(b"data: ") for line in rest.splitlines() if line.startswith(b"data: {")]
    if not streams:
        lines = [rest[rest.find(b"{") : rest.rfind(b"}") + 1]]
    for line in lines:
        for choice in json.loads(line).get("choices", ()):
            said = choice.get("delta") or choice.get("message") or choice
            found[choice["index"]] += said.get("content") or said.get("text") or ""
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", default="tiny")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--workers", type=int, default=16)
    options.add_argument("--markers", type=int, metavar="N", default=0)
    asked = options.parse_args()
    command = [sys.executable, "-m", "llmrun", "serve", asked.model, "--port", "0", "--max-queue", "64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    address = process.stderr.readline().strip()
    said: list[str] = []
    stderr = process.stderr
    threading.Thread(target=lambda: said.extend(stderr), daemon=True).start()
    soak = Soak(address, process.pid)
    if asked.markers:
        return _markers(soak, process, asked.markers, asked.workers)
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


def _markers(soak: Soak, process: subprocess.Popen[str], n: int, n_workers: int) -> int:
    begin_s = time.monotonic()
    shares = [n // n_workers + (i < n % n_workers) for i in range(n_workers)]
    threads = [threading.Thread(target=soak.ask_for_markers, args=each) for each in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    process.terminate()
    process.wait(60)
    print(f"{n_workers} at a time, {time.monotonic() - begin_s:.0f} s")
    for name, count in sorted(soak.counts.items()):
        print(f"{name}: {count}")
    for problem in soak.problems[:20]:
        print(f"PROBLEM {problem}")
    return 1 if soak.problems or soak.counts["requests"] != n else 0


if __name__ == "__main__":
    sys.exit(main())
