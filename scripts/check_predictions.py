"""Holds predictions for this machine against what the same models then do; prints Markdown.

    scripts/check_predictions.py [--probe] [--only NAME...]

Synthetic models that were never run before, each with two of the four pairs of threads (1, all) and layout (plain,
repacked), so that all pairs occur; a prompt of 512 tokens, and decoding behind 0, 1,024 and 4,096 tokens. A prediction
is made before its model is loaded. The truth is the median of three, with the read ceiling beside it: where that moved
by more than a tenth between before and after, it is measured again, once, and counted. `--probe`: by slices as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.engine.jobs.roofline import Prober, key_of  # noqa: E402
from llmrun.engine.protocol import Trial  # noqa: E402
from llmrun.gguf import synth  # noqa: E402
from llmrun.gguf.reader import open_header  # noqa: E402
from llmrun.machine import hardware, profile  # noqa: E402
from llmrun.options.load import LoadConfig, Repack  # noqa: E402
from llmrun.planning.footprint import CPU  # noqa: E402
from llmrun.planning.predict.prediction import Question, Range  # noqa: E402
from llmrun.tuning import profiling  # noqa: E402
from llmrun.tuning.sources import Here, Probe, drift_of  # noqa: E402

N_PROMPT, DEPTHS, STEPS, REPETITIONS = 512, (0, 1024, 4096), 16, 3
MODELS: tuple[tuple[str, dict[str, int], str], ...] = (
    ("llama-1.2b", {}, "Q4_K_M"),
    ("qwen3-0.6b", {}, "Q8_0"),
    ("llama-1.2b", {}, "Q4_0"),
    ("gemma3-1b", {}, "Q4_K_M"),
    ("qwen3-0.6b", {}, "F16"),
    ("gemma2-2b", {"n_layer": 12}, "Q4_0"),
    ("qwen3-30b-a3b", {"n_layer": 4}, "Q4_K_M"),
    ("deepseek-v2-lite", {"n_layer": 4}, "Q4_K_M"),
    ("lfm2-1.2b", {}, "Q4_K_M"),
    ("qwen3.5-0.8b", {}, "Q8_0"),
    ("qwen3-0.6b", {"n_layer": 6}, "Q5_K_M"),
    ("phi4-mini", {"n_layer": 12}, "Q3_K_M"),
    ("llama-1.2b", {}, "Q6_K"),
    ("mamba2-2.7b", {"n_layer": 24}, "Q4_K_M"),
    ("llama-3b", {}, "Q4_K_M"),
)
PAIRS: tuple[tuple[tuple[int, Repack], ...], ...] = (((0, "off"), (1, "on")), ((0, "on"), (1, "off")))
"""Threads (0: all) and layout, for every other model."""


@dataclass
class Cell:
    """One figure: predicted by the profile and by slices, and measured, in t/s."""

    model: str
    kind: str
    how: str
    predicted: Range | None
    probed: Range | None
    measured: float


def truth(engine: ChildEngine, trial: Trial, prober: Prober, threads: int) -> tuple[float, bool]:
    """Tokens per second; and whether it had to be measured again."""

    def once() -> tuple[float, float]:
        before = ceiling(prober, threads)
        found = []
        for _ in range(REPETITIONS):
            done = engine.run_trial(trial)
            found.append(
                trial.n_prompt / (done.prefill_s or 1) if trial.n_prompt else 1 / statistics.median(done.step_s)
            )
        after = ceiling(prober, threads)
        return statistics.median(found), max(before, after) / min(before, after)

    rate, moved = once()
    return (rate, False) if moved <= 1.1 else (once()[0], True)


def ceiling(prober: Prober, threads: int) -> float:
    return statistics.median(prober.probe(CPU, "", threads, 0.15).read_bytes_per_s)


def measure(name: str, changes: dict[str, int], level: str, pairs: tuple[tuple[int, Repack], ...], prober: Prober,
            known: profile.Profile, *, probes: bool) -> tuple[list[Cell], int]:  # fmt: skip
    cells, repeated = [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        synth.write(path, replace(synth.SHAPES[name], **changes), level)  # type: ignore[arg-type]
        header = open_header(path)
        trained = header.n_ctx_train or 0
        depths = tuple(each for each in DEPTHS if each + STEPS <= trained)
        for n, repack in pairs:
            threads = n or hardware.default_threads()
            config = LoadConfig(n_threads=threads, n_threads_batch=threads, repack=repack)
            asked = Question(N_PROMPT, STEPS, depths, config)
            drift = drift_of(known, prober)
            predicted = Here(known, prober.found, drift=drift).predict(header, asked)
            probed = Probe(prober.found).predict(header, asked) if probes else None
            what = f"{name}{f'/{header.n_layer}' if changes else ''} {level}"
            how = f"{threads} threads, {repack}"
            with ChildEngine(path, header, replace(config, n_ctx=max(depths) + N_PROMPT + STEPS)) as engine:
                engine.run_trial(Trial(64, 2))
                rate, again = truth(engine, Trial(N_PROMPT, 0), prober, threads)
                repeated += again
                cells.append(
                    Cell(what, "prefill", how, predicted.prefill_tps, probed.prefill_tps if probed else None, rate)
                )
                for depth in depths:
                    rate, again = truth(engine, Trial(0, STEPS, n_depth=depth), prober, threads)
                    repeated += again
                    of = predicted.decode_tps[depth]
                    by_slices = probed.decode_tps[depth] if probed else None
                    cells.append(Cell(what, f"decode at {depth}", how, of, by_slices, rate))
    return cells, repeated


def shown(cell: Cell) -> str:
    def error(found: Range | None) -> str:
        if found is None:
            return "– | –"
        return f"{found.mid:.1f} ({found.low:.1f}–{found.high:.1f}) | {found.mid / cell.measured - 1:+.1%}"

    parts = [cell.model, cell.kind, cell.how, f"{cell.measured:.1f}", error(cell.predicted), error(cell.probed)]
    return f"| {' | '.join(parts)} |"


def summary(cells: list[Cell], which: str) -> None:
    for kind in ("decode", "prefill"):
        found = [(getattr(cell, which), cell.measured) for cell in cells if cell.kind.startswith(kind)]
        known = [(each, truth) for each, truth in found if each is not None]
        if not known:
            continue
        errors = sorted(abs(each.mid / truth - 1) for each, truth in known)
        held = sum(each.low <= truth <= each.high for each, truth in known) / len(known)
        width = statistics.median((each.high - each.low) / each.mid for each, _ in known)
        p90 = errors[min(len(errors) - 1, round(0.9 * (len(errors) - 1)))]
        bias = statistics.median(each.mid / truth - 1 for each, truth in known)
        print(
            f"| {which} | {kind} | {len(known)} of {len(found)} | {statistics.median(errors):.1%} | {p90:.1%} |"
            f" {bias:+.1%} | {held:.0%} | {width:.0%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    with Prober(spins=False) as prober:
        key = key_of(prober.found)
        known = profile.load(key)
        if known is None:
            known = profiling.measure(prober)
            profile.save(key, known)
        cells: list[Cell] = []
        repeated = 0
        print(
            "| model | figure | settings | measured, t/s | predicted | error | by slices | error |\n" + "|---" * 8 + "|"
        )
        for i, (name, changes, level) in enumerate(MODELS):
            if asked.only and name not in asked.only:
                continue
            found, again = measure(name, changes, level, PAIRS[i % 2], prober, known, probes=asked.probe)
            cells += found
            repeated += again
            print("\n".join(map(shown, found)), flush=True)
    print(f"\n{len(cells)} figures, {repeated} measured again.\n")
    print("| source | figure | n | median error | p90 | bias | range holds | width |\n" + "|---" * 8 + "|")
    summary(cells, "predicted")
    summary(cells, "probed")


if __name__ == "__main__":
    main()
