"""Compares `llmrun chat` with llama-cli, both sat before in a terminal, and prints Markdown for docs/chat.md.

    scripts/compare_chat.py turns  MODEL [--rounds 5] [--turns 10]   time to first token and tokens per second, by turn
    scripts/compare_chat.py reuse  MODEL [--tokens 4000]             the second TTFT over a long history, ours alone

MODEL is a file, or SHAPE:LEVEL for a synthetic one, such as qwen3-0.6b:Q4_K_M. The model is made to say one word again
and again, so that each of its tokens is seen on the screen: what is timed is from the Enter key to the first word, and
from the first word to the last, as they arrive at the terminal, with our status line and Markdown on. Turn by turn the
two take turns; both are started anew for every round. The median of the ratios of the pairs is what counts.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import psutil
from compare_peers import HEAD, PEERS, check_quiet, interleaved, model_file, row

from llmrun.chat.conversation import CHATML
from llmrun.engine.engine import ChildEngine
from llmrun.engine.protocol import PromptOptions
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.machine.hardware import default_threads
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.load_plan import wants_repack

WORD = "W"  # without a blank before it: llama-cli strips answers, and would compute them again
QUESTION = "please tell me more of it and take your time as the others did before you came here today"
COLUMNS, LINES = 100, 40


class Seat:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], ready: bytes, env: dict[str, str]) -> None:
        self._ready = ready
        self._pty, child_side = pty.openpty()
        fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=child_side,
            stdout=child_side,
            stderr=child_side,
            env={**os.environ, "TERM": "xterm-256color", **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child_side)
        self._seen = b""
        self._wait_ready()

    def _read(self, timeout_s: float) -> bytes:
        if not select.select([self._pty], [], [], timeout_s)[0]:
            return b""
        data = os.read(self._pty, 1 << 16)
        for _ in range(data.count(b"\x1b[6n")):  # "where is the cursor?"
            os.write(self._pty, b"\x1b[5;1R")
        return data

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 120
        while self._ready not in self._seen[-4096:]:
            if time.monotonic() > deadline:
                sys.exit(f"no prompt came; the last it said: {self._seen[-500:]!r}")
            self._seen += self._read(0.1)
        while data := self._read(0.2):
            self._seen += data

    def settle(self) -> None:
        """Wait until it does nothing any more: ours reads ahead between turns, which is not to be the other's loss."""
        family = [psutil.Process(self.process.pid)]
        family += family[0].children(recursive=True)

        def used() -> float:
            return sum(sum(each.cpu_times()[:2]) for each in family)

        before = -1.0
        while used() - before > 0.02:
            before = used()
            time.sleep(0.4)

    def turn(self, n_words: int) -> tuple[float, float]:
        """Seconds to the first word, and words per second from the first to the last."""
        os.write(self._pty, QUESTION.encode())
        echoed = b""
        while not echoed.replace(b"\r", b"").endswith(QUESTION.encode()[-4:]):
            data = self._read(2)
            if not data:
                break
            echoed += data
        self._seen = b""
        n, first_s, last_s = 0, 0.0, 0.0
        begin_s = time.perf_counter()
        os.write(self._pty, b"\r")
        while n < n_words:
            data = self._read(60)
            now_s = time.perf_counter()
            if not data:
                sys.exit(f"{n} of {n_words} words came: {self._seen[-500:]!r}")
            self._seen += data
            found = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", self._seen).count(WORD.encode())
            if found > n:
                first_s = first_s or now_s
                n, last_s = found, now_s
        self._wait_ready()
        self.settle()
        return first_s - begin_s, (n_words - 1) / (last_s - first_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._pty)


def word_token() -> int:
    texts, _, _ = synth.vocabulary(8192)
    return texts.index(WORD.encode())


def turns(options: argparse.Namespace) -> None:
    path = model_file(options.model, for_chat=True)
    threads, n = str(default_threads()), str(options.n_gen)
    bias = f"{word_token()}+100000"
    common = ["--temp", "0", "-c", str(options.ctx), "-t", threads, "-n", n, "--ignore-eos", "-l", bias]
    theirs_command = [
        str(options.peers / "llama-cli"),
        "-m",
        str(path),
        "--jinja",
        "--chat-template",
        "chatml",
        *common,
    ]
    if not wants_repack(open_header(path)):
        theirs_command.append("--no-repack")
    home = tempfile.mkdtemp(prefix="llmrun-compare-chat-")
    ours_command = [sys.executable, "-m", "llmrun", "chat", str(path), "--chat-template", CHATML, *common]
    ttft: dict[int, tuple[list[float], list[float]]] = {}
    rates: tuple[list[float], list[float]] = ([], [])
    try:
        for _ in interleaved(options.rounds):
            theirs = Seat(theirs_command, b"\n> ", {})
            ours = Seat(ours_command, b">>>", {"LLMRUN_HOME": home})
            theirs.settle()
            ours.settle()
            try:
                for turn in range(1, options.turns + 1):
                    for seat, side in ((theirs, 0), (ours, 1)):
                        first_s, words_per_s = seat.turn(options.n_gen)
                        ttft.setdefault(turn, ([], []))[side].append(first_s * 1e3)
                        rates[side].append(words_per_s)
            finally:
                theirs.close()
                ours.close()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(f"{path.name}, {threads} threads, {options.n_gen} tokens a turn, {options.rounds} rounds\n")
    print(HEAD.format(peer="llama-cli"))
    for turn in sorted({1, 2, 5, options.turns} & set(ttft)):
        print(row(f"TTFT, turn {turn}", *ttft[turn], "ms"))
    print(row("tokens per second, all turns", *rates, "t/s"))


def reuse(options: argparse.Namespace) -> None:
    """The same question twice over a history of so many tokens, and after /undo."""
    path = model_file(options.model, for_chat=True)
    sampling = SamplingConfig(temperature=0, max_tokens=8)
    rows = []
    for _ in interleaved(options.rounds):
        with ChildEngine(path, open_header(path)) as engine:
            history = "the cat sat on a mat and saw a dog run by "
            per = (engine.count(history * 11) - engine.count(history)) / 10
            messages = [{"role": "user", "content": history * round(options.tokens / per)}]
            goes_on = PromptOptions(template=CHATML, reuse=True)
            taken = []
            said = None
            for what in ("first", "next turn", "after /undo", "/regen"):
                if what == "next turn":
                    assert said is not None
                    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "and then?"}]
                elif what == "after /undo":
                    messages[-1] = {"role": "user", "content": "who was it?"}
                generation = engine.generate(messages, sampling, options=goes_on)
                said = "".join(generation)
                timing = generation.timing
                taken.append((timing.n_prompt, timing.n_cached, (timing.ttft_s or 0) * 1e3))
            rows.append(taken)
    print("| | tokens | remembered | TTFT (median) | of the first |\n|---|---|---|---|---|")
    for i, what in enumerate(("the first prompt", "the next turn", "after `/undo`, another message", "`/regen`")):
        n_prompt, n_cached, _ = rows[0][i]
        ttft = statistics.median(taken[i][2] for taken in rows)
        share = statistics.median(taken[i][2] / taken[0][2] for taken in rows)
        print(f"| {what} | {n_prompt} | {n_cached} | {ttft:.4g} ms | {share:.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["turns", "reuse"])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("-n", "--n-gen", type=int, default=48)
    parser.add_argument("-c", "--ctx", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--peers", type=Path, default=PEERS)
    options = parser.parse_args()
    check_quiet()
    {"turns": turns, "reuse": reuse}[options.what](options)


if __name__ == "__main__":
    main()
