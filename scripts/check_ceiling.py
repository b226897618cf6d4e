"""Whether the read ceiling is what the memory gives; prints Markdown.

A program in C of ours sums a buffer of the same size with the same number of threads, compiled here with
`gcc -O3 -march=native -fopenmp`. It and ggml's product (`engine/ceiling.py`) take turns, in processes of their own that
keep their memory, and the ratio of each pair counts: what else happens on the machine happens to both.

    .venv/bin/python scripts/check_ceiling.py [ROUNDS] [SECONDS] [THREADS ...]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llmrun.engine.jobs.roofline import Prober
from llmrun.machine import hardware

MIB = 1 << 20
SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <omp.h>

/* argv: bytes, threads. For each line with a number of seconds: bytes per second of every pass, in one line. */
int main(int argc, char ** argv) {
    const size_t n = strtoull(argv[1], NULL, 10) / sizeof(uint64_t);
    omp_set_num_threads(atoi(argv[2]));
    uint64_t * data = NULL;
    if (posix_memalign((void **) &data, 64, n * sizeof(uint64_t)) != 0) return 1;
    memset(data, 0x3C, n * sizeof(uint64_t));
    volatile uint64_t seen = 0;
    double seconds;
    while (scanf("%lf", &seconds) == 1) {
        double begin = 0;
        for (int pass = 0; pass < 2 || omp_get_wtime() - begin < seconds; pass++) {
            if (pass == 1) begin = omp_get_wtime();  /* the first is not counted */
            const double at = omp_get_wtime();
            uint64_t sum = 0;
            /* By the MiB, as they come: a thread that others disturb holds nobody up. */
            #pragma omp parallel for schedule(dynamic) reduction(+ : sum)
            for (size_t block = 0; block < n; block += 1 << 17) {
                const size_t end = block + (1 << 17) < n ? block + (1 << 17) : n;
                for (size_t i = block; i < end; i++) sum += data[i];
            }
            seen += sum;
            if (pass) printf("%.0f ", n * sizeof(uint64_t) / (omp_get_wtime() - at));
        }
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
"""


class Reader:
    """The program in C, compiled and running."""

    def __init__(self, folder: Path, n_bytes: int, n_threads: int) -> None:
        program = folder / "read"
        if not program.exists():
            (folder / "read.c").write_text(SOURCE)
            flags = ["-O3", "-march=native", "-fopenmp"]
            subprocess.run(["gcc", *flags, "-o", str(program), str(folder / "read.c")], check=True)
        self._process = subprocess.Popen(
            [program, str(n_bytes), str(n_threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, seconds: float) -> list[float]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return [float(word) for word in self._process.stdout.readline().split()]

    def close(self) -> None:
        self._process.communicate(timeout=60)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    threads = [int(word) for word in sys.argv[3:]] or sorted({1, hardware.default_threads()})
    os.environ.pop("OMP_WAIT_POLICY", None)  # threads that sleep at barriers are far too slow for short products
    cache = hardware.last_level_cache_bytes()
    with tempfile.TemporaryDirectory() as folder, Prober() as prober:
        chosen = prober.read_size("CPU")
        if chosen is None:
            sys.exit("too little memory is free")
        print(f"Last-level cache {cache // MIB} MiB, matrix {chosen // MIB} MiB, {rounds} pairs of {seconds:g} s.\n")
        print("| threads | C program | ggml's product | ratio: median | lowest | highest |\n|---|---|---|---|---|---|")
        for n_threads in threads:
            reader = Reader(Path(folder), chosen, n_threads)
            pairs = []
            for i in range(rounds):
                taken = {}
                for who in ("C", "ggml") if i % 2 else ("ggml", "C"):
                    taken[who] = statistics.median(
                        reader.measure(seconds)
                        if who == "C"
                        else prober.probe("CPU", "", n_threads, seconds).read_bytes_per_s
                    )
                pairs.append((taken["C"], taken["ggml"]))
            reader.close()
            ratios = [ggml / c for c, ggml in pairs]
            c, ggml = (statistics.median(column) / 1e9 for column in zip(*pairs, strict=True))
            print(
                f"| {n_threads} | {c:.1f} GB/s | {ggml:.1f} GB/s | {statistics.median(ratios):.3f} "
                f"| {min(ratios):.3f} | {max(ratios):.3f} |",
                flush=True,
            )
        print("\nWhat a smaller matrix would have told, both in turn:\n")
        print("| matrix | C program | ggml's product |\n|---|---|---|")
        for size in (4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, 512 * MIB, 1024 * MIB, 2048 * MIB):
            reader = Reader(Path(folder), size, threads[-1])
            found = [
                (
                    statistics.median(reader.measure(seconds / 3)),
                    statistics.median(prober.probe("CPU", "", threads[-1], seconds / 3, n_bytes=size).read_bytes_per_s),
                )
                for _ in range(3)
            ]
            reader.close()
            c, ggml = (statistics.median(column) / 1e9 for column in zip(*found, strict=True))
            print(f"| {size // MIB} MiB | {c:.1f} GB/s | {ggml:.1f} GB/s |", flush=True)


if __name__ == "__main__":
    main()
