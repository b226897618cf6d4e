"""How long `llmrun list` takes with many models on the disk.

    python scripts/bench_list.py [--models 1000] [--rounds 5]

The store is made up: each model is a repository of its own in the hub cache, all blobs are the same small GGUF file.
Times are of the whole process, output included. "First" is without any memory of earlier calls: the headers are read
for at most 0.4 s, the rest next time; "later" is when all are known. Prints a markdown table; exit 1 above a second.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import tiny_gguf  # noqa: E402


def fill(cache: Path, n: int) -> None:
    """`n` repositories, as huggingface_hub leaves them."""
    content = cache / "content"
    cache.mkdir(parents=True)
    content.write_bytes(tiny_gguf(100_000))
    for i in range(n):
        repo, commit, blob = cache / f"models--user--model-{i}", f"{i:040x}", f"{i:064x}"
        (repo / "blobs").mkdir(parents=True)
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(commit)
        os.link(content, repo / "blobs" / blob)
        (repo / "snapshots" / commit / f"model-{i}-Q4_K_M.gguf").symlink_to(f"../../blobs/{blob}")


def timed(arguments: list[str], env: dict[str, str]) -> tuple[tuple[float, float], str]:
    """Seconds on the clock and of the CPU, and the output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "llmrun", *arguments]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return (wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), done.stdout


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-list-") as folder:
        home = Path(folder)
        env = {**os.environ, "HF_HUB_CACHE": str(home / "hub"), "LLMRUN_HOME": str(home / "llmrun")}
        env |= {"PYTHONPATH": str(ROOT), "LLMRUN_CONFIG_DIR": str(home / "config")}
        fill(home / "hub", chosen.models)
        seconds: dict[str, list[tuple[float, float]]] = {"--version": [], "list, first": [], "list, later": []}
        for _ in range(chosen.rounds):
            shutil.rmtree(home / "llmrun", ignore_errors=True)
            seconds["--version"].append(timed(["--version"], env)[0])
            first_s, out = timed(["list"], env)
            assert len(out.splitlines()) == chosen.models + 2, out[:500]
            seconds["list, first"].append(first_s)
            while "–  " in "\n".join(timed(["list"], env)[1].splitlines()[2:]):
                pass  # until all headers are known
            seconds["list, later"].append(timed(["list"], env)[0])
    print(f"{chosen.models:,} models, {chosen.rounds} rounds\n")
    print("| command | median s | worst s | CPU s |\n|---|---|---|---|")
    medians = {}
    for name, values in seconds.items():
        wall, cpu = zip(*values, strict=True)
        medians[name] = statistics.median(wall)
        print(f"| {name} | {medians[name]:.2f} | {max(wall):.2f} | {statistics.median(cpu):.2f} |")
    return 0 if max(medians.values()) < 1 else 1


if __name__ == "__main__":
    sys.exit(main())
