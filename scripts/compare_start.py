"""How long llmrun takes to start, in bare starts of Python; prints Markdown.

The medians of interleaved runs, beside `python -c pass`, and the median of the ratios of the pairs. Ten models of one
short file each are what `list` shows. Byte code is compiled first, whatever the shell says.

    scripts/compare_start.py [ROUNDS]
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
BARE = "python -c pass"
LLMRUN = [os.fspath(Path(PYTHON).with_name("llmrun"))]
CASES: dict[str, list[str]] = {
    BARE: [PYTHON, "-c", "pass"],
    "llmrun --version": [*LLMRUN, "--version"],
    "llmrun --help": [*LLMRUN, "--help"],
    "llmrun run --help": [*LLMRUN, "run", "--help"],
    "llmrun list (10 models)": [*LLMRUN, "list"],
    "llmrun run tiny Hi -n 8 -q": [*LLMRUN, "run", "tiny", "Hi", "-n", "8", "-q"],
    "scripts/llmrun --version": [os.fspath(ROOT / "scripts" / "llmrun"), "--version"],
}
AT_MOST = {
    "llmrun --version": 2.5,
    "llmrun --help": 6,
    "llmrun run --help": 10,
    "llmrun list (10 models)": 10,
    "llmrun run tiny Hi -n 8 -q": 18,
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            "LLMRUN_HOME": f"{home}/home",
            "LLMRUN_CONFIG_DIR": f"{home}/config",
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.fspath(ROOT),
        }
        _import_models(Path(home), environment)
        taken: dict[str, list[float]] = {name: [] for name in CASES}
        for i in range(rounds + 2):  # the first two compile, and bring the files into memory
            for name, command in CASES.items():
                begin = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment, stdin=subprocess.DEVNULL)
                if i > 1:
                    taken[name].append((time.perf_counter() - begin) * 1e3)
    print("| command | median | fastest | bare starts | at most |\n|---|---|---|---|---|")
    for name, times in taken.items():
        ratio = statistics.median(mine / bare for mine, bare in zip(times, taken[BARE], strict=True))
        most = AT_MOST.get(name, "")
        print(f"| `{name}` | {statistics.median(times):.0f} ms | {min(times):.0f} ms | {ratio:.1f} | {most} |")


def _import_models(home: Path, environment: dict[str, str]) -> None:
    """Ten models in the store of that folder."""
    file = home / "tiny.gguf"
    shutil.copy(ROOT / "llmrun" / "data" / "tiny.gguf", file)
    for i in range(10):
        command = [*LLMRUN, "import", os.fspath(file), "--name", f"model-{i}", "-q"]
        subprocess.run(command, check=True, capture_output=True, env=environment)


if __name__ == "__main__":
    main()
