"""The engine under fault, at length: prints the figures of docs/reliability.md as Markdown.

    .venv/bin/python scripts/fault_engine.py [--times 20] [--cycles 500]

Every line is a real `llmrun` with a real child, ended in the middle of what it does. Exit 1 where something was not as
wanted: another exit code, a process left, a traceback, or an end that took longer than its bar, which is a second; ten
for the loss of a worker, three for a chat template that never ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from llmrun.engine.engine import ChildEngine
from llmrun.errors import EngineCrashed
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig, Offload
from llmrun.options.sampling import SamplingConfig

LLMRUN = [sys.executable, "-m", "llmrun"]


def runs(pid: int) -> bool:
    """Whoever adopts a process that has ended may take its time to bury it: that one runs no more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_alive(pids: list[int]) -> int:
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline and any(map(runs, pids)):
        time.sleep(0.01)
    return sum(map(runs, pids))


Result = tuple[int, float, int, bool]


def ended(arguments: list[str], after_s: float, end: Callable[[subprocess.Popen[bytes], list[int]], None]) -> Result:
    """Run, end it after a while; returns exit status, seconds until it was gone, processes left, clean stderr.

    After a second or more there is an engine, however long that takes.
    """
    with subprocess.Popen(
        [*LLMRUN, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        time.sleep(after_s)
        children: list[int] = []
        while not children and process.poll() is None:
            children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
            if after_s < 1:
                break
        begin = time.monotonic()
        end(process, children)
        try:
            _, stderr = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            _, stderr = process.communicate()
        return process.returncode, time.monotonic() - begin, left_alive(children), b"Traceback" not in stderr


def report(name: str, wanted: int, results: list[Result], bar_s: float = 1) -> bool:
    """Print a line of the table; returns whether all was as wanted."""
    right = sum(status == wanted for status, *_ in results)
    slowest = max(took for _, took, *_ in results)
    left = sum(alive for *_, alive, _ in results)
    tracebacks = sum(not clean for *_, clean in results)
    print(
        f"| {name} | {len(results)} | {right} × exit {wanted} | {slowest:.2f} s | {left} | {tracebacks} |", flush=True
    )
    return right == len(results) and slowest < bar_s and not left and not tracebacks


def kill_child(sent: signal.Signals) -> Callable[[subprocess.Popen[bytes], list[int]], None]:
    def end(_process: subprocess.Popen[bytes], children: list[int]) -> None:
        for child in children:
            os.kill(child, sent)

    return end


def interrupt(process: subprocess.Popen[bytes], _children: list[int]) -> None:
    process.send_signal(signal.SIGINT)


def terminate(process: subprocess.Popen[bytes], _children: list[int]) -> None:
    process.send_signal(signal.SIGTERM)


def worker_lost(path: Path, after_s: float) -> Result:
    """kill -9 of a worker while a model lies on it: seconds until the command has ended."""
    command = [*LLMRUN, "worker", "--json", "--port", "0", "-t", "1", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
        assert worker.stdout
        ready = json.loads(worker.stdout.readline())
        arguments = ["run", str(path), "b", "--no-tune", "--temp", "0", "-l", "2-inf", "-ngl", "all"]
        arguments += ["--rpc", f"{ready['host']}:{ready['port']}"]
        try:
            return ended(arguments, after_s, lambda _process, _children: os.kill(ready["pid"], signal.SIGKILL))
        finally:
            worker.terminate()


def left_alone(path: Path) -> Result:
    """Leaving an answer early in Python: seconds until the engine is free, which must have lived on."""
    with ChildEngine(path, open_header(path)) as engine:
        generation = engine.generate("a b c", SamplingConfig(temperature=0))
        next(iter(generation))
        begin = time.monotonic()
        generation.close()
        return int(not engine.alive), time.monotonic() - begin, 0, True


def looped(path: Path) -> Result:
    """A chat template that never ends: seconds until it is an error."""
    with ChildEngine(path, open_header(path)) as engine:
        begin = time.monotonic()
        try:
            list(engine.generate([{"role": "user", "content": "hello"}]))
        except EngineCrashed as error:
            return error.exit_code, time.monotonic() - begin, 0, True
        return 0, time.monotonic() - begin, 0, True


def cycles(path: Path, n: int) -> None:
    """Load, generate, unload, again and again in one process: in RAM, and with all layers on a worker."""
    command = [*LLMRUN, "worker", "--json", "--port", "0", "-t", "1", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        ready = json.loads(worker.stdout.readline())
        server = psutil.Process(ready["pid"])
        everything = LoadConfig(rpc=(f"{ready['host']}:{ready['port']}",), offload=Offload(n_gpu_layers="all"))
        try:
            in_ram, on_worker = _cycle(path, LoadConfig(), n, None), _cycle(path, everything, n, server)
        finally:
            worker.terminate()
    print(f"\n{n} load/unload cycles in RAM: {in_ram}\n{n} on a worker: {on_worker}")


def _cycle(path: Path, config: LoadConfig, n: int, worker: psutil.Process | None) -> str:
    me = psutil.Process()
    watched = {"here": me, **({"the worker": worker} if worker else {})}
    header = open_header(path)

    def once() -> None:
        with ChildEngine(path, header, config) as engine:
            list(engine.generate("a", SamplingConfig(temperature=0, max_tokens=2)))

    once()
    before = {name: (process.num_fds(), process.memory_info().rss) for name, process in watched.items()}
    for _ in range(n):
        once()
    said = []
    for name, process in watched.items():
        fds, rss = before[name]
        grown = (process.memory_info().rss - rss) / 2**20
        said.append(f"{name} descriptors {process.num_fds() - fds:+d}, memory {grown:+.1f} MiB")
    return "; ".join(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--cycles", type=int, default=500)
    options = parser.parse_args()
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "busy.gguf"
        synth.write(path, synth.Shape(8, 2048, 5632, 16, 4, 512, n_ctx_train=8192), "Q8_0")
        decode = ["run", str(path), "b", "--no-tune", "--temp", "0", "-l", "2-inf"]
        prefill = ["run", str(path), "b c d e " * 900, "--no-tune"]
        good = True
        print("| what | times | result | slowest | processes left | tracebacks |\n|---|---|---|---|---|---|")
        for name, sent in (("kill −9 of the engine", signal.SIGKILL), ("SIGSEGV of the engine", signal.SIGSEGV)):
            runs = [ended(decode, 1.5 + chance.random(), kill_child(sent)) for _ in range(options.times)]
            good &= report(name, 9, runs)
        for name, arguments, earliest, spread in (
            ("Ctrl-C while starting and loading", decode, 0.05, 0.4),
            ("Ctrl-C in prefill", prefill, 1.2, 1.0),
            ("Ctrl-C in decode", decode, 1.2, 1.0),
        ):
            runs = [ended(arguments, earliest + spread * chance.random(), interrupt) for _ in range(options.times)]
            good &= report(name, 130, runs)
        slow = Path(folder) / "slow.gguf"
        synth.write(slow, synth.Shape(4, 1024, 4096, 16, 4, 512, n_ctx_train=512), "F16")
        for name, arguments, wanted, stop in (
            ("SIGTERM in decode", decode, 143, terminate),
            ("Ctrl-C at a worker", ["worker", "--port", "0"], 130, interrupt),
            ("SIGTERM at a worker", ["worker", "--port", "0"], 143, terminate),
            (
                "Ctrl-C while quantizing",
                ["quantize", str(slow), "Q4_K_M", "-t", "1", "-o", str(slow.with_suffix(".out"))],
                130,
                interrupt,
            ),
        ):
            good &= report(name, wanted, [ended(arguments, 1.5 + chance.random(), stop) for _ in range(options.times)])
        lost = [worker_lost(path, 2.5 + chance.random()) for _ in range(options.times)]
        good &= report("kill −9 of a worker in use", 9, lost, 10)
        good &= report("an answer left early", 0, [left_alone(path) for _ in range(options.times)])
        endless = Path(folder) / "endless.gguf"
        loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        synth.write(endless, synth.SHAPES["micro"], "F16", chat_template=loop)
        good &= report("a chat template without end", 9, [looped(endless) for _ in range(options.times)], 3)
        micro = Path(folder) / "micro.gguf"
        synth.write(micro, synth.SHAPES["micro"], "Q8_0")
        cycles(micro, options.cycles)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
