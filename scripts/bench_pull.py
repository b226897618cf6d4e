"""How fast a pull is, against `curl -o FILE` followed by `sha256sum FILE`: the same bytes, checked as well.

    python scripts/bench_pull.py [--mb 500] [--rounds 5]

Both fetch from a hub on loopback, in turns, each into a fresh folder on the same disk. The pull is a whole process: it
starts Python, asks the hub, downloads, hashes, syncs to the disk and links. curl does not sync, so that is extra work
for the pull. Prints medians as a markdown table; exit 1 below 0.8 of curl's rate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import Hub, tiny_gguf  # noqa: E402

# VmHWM and not getrusage: that one begins with what the parent had when it forked.
DRIVER = """
import re, time
from pathlib import Path
from llmrun.models.hub import download, info
from llmrun.models.reference import HubFile
began = time.perf_counter()
download.pull(info.resolve(HubFile("bench/model", None, None, None, "bench/model")))
status = Path("/proc/self/status")
peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0
print(time.perf_counter() - began, peak)
"""
REFERENCE_HASH = """
import hashlib, sys
sha = hashlib.sha256()
with open(sys.argv[1], "rb", buffering=0) as file:
    while chunk := file.read(1 << 20):
        sha.update(chunk)
print(sha.hexdigest())
"""


def timed(command: list[str], env: dict[str, str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, done.stdout


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--mb", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    seconds: dict[str, list[float]] = {"curl + sha256sum": [], "curl + hashlib": [], "pull (process)": [], "pull()": []}
    peaks: list[int] = []
    with tempfile.TemporaryDirectory(prefix="bench-pull-") as folder, Hub() as hub:
        source = Path(folder) / "model-Q4_K_M.gguf"
        source.write_bytes(tiny_gguf(chosen.mb * 1_000_000))
        size = source.stat().st_size
        repo = hub.add("bench/model", {source.name: source})
        url = f"{hub.url}/bench/model/resolve/{repo.commit}/{source.name}"
        home, copy = Path(folder) / "home", Path(folder) / "copy.gguf"
        env = {**os.environ, **hub.env(home), "PYTHONPATH": str(ROOT)}
        for _ in range(chosen.rounds):
            copy.unlink(missing_ok=True)
            curl_s, _out = timed(["curl", "-sSL", "--noproxy", "*", "-o", str(copy), url], env)
            sum_s, _out = timed(["sha256sum", str(copy)], env)
            hashlib_s, _out = timed([sys.executable, "-c", REFERENCE_HASH, str(copy)], env)
            seconds["curl + sha256sum"].append(curl_s + sum_s)
            seconds["curl + hashlib"].append(curl_s + hashlib_s)
            copy.unlink()
            shutil.rmtree(home, ignore_errors=True)
            process_s, out = timed([sys.executable, "-c", DRIVER], env)
            inside_s, peak = out.split()
            seconds["pull (process)"].append(process_s)
            seconds["pull()"].append(float(inside_s))
            peaks.append(int(peak))
    base = statistics.median(seconds["curl + sha256sum"])
    print(f"{size / 1e6:,.0f} MB over loopback, {chosen.rounds} rounds in turns\n")
    print("| what | median s | MB/s | rate against curl + sha256sum |\n|---|---|---|---|")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} | {size / 1e6 / median:,.0f} | {base / median:.2f} |")
    print(f"\nPeak memory of the pulling process: {max(peaks) / 1024:.0f} MiB")
    return 0 if base / statistics.median(seconds["pull (process)"]) >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main())
