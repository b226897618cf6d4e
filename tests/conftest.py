from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from waiting import HANGS_S

from llmrun.engine.engine import ChildEngine
from llmrun.engine.limits import Limits
from llmrun.gguf import synth
from llmrun.models.resolve import find_model
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig

if TYPE_CHECKING:
    from serving import Server

# Two threads meet at hundreds of barriers per token, while a third process has the core: tests share their machine.
# However many threads are asked for, one computes, where a test does not say otherwise.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")

# Signals that are ignored stay so in every command that is started from here, and a shell ignores them for a job in the
# background, `nohup` for all: what is tested of Ctrl-C would wait for ever.
for each in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "llmrun" / "data" / "tiny.gguf"

EXACT = LoadConfig(n_threads=1, type_k="f32", type_v="f32", flash_attn="off", repack="off")
"""For models in F32: nothing is rounded but sums. Two ways of computing then differ by less than 1e-6 (with GELU, which
llama.cpp looks up in a table, by 3e-4) where the best two logits are 1e-4 apart and more (4e-3). In Q8_0 they differ by
0.05, and the best two are as near as 0.001: there the likeliest token is a matter of the CPU."""

PATIENT = Limits(cancel_s=HANGS_S)
"""For tests that go on with an engine after leaving an answer: on a busy machine half a second may pass in silence."""

RunLlmrun = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for children, for a sixth of their time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def llmrun() -> RunLlmrun:
    """Run the real command: `llmrun("run", "tiny", "hello", input=...)`. No terminal, and no input unless given."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
        environment = {**os.environ, **options.pop("env", {})}  # type: ignore[dict-item]
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "llmrun", *arguments],
            **{"capture_output": True, "text": True, "timeout": HANGS_S, "env": environment, **options},
        )

    return run


def written_once(folders: pytest.TempPathFactory, name: str, shape: synth.Shape, level: str) -> Path:
    """A synthetic model, written by the first of the processes that tests run in and read by all of them."""
    mine = folders.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "synthetic"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.gguf"
    with FileLock(folder / f"{name}.lock"):
        if not path.exists():
            synth.write(path, shape, level)
    return path


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model of two layers: real llama.cpp, noise for answers, never ends by itself for long."""
    return written_once(tmp_path_factory, "micro", synth.SHAPES["micro"], "Q8_0")


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in F32, for any length: with `EXACT`, an answer that does not depend on how it is computed."""
    return written_once(tmp_path_factory, "exact", replace(synth.SHAPES["micro"], n_ctx_train=1 << 17), "F32")


TOO_LONG = 1 << 21
"""A context of `wide` that fits nowhere: 256 GiB. llama.cpp lays its cells out in a third of a second."""


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model whose keys and values take 128 KiB a token."""
    shape = synth.Shape(4, 256, 256, 32, 32, 512, head_dim=256, n_ctx_train=1 << 22)
    return written_once(tmp_path_factory, "wide", shape, "Q8_0")


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model that can be interrupted: `ENDLESS_PROMPT` and `ENDLESS` take minutes of it."""
    shape = synth.Shape(4, 512, 1408, 8, 1, 512, n_ctx_train=1 << 17)
    return written_once(tmp_path_factory, "busy", shape, "Q8_0")


ENDLESS = SamplingConfig(temperature=0, max_tokens=100_000, ignore_eos=True)
ENDLESS_OPTIONS = ("--temp", "0", "-n", "100000", "--ignore-eos", "--no-tune")
ENDLESS_PROMPT = "b c d e " * 8000


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`llmrun serve tiny`, for tests that don't change what it does; gone before those that look at their children."""
    from serving import serving

    with serving("tiny", "--temp", "0", home=tmp_path_factory.mktemp("home")) as server:
        yield server.ready()


@pytest.fixture
def engine() -> Iterator[ChildEngine]:
    model = find_model("tiny")
    with ChildEngine(model.path, model.header, limits=PATIENT) as opened:
        yield opened


@pytest.fixture
def rpc_worker() -> Iterator[Callable[..., str]]:
    """Start a real `llmrun worker`: `rpc_worker(memory=0.25)` is its "host:port". Gone when the test ends."""
    workers: list[subprocess.Popen[str]] = []

    def start(*arguments: str, memory: float | None = None) -> str:
        limit = [] if memory is None else ["--memory", str(memory)]
        worker = subprocess.Popen(
            [sys.executable, "-m", "llmrun", "worker", "--json", "--port", "0", "-t", "1", *limit, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        workers.append(worker)
        assert worker.stdout
        line = worker.stdout.readline()
        assert line, f"the worker ended with {worker.wait(HANGS_S)}"
        ready = json.loads(line)
        return f"{ready['host']}:{ready['port']}"

    yield start
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(HANGS_S)
        if worker.stdout:
            worker.stdout.close()
