"""How long `llmrun --help` and `--version` take, and what scripts/llmrun adds; prints Markdown.

The medians of interleaved starts, beside a bare `python -c pass`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("llmrun")
CASES: dict[str, list[Path | str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "llmrun --version": [COMMAND, "--version"],
    "llmrun --help": [COMMAND, "--help"],
    "llmrun run --help": [COMMAND, "run", "--help"],
    "scripts/llmrun --version": [ROOT / "scripts" / "llmrun", "--version"],
}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, command in CASES.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append((time.perf_counter() - begin) * 1e3)
    print("| command | median | fastest |\n|---|---|---|")
    for name, times in taken.items():
        print(f"| `{name}` | {statistics.median(times):.0f} ms | {min(times):.0f} ms |")


if __name__ == "__main__":
    main()
