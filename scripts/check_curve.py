"""Holds predicted curves of layers on devices against measured ones, with two slowed-down workers; prints Markdown.

    scripts/check_curve.py [--layers 10] [--available 0.9 0.4] [--passes 3]

Two workers of llama.cpp's RPC on loopback, each stopped (SIGSTOP) for a part of every few milliseconds, as a quota of
CPU time would have it: the first with two threads, running nine tenths of the time, with memory for about 60 % of the
model, the second with one thread, four tenths. Layers in RAM are computed by one thread. A synthetic model of 0.3 B
parameters in Q8_0, decoding behind a prompt of 64 tokens.

Every number of layers is predicted twice, by slices alone and with four runs of the model; then every placement that
fits, each split of each number of layers, is loaded and measured, in turn and several times, the median taken.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.engine import ChildEngine, planning  # noqa: E402
from llmrun.engine.protocol import Trial  # noqa: E402
from llmrun.engine.rpc.host import Offer, Server  # noqa: E402
from llmrun.gguf.reader import Header, open_header  # noqa: E402
from llmrun.gguf.shapes import Shape  # noqa: E402
from llmrun.gguf.synth import write  # noqa: E402
from llmrun.options.load import LoadConfig, Offload  # noqa: E402
from llmrun.planning.fit import DoesNotFit  # noqa: E402
from llmrun.planning.load_plan import Expected, LoadPlan  # noqa: E402
from llmrun.planning.predict.curve import Curve  # noqa: E402
from llmrun.planning.predict.prediction import Question  # noqa: E402
from llmrun.tuning.curve import curve  # noqa: E402

N_PROMPT, DEPTH, STEPS = 64, 64, 32
PERIOD_S = 0.005
Split = tuple[int, ...]


@contextmanager
def slowed(pid: int, available: float) -> Iterator[None]:
    """The process runs this share of the time. By a process that is scheduled before all others, where that is allowed;
    its periods differ a little, so that they don't fall in step with the tokens."""
    code = f"""
import os, random, signal, sys, time
try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
except OSError: pass
while os.getppid() == {os.getpid()}:
    period = {PERIOD_S} * random.uniform(0.8, 1.2)
    os.kill({pid}, signal.SIGSTOP); time.sleep(period * {1 - available})
    os.kill({pid}, signal.SIGCONT); time.sleep(period * {available})
"""
    stopper = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        stopper.kill()
        stopper.wait()
        os.kill(pid, signal.SIGCONT)


def placements(path: Path, header: Header, config: LoadConfig) -> dict[Split, LoadPlan]:
    """Every split of every number of layers that fits."""
    found: dict[Split, LoadPlan] = {}
    n_all = (header.n_layer or 0) + 1
    with planning(path, header, config, expected=Expected(N_PROMPT + STEPS, N_PROMPT + STEPS)) as planner:
        for n in range(n_all + 1):
            for first in range(n + 1):
                shares = (float(first), float(n - first)) if n else ()
                offload = replace(config.offload, n_gpu_layers=n, tensor_split=shares)
                try:
                    found[first, n - first] = planner.tried(replace(config, offload=offload), strict=True)
                except DoesNotFit:
                    continue
    return found


def decoded_tps(plan: LoadPlan, header: Header) -> float:
    with ChildEngine.open(plan, header) as engine:
        engine.run_trial(Trial(N_PROMPT, 2, n_ctx=N_PROMPT + STEPS))
        return 1 / statistics.fmean(engine.run_trial(Trial(0, STEPS, n_depth=DEPTH)).step_s)


def table(by_slices: Curve, corrected: Curve, measured: dict[Split, float]) -> None:
    print("| layers | split | measured, t/s | by slices | error | with runs | error | best split | t/s | lost |")
    print("|---" * 10 + "|")
    errors: dict[str, list[float]] = {"by slices": [], "with runs": []}
    lost = []
    for one, other in zip(by_slices.points, corrected.points, strict=True):
        truth = {each: tps for each, tps in measured.items() if sum(each) == one.n_gpu_layers}
        best = max(truth, key=lambda each: truth[each])
        cells = [f"{other.n_gpu_layers}", f"{other.split}", f"{truth[other.split]:.1f}"]
        for name, point in (("by slices", one), ("with runs", other)):
            predicted = 1 / point.step_s.mid
            errors[name].append(predicted / truth[point.split] - 1)
            cells += [f"{predicted:.1f}", f"{errors[name][-1]:+.1%}"]
        lost.append(1 - truth[other.split] / truth[best])
        print(f"| {' | '.join([*cells, f'{best}', f'{truth[best]:.1f}', f'{lost[-1]:.1%}'])} |")
    print()
    for name, found in errors.items():
        sizes = sorted(map(abs, found))
        print(f"- {name}: largest error {sizes[-1]:.1%}, median {statistics.median(sizes):.1%}")
    chosen, best = corrected.best, max(measured, key=lambda each: measured[each])
    behind = 1 - measured[chosen.split] / measured[best]
    print(f"- of {len(measured)} placements the best is {best} at {measured[best]:.1f} t/s; chosen {chosen.split}"
          f" at {measured[chosen.split]:.1f}, {behind:.1%} less")  # fmt: skip
    print(f"- of each number of layers the chosen split loses at most {max(lost):.1%}")
    alone = measured[0, 0]
    crosses = min((sum(each) for each, tps in measured.items() if tps > alone), default=None)
    print(f"- CPU alone {alone:.1f} t/s; crossed at {corrected.crosses_cpu_at} layers, measured at {crosses}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--available", type=float, nargs=2, default=(0.9, 0.4))
    parser.add_argument("--passes", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write(path, Shape(asked.layers, 1280, 5120, 20, 4, 16384), "Q8_0")
        header = open_header(path)
        workers = (Offer(port=0, n_threads=2, limit_bytes=round(0.6 * header.weight_bytes)), Offer(port=0, n_threads=1))
        with Server(workers[0]) as one, Server(workers[1]) as other:
            rpc = tuple(f"{each.host}:{each.port}" for each in (one, other))
            offload = Offload(fit_target=0)
            config = LoadConfig(n_threads=1, n_ubatch=N_PROMPT, repack="off", rpc=rpc, offload=offload)
            first, second = asked.available
            with slowed(one.pid, first), slowed(other.pid, second):
                question = Question(N_PROMPT, STEPS, (DEPTH,), config)
                by_slices = curve(header, question, path, runs=False)
                plans = placements(path, header, config)
                measured: dict[Split, list[float]] = {each: [] for each in plans}
                for i in range(asked.passes):
                    order = random.Random(i).sample([*plans], len(plans))
                    for done, split in enumerate(order):
                        measured[split].append(decoded_tps(plans[split], header))
                        print(f"pass {i + 1}, {done + 1} of {len(order)}", end="\r", file=sys.stderr)
                    if not i:
                        corrected = curve(header, question, path)
        table(by_slices, corrected, {split: statistics.median(found) for split, found in measured.items()})


if __name__ == "__main__":
    main()
