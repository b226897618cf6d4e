"""Rows over the members of a Dask cluster: a real scheduler and real workers, processes of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import RunLlmrun
from waiting import HANGS_S, until

from llmrun.batch.cluster import Cluster
from llmrun.batch.member import Work
from llmrun.errors import NetworkError, UsageError
from llmrun.options.load import LoadConfig

STORY = ("--raw", "-n", "24", "--temp", "0", "--ignore-eos", "-t", "1")


@pytest.fixture
def scheduler() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show")
    with process("distributed.cli.dask_scheduler", *options):
        until(lambda: answers(port))
        yield f"tcp://127.0.0.1:{port}"


def answers(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(module: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(
        [sys.executable, "-m", module, *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        yield made
    finally:
        made.kill()
        made.wait()


@contextmanager
def member(address: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = (
        "--host",
        "127.0.0.1",
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--local-directory",
        str(folder),
    )
    with process("distributed.cli.dask_worker", address, *options) as made:
        yield made


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_same_answers(llmrun: RunLlmrun, tmp_path: Path, scheduler: str) -> None:
    """As on one machine, each once, with errors where they belong; both members have done some."""
    source, alone, spread = (tmp_path / name for name in ("in.jsonl", "alone.jsonl", "spread.jsonl"))
    bodies = [{"prompt": f"Once upon a time there were {n} frogs"} for n in range(40)]
    lines = [json.dumps({"custom_id": str(i), "url": "/v1/completions", "body": body}) for i, body in enumerate(bodies)]
    source.write_text("\n".join([*lines, "no JSON"]))
    options = [option for option in STORY if option != "--raw"]
    assert llmrun("batch", "tiny", str(source), "-o", str(alone), "-np", "1", *options).returncode == 14
    with member(scheduler, tmp_path / "a"), member(scheduler, tmp_path / "b"):
        done = llmrun(
            "batch", "tiny", str(source), "-o", str(spread), "-np", "1", "--cluster", scheduler, "--json", *options
        )
    assert done.returncode == 14, done.stderr
    told = json.loads(done.stdout)
    assert told["answered"] == 40 and told["errors"] == 1 and len(told["members"]) == 2

    def said(path: Path) -> dict[object, object]:
        return {each["id"]: each["error"] or each["response"]["body"]["choices"] for each in rows_of(path)}  # type: ignore[index]

    assert said(spread) == said(alone) and len(rows_of(spread)) == 41


def test_a_member_that_dies(llmrun: RunLlmrun, tmp_path: Path, scheduler: str, busy: Path) -> None:
    """Of three, in the middle: its rows are answered by the others, none twice."""
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("\n".join(f"a b c {n}" for n in range(60)))
    command = [
        sys.executable,
        "-m",
        "llmrun",
        "batch",
        str(busy),
        str(source),
        "-o",
        str(out),
        "-np",
        "1",
        "--cluster",
        scheduler,
    ]
    with (
        member(scheduler, tmp_path / "a") as first,
        member(scheduler, tmp_path / "b"),
        member(scheduler, tmp_path / "c"),
    ):
        job = subprocess.Popen([*command, *STORY], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        until(lambda: len(rows_of(out)) >= 8)
        os.kill(first.pid, signal.SIGKILL)
        _, told = job.communicate(timeout=HANGS_S)
    assert job.returncode == 0, told
    ids = [each["id"] for each in rows_of(out)]
    assert len(ids) == 60 == len(set(ids))


WORK = Work("0", "tiny", (), LoadConfig(), frozenset(), 64, 8, 1, 1, tune=False)


@pytest.mark.parametrize(
    "address", ["", "x", "http://127.0.0.1:9", "tcp://", "tcp://a:0", "tcp://a:70000", "tcp://a b:1"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="tcp://HOST:PORT"):
        Cluster(address, WORK)


def test_somebody_else_there() -> None:
    """Who answers nothing is no scheduler, and is not waited for without end."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(NetworkError, match="it says nothing"):
            Cluster(f"127.0.0.1:{other.getsockname()[1]}", WORK, connect_s=0.2)


def test_nobody_there(llmrun: RunLlmrun, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    done = llmrun("batch", "tiny", str(tmp_path / "in.txt"), "--cluster", "tcp://127.0.0.1:9")
    assert done.returncode == 5 and "no Dask scheduler answers" in done.stderr and "Traceback" not in done.stderr
