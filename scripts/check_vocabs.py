"""Reads every header in a folder of GGUF files with the strict reader and its rules; prints Markdown.

    .venv/bin/python scripts/check_vocabs.py FOLDER

Made for the vocabularies that llama.cpp's source carries (vendor/llama.cpp/models in llama-cpp-python's sdist): real
tokenizers of many families, the largest with more than 256,000 tokens. Each is read in a process of its own, so that
its memory is its own; exit status 1 when one is refused.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path


def read_one(path: Path) -> None:
    from llmrun.gguf.reader import open_header
    from llmrun.gguf.rules import check_runnable

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    header = open_header(path)
    read_s = time.perf_counter() - begin
    check_runnable(header, with_tensors=bool(header.tensors))
    rules_s = time.perf_counter() - begin - read_s
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {path.name} | {header.n_vocab:,} | {read_s:.3f} s | {rules_s:.3f} s | {grown:.0f} MiB |")


def main() -> None:
    if sys.argv[1] == "--one":
        read_one(Path(sys.argv[2]))
        return
    print("| file | tokens | read | rules | memory |\n|---|---|---|---|---|", flush=True)
    refused = 0
    for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
        done = subprocess.run([sys.executable, __file__, "--one", path], capture_output=True, text=True)
        refused += done.returncode != 0
        print(done.stdout.strip() or f"| {path.name} | refused: {done.stderr.strip().splitlines()[-1]} | | | |")
    sys.exit(refused > 0)


if __name__ == "__main__":
    main()
