"""How fast a pull is: beside `curl -o FILE` and `sha256sum FILE`, and over several connections beside one.

    python scripts/bench_pull.py [--only curl|throttled|unthrottled] [--mb 500] [--rounds 5]

All fetch from a hub on loopback, in turns, each into a fresh folder on the same disk. The pull is a whole process: it
starts Python, asks the hub, downloads, hashes, syncs to the disk and links. curl does not sync, so that is extra work
for the pull. "throttled": the server gives each connection 20 MB/s. Prints medians as markdown tables; exit 1 below 0.8
of curl's rate, where four throttled connections are not 3 times as fast as one, or where the choice of their number
costs more than a twentieth of an unthrottled rate.
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
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import Hub, tiny_gguf  # noqa: E402

THROTTLE_BPS = 20_000_000
# VmHWM and not getrusage: that one begins with what the parent had when it forked.
DRIVER = """
import re, sys, time
from pathlib import Path
from llmrun.models.hub import download, info
from llmrun.models.reference import HubFile
n = None if sys.argv[1] == "auto" else int(sys.argv[1])
began = time.perf_counter()
download.pull(info.resolve(HubFile("bench/model", None, None, None, "bench/model")), n_connections=n)
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


class Bench:
    """A hub with one model, and what pulls take."""

    def __init__(self, hub: Hub, folder: Path, n_bytes: int) -> None:
        self.hub, self.folder = hub, folder
        source = folder / "model-Q4_K_M.gguf"
        source.write_bytes(tiny_gguf(n_bytes))
        self.size = source.stat().st_size
        repo = hub.add("bench/model", {source.name: source})
        self.url = f"{hub.url}/bench/model/resolve/{repo.commit}/{source.name}"
        self.home = folder / "home"
        self.env = {**os.environ, **hub.env(self.home), "PYTHONPATH": str(ROOT)}
        self.peaks: list[int] = []

    def pull(self, connections: str = "auto") -> tuple[float, float]:
        """Seconds of the process, and of `pull()` in it."""
        shutil.rmtree(self.home, ignore_errors=True)
        process_s, out = timed([sys.executable, "-c", DRIVER, connections], self.env)
        inside_s, peak = out.split()
        self.peaks.append(int(peak))
        return process_s, float(inside_s)

    def table(self, seconds: dict[str, list[float]], what: str, base: str) -> dict[str, float]:
        """Prints it; the rate of each against that of `base`."""
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = {name: medians[base] / median for name, median in medians.items()}
        print(f"\n{self.size / 1e6:,.0f} MB over loopback, {what}, {len(seconds[base])} rounds in turns\n")
        print(f"| what | median s | MB/s | rate against {base} |\n|---|---|---|---|")
        for name, median in medians.items():
            print(f"| {name} | {median:.2f} | {self.size / 1e6 / median:,.0f} | {ratios[name]:.2f} |", flush=True)
        return ratios


def beside_curl(bench: Bench, rounds: int) -> bool:
    seconds: dict[str, list[float]] = {"curl + sha256sum": [], "curl + hashlib": [], "pull (process)": [], "pull()": []}
    copy = bench.folder / "copy.gguf"
    for _ in range(rounds):
        curl_s, _out = timed(["curl", "-sSL", "--noproxy", "*", "-o", str(copy), bench.url], bench.env)
        sum_s, _out = timed(["sha256sum", str(copy)], bench.env)
        hashlib_s, _out = timed([sys.executable, "-c", REFERENCE_HASH, str(copy)], bench.env)
        seconds["curl + sha256sum"].append(curl_s + sum_s)
        seconds["curl + hashlib"].append(curl_s + hashlib_s)
        copy.unlink()
        process_s, inside_s = bench.pull()
        seconds["pull (process)"].append(process_s)
        seconds["pull()"].append(inside_s)
    return bench.table(seconds, "unthrottled", "curl + sha256sum")["pull (process)"] >= 0.8


def over_several(bench: Bench, rounds: int, numbers: Sequence[str], what: str) -> dict[str, float]:
    seconds: dict[str, list[float]] = {number: [] for number in numbers}
    for _ in range(rounds):
        for number in numbers:
            seconds[number].append(bench.pull(number)[1])
    return bench.table(seconds, f"{what}, pull() over so many connections", "1")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=("curl", "throttled", "unthrottled"))
    arguments.add_argument("--mb", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    good = True
    with tempfile.TemporaryDirectory(prefix="bench-pull-") as folder, Hub() as hub:
        bench = Bench(hub, Path(folder), chosen.mb * 1_000_000)
        if chosen.only in (None, "curl"):
            good &= beside_curl(bench, chosen.rounds)
        if chosen.only in (None, "throttled"):
            hub.faults.throttle_bps = THROTTLE_BPS
            each = f"{THROTTLE_BPS / 1e6:.0f} MB/s a connection"
            good &= over_several(bench, chosen.rounds, ("1", "2", "4", "8", "auto"), each)["4"] >= 3
            hub.faults.throttle_bps = 0
        if chosen.only in (None, "unthrottled"):
            good &= over_several(bench, chosen.rounds, ("1", "auto"), "unthrottled")["auto"] >= 0.95
        print(f"\nPeak memory of the pulling process: {max(bench.peaks) / 1024:.0f} MiB")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
