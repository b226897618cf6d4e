"""Quantizes with `llmrun quantize` and with llama-quantize, and compares every byte of every tensor.

    .venv/bin/python scripts/compare_quantize.py [LEVEL...] [--source FILE] [--peers FOLDER]

Without --source the source is synthetic: BF16, 8 layers, 156 million parameters. Prints a markdown table with the
seconds of both whole processes; exit 1 where a tensor differs in type, shape or bytes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from llmrun.gguf import synth  # noqa: E402
from llmrun.gguf.reader import open_header  # noqa: E402
from llmrun.machine.hardware import default_threads  # noqa: E402

PEERS = Path.home() / ".cache" / "llmrun-peers" / "0.3.36" / "build" / "bin"
SHAPE = synth.Shape(8, 1024, 2816, 16, 4, 32000, n_ctx_train=2048)
LEVELS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K", "F16")


def differing(ours: Path, theirs: Path) -> int:
    """How many tensors are not the same in name, shape, type and bytes."""
    heads = [open_header(path) for path in (ours, theirs)]
    if [(t.name, t.shape, t.type.name) for t in heads[0].tensors] != [
        (t.name, t.shape, t.type.name) for t in heads[1].tensors
    ]:
        return len(heads[0].tensors)
    n = 0
    with ours.open("rb") as a, theirs.open("rb") as b:
        for one, other in zip(heads[0].tensors, heads[1].tensors, strict=True):
            a.seek(heads[0].data_offset + one.offset)
            b.seek(heads[1].data_offset + other.offset)
            n += a.read(one.n_bytes) != b.read(other.n_bytes)
    return n


def timed(command: list[str | Path]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="*", default=LEVELS)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--peers", type=Path, default=PEERS)
    options = parser.parse_args()
    if not os.access(options.peers / "llama-quantize", os.X_OK):
        sys.exit(f"no llama-quantize in {options.peers}: name its folder with --peers")
    threads, bad = str(default_threads()), 0
    with tempfile.TemporaryDirectory(prefix="compare-quantize-") as folder:
        source = options.source or Path(folder) / "source.gguf"
        if options.source is None:
            synth.write(source, SHAPE, "BF16")
        print("| level | tensors | differing | size MiB | llmrun s | llama-quantize s |\n|---|---|---|---|---|---|")
        for level in options.levels:
            ours, theirs = Path(folder) / "ours.gguf", Path(folder) / "theirs.gguf"
            ours_s = timed(
                [sys.executable, "-m", "llmrun", "quantize", source, level, "-o", ours, "-t", threads, "--quiet"]
            )
            theirs_s = timed([options.peers / "llama-quantize", "--allow-requantize", source, theirs, level, threads])
            n = differing(ours, theirs)
            bad += n
            size, n_tensors = ours.stat().st_size / (1 << 20), len(open_header(ours).tensors)
            print(f"| {level} | {n_tensors} | {n} | {size:.1f} | {ours_s:.1f} | {theirs_s:.1f} |", flush=True)
            ours.unlink()
            theirs.unlink()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
