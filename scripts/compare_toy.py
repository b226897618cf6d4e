"""Sets the toy of experiments 1 to 4 beside the same in PyTorch, in turn; prints Markdown.

    scripts/compare_toy.py --python PYTHON_WITH_TORCH [--rounds 5] [--seconds 0.3]

x + W·x in F32, no bias, one input, by width and by depth, on as many threads on both sides; of ours and of theirs the
median of a round's passes, and then of the rounds. PyTorch runs in a process of its own, which needs nothing but torch;
`torch.inference_mode`, `nn.Linear` without a bias, as the article has it. Threads of ours sleep at barriers as with a
model of real size, theirs as PyTorch has them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.jobs.roofline import Prober  # noqa: E402
from llmrun.engine.protocol import TimeLayers  # noqa: E402
from llmrun.experiments.toy import DEPTHS, N_LAYERS, WIDTH, WIDTHS  # noqa: E402
from llmrun.machine import hardware  # noqa: E402

THEIRS = """
import json, statistics, sys, time
import torch
held = {}
for line in sys.stdin:
    width, n_layers, n_threads, seconds = json.loads(line)
    torch.set_num_threads(n_threads)
    if held.get("of") != (width, n_layers):
        held.clear()
        layers = [torch.nn.Linear(width, width, bias=False) for _ in range(n_layers)]
        for layer in layers:
            torch.nn.init.normal_(layer.weight, std=1 / width**0.5 / n_layers)
        held.update(of=(width, n_layers), layers=layers, x=torch.randn(1, width))
    layers, x = held["layers"], held["x"]
    def once():
        y = x
        for layer in layers:
            y = y + layer(y)
        return y
    with torch.inference_mode():
        once()
        found, end = [], time.perf_counter() + seconds
        while len(found) < 3 or time.perf_counter() < end:
            begin = time.perf_counter()
            once()
            found.append(time.perf_counter() - begin)
    print(json.dumps(statistics.median(found)), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="an interpreter that has torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    asked = parser.parse_args()
    toys = [(width, N_LAYERS) for width in WIDTHS] + [(WIDTH, n) for n in DEPTHS if n != N_LAYERS]
    threads = sorted({1, hardware.default_threads()})
    theirs = subprocess.Popen([asked.python, "-c", THEIRS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert theirs.stdin and theirs.stdout
    print("| width | layers | threads | ours, ms | PyTorch, ms | ratio (median of rounds) | from | to |")
    print("|---" * 8 + "|")
    worst = 0.0
    with Prober() as spinning, Prober(spins=False) as sleeping:
        for width, n_layers in toys:
            prober = sleeping if 4 * n_layers * width**2 > 128 << 20 else spinning
            for n_threads in threads:
                pairs = []
                for i in range(asked.rounds):
                    pair = {}
                    for side in ("ours", "theirs") if i % 2 else ("theirs", "ours"):
                        if side == "ours":
                            question = TimeLayers("CPU", width, n_layers, [1], [n_threads], asked.seconds)
                            (pair[side],) = prober.seconds_of(question)
                        else:
                            theirs.stdin.write(json.dumps([width, n_layers, n_threads, asked.seconds]) + "\n")
                            theirs.stdin.flush()
                            pair[side] = float(theirs.stdout.readline())
                    pairs.append(pair)
                ratios = [pair["ours"] / pair["theirs"] for pair in pairs]
                ours, others = (statistics.median(pair[side] for pair in pairs) * 1e3 for side in ("ours", "theirs"))
                ratio = statistics.median(ratios)
                worst = max(worst, ratio)
                print(
                    f"| {width} | {n_layers} | {n_threads} | {ours:.3g} | {others:.3g} | **{ratio:.2f}** |"
                    f" {min(ratios):.2f} | {max(ratios):.2f} |",
                    flush=True,
                )
    print(f"\nAt most {worst:.2f}.")
    theirs.stdin.close()
    theirs.wait()


if __name__ == "__main__":
    main()
