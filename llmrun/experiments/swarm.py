"""Experiment 13: a batch over the members of a cluster, and many cheap machines against one GPU."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llmrun import __version__
from llmrun.batch.member import Work, digests
from llmrun.batch.rows import Row
from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.chat.answer_options import AnswerOptions
from llmrun.errors import EngineCrashed, NetworkError
from llmrun.experiments.experiment import Cell, Finding, Result, Table, judged, range_text, shown
from llmrun.experiments.lab import Lab
from llmrun.experiments.latency import SMALL
from llmrun.experiments.spread import BARS
from llmrun.gguf import synth
from llmrun.machine import hardware
from llmrun.models.resolve import find_model
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.predict.elsewhere import Elsewhere
from llmrun.planning.predict.machines import parse
from llmrun.planning.predict.prediction import Question, Range
from llmrun.units import UNKNOWN, significant
from llmrun.wire.request import Request

LEVEL = "Q4_K_M"
LARGE = "llama-8b"
CHEAP, GPU = "DDR4-3200 x2 32gb", "RTX 4090"
_START_S = 60.0
_MANY = 10
"""PCs in place of a GPU: more of them are no way."""
# A scheduler or a member ends with the process that started it, however that ends.
_WITH_PARENT = """
import os, runpy, sys, threading, time
parent, module = int(sys.argv[1]), sys.argv[2]
def watch():
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.argv = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__")
"""


def swarm(lab: Lab) -> Result:
    claim = "Many cheap CPUs together do what a GPU does."
    counts = [n for n in (1, 2, 4) if n <= len(hardware.usable_cpus())]
    n_rows, n_gen = (24, 16) if lab.quick else (64, 32)
    if importlib.util.find_spec("distributed") is not None:
        lab.measure([Cell(f"{n} members", lambda n=n: _batch(lab, n, n_rows, n_gen)) for n in counts])  # type: ignore[misc]
        missing = ""
    else:
        missing = "Dask is not installed: the extra `cluster` brings it."
    rates = {n: lab.spread(f"{n} members", "tps") for n in counts}
    findings = []
    one, most = rates[counts[0]], rates[counts[-1]]
    if one and most and len(counts) > 1:
        text = (
            f"{counts[-1]} members of one thread each make {significant(most.median / one.median)} × the tokens"
            " of one, on one machine"
        )
        gain = most.median / one.median
        is_so = [gain > 1.1, gain > 0.8 * counts[-1]]
        why = "" if all(is_so) else "Members here share one memory, and the cores with the process that hands out rows."
        findings.append(Finding("A batch spreads over machines.", "rise", text, judged(is_so), why))
    else:
        why = missing or next(iter(lab.cells.errors.values()), "There is one core.")
        findings.append(Finding("A batch spreads over machines.", "rise", UNKNOWN, "not measured", why))
    cheap, gpu = (_predicted(name) for name in (CHEAP, GPU))
    rows = [(f"{n} here", shown(rates[n]), "measured") for n in counts]
    if cheap and gpu:
        n = gpu.mid / cheap.mid
        low, high = gpu.low / cheap.high, gpu.high / cheap.low
        text = (
            f"{significant(n)} ({significant(low)} to {significant(high)}) PCs with {CHEAP} make as many tokens as one"
            f" {GPU}, {LARGE}, one at a time each"
        )
        why = "In throughput: an answer takes as long as on one PC. A GPU that answers many at a time is further ahead."
        findings.append(Finding(claim, "rise", text, judged([True, n <= _MANY]), why, predicted=True))
        rows += [
            (f"one PC, {CHEAP}, {LARGE}", range_text(cheap), "predicted"),
            (f"one {GPU}, {LARGE}", range_text(gpu), "predicted"),
        ]
    measured = tuple(each.point(n) for n, each in rates.items() if each)
    series = [Series("measured", measured)]
    if one:
        series.append(Series("in proportion", tuple(Point(n, n * one.median) for n in counts), "roof"))
    figures = {}
    if measured:
        panel = Panel("sweep", "a batch over members", Axis("members"), Axis("tokens per second"), tuple(series))
        figures[""] = Figure("0.1 B shape, members of one thread each", (panel,), (BARS,))
    return Result(
        tuple(findings),
        (
            f"Members of a Dask cluster on loopback, a process and a thread each; a batch of {n_rows} rows,"
            f" {n_gen} tokens of answer, a"
            " shape of 0.1 B; models are loaded before the clock starts.",
            "Elsewhere: `plan`, from data sheets, as many machines as their t/s add up to.",
        ),
        (Table("Tokens per second", ("", ">t/s", ""), tuple(rows)),),
        figures,
        (
            "More members than cores would measure the scheduler of this machine.",
            "A network is not in it: rows and answers are small.",
        ),
    )


def _predicted(name: str) -> Range | None:
    header = synth.header_of(synth.SHAPES[LARGE], LEVEL)
    return Elsewhere(parse(name)).predict(header, Question(512, 128, (512,))).decode_tps[512]


class _Kept(list[dict[str, Any]]):
    def add(self, result: dict[str, Any]) -> None:
        self.append(result)


def _batch(lab: Lab, n: int, n_rows: int, n_gen: int) -> Mapping[str, float | None]:
    from llmrun.batch.cluster import Cluster

    path = lab.model(SMALL, LEVEL, "small-0.1b")
    lab.unload()
    model = find_model(str(path))
    sampling = SamplingConfig(temperature=0, max_tokens=n_gen, ignore_eos=True)
    load = lab.config(n_threads=1, n_threads_batch=1, repack="off")
    room = 64 + n_gen
    given = frozenset({"n_threads", "n_threads_batch", "repack", "thread_guard", "draft"})
    work = Work(__version__, str(path), digests(model), load, given, room, 64, n_rows, 4, False)

    def rows(name: str, count: int) -> list[Row]:
        return [
            Row(i, f"{name}-{i}", str(i), Request("b c d " * 8 + str(i), sampling, AnswerOptions(), False))
            for i in range(count)
        ]

    with cluster(n, lab.folder) as address:
        job = Cluster(address, work)
        try:
            job.run(rows("first", 4 * n), _Kept())  # the models are loaded
            kept, begin_s = _Kept(), time.monotonic()
            job.run(rows("timed", n_rows), kept)
            seconds = time.monotonic() - begin_s
        finally:
            job.close()
    if failed := [each["error"] for each in kept if each["error"] is not None]:
        raise EngineCrashed(f"{len(failed)} of {n_rows} rows failed: {failed[0]}")
    return {"tps": n_rows * n_gen / seconds}


@contextmanager
def cluster(n: int, folder: Path) -> Iterator[str]:
    """A scheduler and so many members on loopback, each a process; ended with the block. Raises `NetworkError`."""
    from llmrun.batch.cluster import await_members

    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(TemporaryDirectory(prefix="members-", dir=folder, ignore_cleanup_errors=True))
        )
        port = _free_port()
        common = [*_named(host="127.0.0.1"), "--no-dashboard"]
        stack.enter_context(_process("dask_scheduler", [*common, *_named(port=port), "--no-show"], folder))
        address = f"tcp://127.0.0.1:{port}"
        end_s = time.monotonic() + _START_S
        while not _answers(port):
            if time.monotonic() > end_s:
                raise NetworkError("the scheduler of the cluster does not answer")
            time.sleep(0.1)
        for _ in range(n):
            options = [address, *common, "--no-nanny", *_named(nthreads=1, local_directory=scratch)]
            stack.enter_context(_process("dask_worker", options, folder))
        await_members(address, n, _START_S)
        yield address


def _named(**options: object) -> list[str]:
    """As Dask's commands take them."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


@contextmanager
def _process(module: str, options: list[str], folder: Path) -> Iterator[None]:
    command = [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), f"distributed.cli.{module}", *options]
    made = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
    )
    try:
        yield
    finally:
        made.terminate()
        try:
            made.wait(10)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0
