from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmrun.engine.engine import Engine
from llmrun.gguf import synth
from llmrun.models.resolve import find_model

# Two threads that spin at a barrier while a third process has the core wait for a whole time slice, for every one of
# hundreds of barriers per token. Tests share their machine: they sleep at barriers instead.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "llmrun" / "data" / "tiny.gguf"

RunLlmrun = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def llmrun() -> RunLlmrun:
    """Run the real command: `llmrun("run", "tiny", "hello", input=...)`. No terminal, and no input unless given."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
        environment = {**os.environ, **options.pop("env", {})}  # type: ignore[dict-item]
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [sys.executable, "-m", "llmrun", *arguments],
            **{"capture_output": True, "text": True, "timeout": 120, "env": environment, **options},
        )

    return run


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model of two layers: real llama.cpp, noise for answers, never ends by itself for long."""
    path = tmp_path_factory.mktemp("models") / "micro.gguf"
    synth.write(path, synth.SHAPES["micro"], "Q8_0")
    return path


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model that is slow enough to be interrupted: 100 ms a token and more."""
    shape = synth.Shape(8, 2048, 5632, 16, 4, 512, n_ctx_train=8192)
    path = tmp_path_factory.mktemp("models") / "busy.gguf"
    synth.write(path, shape, "Q8_0")
    return path


@pytest.fixture
def engine() -> Iterator[Engine]:
    model = find_model("tiny")
    with Engine(model.path, model.header) as opened:
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
        assert line, f"the worker ended with {worker.wait(10)}"
        ready = json.loads(line)
        return f"{ready['host']}:{ready['port']}"

    yield start
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.wait(10)
        if worker.stdout:
            worker.stdout.close()
