"""llmrun from Python: its names stay, its types are seen, and what it does is what the commands do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Hub, tiny_gguf

import llmrun
from llmrun.bench import journal

NAMES = {
    *("BenchTest", "Engine", "Generation", "LlmrunError", "LoadConfig", "MeasurementOptions", "PullEvent"),
    *("Record", "SamplingConfig", "Timing", "__version__", "benchmark", "open_model", "pull", "tune"),
}
USE = """
import llmrun
from pathlib import Path

with llmrun.open_model("tiny", llmrun.LoadConfig(n_ctx=64)) as model:
    answer = model.generate("Hi", llmrun.SamplingConfig(max_tokens=4))
    reveal_type(model)
    reveal_type(answer.timing.tg_tps)
def shown(event: llmrun.PullEvent) -> None: ...
reveal_type(llmrun.pull("tiny", quant=None, on_event=shown))
record = llmrun.benchmark("tiny", [llmrun.BenchTest("tg", n_gen=4)], options=llmrun.MeasurementOptions(1))
reveal_type(record.rows[0].median_tps)
"""


def test_names() -> None:
    """These names and no others; each is there."""
    assert set(llmrun.__all__) == NAMES
    assert all(getattr(llmrun, name) for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        llmrun.nothing  # noqa: B018


def test_types(tmp_path: Path) -> None:
    """A user's type-checker sees what they are."""
    (tmp_path / "use.py").write_text(USE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--cache-dir",
            tmp_path / "cache",
            "use.py",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(llmrun.__file__).parents[1]), "MYPYPATH": str(Path(llmrun.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [line.split('"')[1] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert done.returncode == 0, done.stdout
    assert found == ["llmrun.engine.interface.Engine", "float | None", "pathlib.Path", "float | None"]


def test_pull() -> None:
    """What is a part of llmrun is not fetched; its file is returned."""
    assert llmrun.pull("tiny").name == "tiny.gguf"


def test_pull_from_a_hub(tmp_path: Path) -> None:
    """Fetched with events, then only looked for; a name that says something else is refused."""
    code = """
import llmrun
def seen(event): print(type(event).__name__)
path = llmrun.pull("user/repo", quant="q8_0", on_event=seen)
print(path.name, path == llmrun.pull("user/repo:Q8_0", offline=True))
try: llmrun.pull("user/repo:Q8_0", quant="Q4_0")
except llmrun.LlmrunError as error: print(error.field, error.value, error.message)
"""
    with Hub() as hub:
        hub.add("user/repo", {f"m-{quant}.gguf": tiny_gguf(90_000, seed=i) for i, quant in enumerate(("Q8_0", "Q4_0"))})
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **hub.env(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    events = done.stdout.splitlines()
    assert (events[0], events[-3]) == ("PullStarted", "PullFinished")
    assert events[-2:] == ["m-Q8_0.gguf True", "quant Q4_0 Q4_0, but 'user/repo:Q8_0' says Q8_0"]


def test_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with every configuration; the record is in the history."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    record = llmrun.benchmark(
        "tiny",
        [llmrun.BenchTest("pp", 8), llmrun.BenchTest("tg", n_gen=2)],
        [llmrun.LoadConfig(n_threads=1), llmrun.LoadConfig(n_threads=1, n_ubatch=64)],
        llmrun.MeasurementOptions(repetitions=1, ceilings=False),
    )
    assert [row.test.name for row in record.rows] == ["pp8", "tg2", "pp8", "tg2"]
    assert all(row.median_tps for row in record.rows)
    assert [each.record for each in journal.stored()] == [record]
