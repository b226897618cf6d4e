"""Holds predictions for this machine against what the same models then do; prints Markdown.

    scripts/check_predictions.py -o CELLS.jsonl [--probe] [--real GGUF] [--only NAME...]
    scripts/check_predictions.py -o CELLS.jsonl --held-out # other shapes, on which no rule was ever tried
    scripts/check_predictions.py -o CELLS.jsonl --later    # half an hour later: models of before once more
    scripts/check_predictions.py -o CELLS.jsonl --anew     # what would be predicted now, by the same kept profile

Synthetic models that were never run before, each with two of the four pairs of threads (1, all) and layout (plain,
repacked), so that all pairs occur; a prompt of 512 tokens, and decoding behind 0, 1,024 and 4,096 tokens (`--deep`: two
models behind 16,384, for a quarter of an hour). A prediction is made before its model is loaded. The truth is the
median of three, with the read ceiling beside it: where that moved by more than a tenth between before and after, it is
measured again, once, and counted. `--probe`: by slices as well. CELLS.jsonl gets a line for every figure; models in it
are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun import codec  # noqa: E402
from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.engine.jobs.roofline import Prober  # noqa: E402
from llmrun.engine.protocol import Trial  # noqa: E402
from llmrun.gguf import synth  # noqa: E402
from llmrun.gguf.reader import Header, open_header  # noqa: E402
from llmrun.machine import hardware, profile  # noqa: E402
from llmrun.machine.energy import Joules  # noqa: E402
from llmrun.options.load import LoadConfig, Repack  # noqa: E402
from llmrun.planning.footprint import CPU  # noqa: E402
from llmrun.planning.predict.prediction import Question, Range  # noqa: E402
from llmrun.tuning import score  # noqa: E402
from llmrun.tuning.sources import Here, Probe, look, moment_of, profile_of  # noqa: E402

N_PROMPT, DEPTHS, STEPS, REPETITIONS = 512, (0, 1024, 4096), 16, 3
DEEP, DEEP_MODELS = 16_384, (0, 3)
MODELS: tuple[tuple[str, dict[str, int], str], ...] = (
    ("llama-1.2b", {}, "Q4_K_M"),
    ("qwen3-0.6b", {}, "Q8_0"),
    ("llama-1.2b", {}, "Q4_0"),
    ("gemma3-1b", {}, "Q4_K_M"),
    ("qwen3-0.6b", {}, "F16"),
    ("gemma2-2b", {"n_layer": 12}, "Q4_0"),
    ("qwen3-30b-a3b", {"n_layer": 4}, "Q4_K_M"),
    ("deepseek-v2-lite", {"n_expert": 8}, "Q4_K_M"),
    ("lfm2-1.2b", {}, "Q4_K_M"),
    ("qwen3.5-0.8b", {}, "Q8_0"),
    ("qwen3-0.6b", {"n_layer": 6}, "Q5_K_M"),
    ("phi4-mini", {"n_layer": 12}, "Q3_K_M"),
    ("llama-1.2b", {}, "Q6_K"),
    ("mamba2-2.7b", {"n_layer": 24}, "Q4_K_M"),
    ("llama-3b", {}, "Q4_K_M"),
)
HELD_OUT: tuple[tuple[str, dict[str, int], str], ...] = (
    ("llama-8b", {"n_layer": 8}, "Q4_K_M"),
    ("phi3-mini", {"n_layer": 16}, "Q4_0"),
    ("gpt-oss-20b", {"n_layer": 4, "n_expert": 8}, "MXFP4_MOE"),
    ("gemma3-4b", {"n_layer": 12}, "Q5_K_M"),
    ("granite-4-h-tiny", {"n_layer": 12, "n_expert": 16}, "Q8_0"),
    ("command-r7b", {"n_layer": 6}, "Q4_K_M"),
    ("qwen3-next-80b", {"n_layer": 8, "n_expert": 16}, "Q4_K_M"),
)
PAIRS: tuple[tuple[tuple[int, Repack], ...], ...] = (((0, "off"), (1, "on")), ((0, "on"), (1, "off")))
"""Threads (0: all) and layout, for every other model."""


@dataclass
class Cell:
    """One figure: predicted by the profile and by slices, and measured, in t/s.

    Attributes:
        n_depth: tokens before the one that is decoded; None: a prompt.
        again: whether the ceiling moved, and it was measured a second time.
        later: the same figure once more, some time later.
        at: when it was measured, seconds of the epoch.
        looked: how much longer products took than for the profile, by one look just before: of one token, of many.
    """

    model: str
    n_depth: int | None
    n_threads: int
    repack: Repack
    predicted: Range | None
    probed: Range | None
    measured: float
    again: bool
    at: float
    later: float | None = None
    later_at: float = 0.0
    looked: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        return "prefill" if self.n_depth is None else "decode"


def called(name: str, changes: dict[str, int], level: str, *more: str) -> str:
    """llama-1.2b (12 layers) Q4_K_M"""
    return " ".join([name, *(f"({n} {key.removeprefix('n_')}s)" for key, n in changes.items()), level, *more])


def truth(engine: ChildEngine, trial: Trial, prober: Prober, threads: int) -> tuple[float, bool]:
    """Tokens per second; and whether it had to be measured again."""

    def once() -> tuple[float, float]:
        before = ceiling(prober, threads)
        if trial.n_depth:  # what lies before is computed once: then three times as many steps, a median of each third
            step_s = engine.run_trial(codec.replace(trial, n_gen=REPETITIONS * trial.n_gen)).step_s
            thirds = [step_s[i * trial.n_gen : (i + 1) * trial.n_gen] for i in range(REPETITIONS)]
            found = [1 / statistics.median(third) for third in thirds]
        else:
            found = []
            for _ in range(REPETITIONS):
                done = engine.run_trial(trial)
                rate = trial.n_prompt / (done.prefill_s or 1) if trial.n_prompt else 1 / statistics.median(done.step_s)
                found.append(rate)
        after = ceiling(prober, threads)
        return statistics.median(found), max(before, after) / min(before, after)

    rate, moved = once()
    return (rate, False) if moved <= 1.1 else (once()[0], True)


def ceiling(prober: Prober, threads: int) -> float:
    return statistics.median(prober.probe(CPU, "", threads, 0.15).read_bytes_per_s)


@contextmanager
def model_file(name: str, changes: dict[str, int], level: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        synth.write(path, replace(synth.SHAPES[name], **changes), level)  # type: ignore[arg-type]
        os.sync()  # what is written on meanwhile slows down what is measured next
        yield path


class Measuring:
    """Truths of one model with one setting: the median of three each."""

    def __init__(self, path: Path, header: Header, config: LoadConfig, prober: Prober, depths: Sequence[int]) -> None:
        self._engine = ChildEngine(path, header, replace(config, n_ctx=max(depths) + N_PROMPT + STEPS))
        self._prober, self._n_threads, self._n_ctx = prober, config.n_threads or 1, max(depths) + N_PROMPT + STEPS
        self._engine.run_trial(Trial(64, 2, n_ctx=self._n_ctx))

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def rate(self, n_depth: int | None) -> tuple[float, bool]:
        """Tokens per second; and whether it had to be measured again. What lies before a token is computed with all
        threads."""
        every = hardware.default_threads()
        if n_depth is None:
            return truth(self._engine, Trial(N_PROMPT, 0, n_ctx=self._n_ctx), self._prober, self._n_threads)
        trial = Trial(0, STEPS, n_depth=n_depth, n_ctx=self._n_ctx, n_threads_batch=every)
        return truth(self._engine, trial, self._prober, self._n_threads)


def configured(n_threads: int, repack: Repack) -> LoadConfig:
    return LoadConfig(n_threads=n_threads, n_threads_batch=n_threads, repack=repack)


def measure(path: Path, what: str, pairs: Sequence[tuple[int, Repack]], depths: Sequence[int], prober: Prober,
            known: profile.Profile, *, probes: bool) -> list[Cell]:  # fmt: skip
    cells = []
    header = open_header(path)
    trained = header.n_ctx_train or 0
    depths = tuple(each for each in depths if each + STEPS <= trained)
    for n, repack in pairs:
        threads = n or hardware.default_threads()
        config = configured(threads, repack)
        asked = Question(N_PROMPT, STEPS, depths, config)
        now, (one, many) = moment_of(known, prober, Joules(), n_threads=threads), look(known, prober, threads)
        predicted = Here(known, prober.found, now).predict(header, asked)
        probed = Probe(prober.found).predict(header, asked) if probes else None
        with Measuring(path, header, config, prober, depths) as measuring:
            for n_depth in depths if DEEP in depths else (None, *depths):
                rate, again = measuring.rate(n_depth)
                by_profile, by_slices = (
                    None if each is None else each.prefill_tps if n_depth is None else each.decode_tps[n_depth]
                    for each in (predicted, probed)
                )
                cell = Cell(what, n_depth, threads, repack, by_profile, by_slices, rate, again, time.time())
                cells.append(replace(cell, looked=(one, many)))
    return cells


def once_more(path: Path, cells: list[Cell], prober: Prober) -> None:
    """The same figures of one model again."""
    header = open_header(path)
    for threads, repack in dict.fromkeys((cell.n_threads, cell.repack) for cell in cells):
        own = [cell for cell in cells if (cell.n_threads, cell.repack) == (threads, repack)]
        depths = [cell.n_depth for cell in own if cell.n_depth is not None]
        with Measuring(path, header, configured(threads, repack), prober, depths) as measuring:
            for cell in own:
                cell.later, cell.later_at = measuring.rate(cell.n_depth)[0], time.time()


def predict_anew(cells: list[Cell], header: Header, here: Here) -> None:
    """By formulas that have changed since; nothing is measured."""
    for cell in cells:
        depths = () if cell.n_depth is None else (cell.n_depth,)
        found = here.predict(header, Question(N_PROMPT, STEPS, depths, configured(cell.n_threads, cell.repack)))
        cell.predicted = found.prefill_tps if cell.n_depth is None else found.decode_tps[cell.n_depth]


def shown(cell: Cell) -> str:
    def error(found: Range | None) -> str:
        if found is None:
            return "– | –"
        return f"{found.mid:.1f} ({found.low:.1f}–{found.high:.1f}) | {found.mid / cell.measured - 1:+.1%}"

    figure = "prefill" if cell.n_depth is None else f"decode at {cell.n_depth}"
    how = f"{cell.n_threads} thread{'s' * (cell.n_threads > 1)}, {'plain' if cell.repack == 'off' else 'repacked'}"
    parts = [cell.model, figure, how, f"{cell.measured:.1f}", error(cell.predicted), error(cell.probed)]
    return f"| {' | '.join(parts)} |"


def at_90(sizes: Sequence[float]) -> float:
    return sorted(sizes)[min(len(sizes) - 1, round(0.9 * (len(sizes) - 1)))]


def taught(cells: list[Cell]) -> list[Cell]:
    """The same cells, predicted with what the runs of the models before each taught, as `plan` would where they had
    been runs of its own: never with anything of the model itself."""
    made: list[Cell] = []
    for cell in cells:
        before = [each for each in cells if each.kind == cell.kind and each.predicted and each.at < cell.at]
        ratios = [each.measured / each.predicted.mid for each in before if each.predicted and each.model != cell.model]
        factor, found = score.learned(ratios), cell.predicted
        scaled = found and Range(found.low * factor, found.mid * factor, found.high * factor)
        made.append(replace(cell, predicted=scaled))
    return made


def summary(cells: list[Cell], which: str, name: str = "") -> None:
    for kind in ("decode", "prefill"):
        found = [(getattr(cell, which), cell.measured) for cell in cells if cell.kind == kind]
        known = [(each, truth) for each, truth in found if each is not None]
        if not known:
            continue
        errors = [abs(each.mid / truth - 1) for each, truth in known]
        held = sum(each.low <= truth <= each.high for each, truth in known) / len(known)
        width = statistics.median((each.high - each.low) / each.mid for each, _ in known)
        bias = statistics.median(each.mid / truth - 1 for each, truth in known)
        print(
            f"| {name or which} | {kind} | {len(known)} of {len(found)} | {statistics.median(errors):.1%} |"
            f" {at_90(errors):.1%} | {bias:+.1%} | {held:.0%} | {width:.0%} |"
        )


def report(cells: list[Cell]) -> None:
    print("| model | figure | settings | measured, t/s | predicted | error | by slices | error |\n" + "|---" * 8 + "|")
    print("\n".join(map(shown, cells)))
    print(f"\n{len(cells)} figures, {sum(cell.again for cell in cells)} measured again.\n")
    print("| source | figure | n | median error | p90 | bias | range holds | width |\n" + "|---" * 8 + "|")
    summary(cells, "predicted")
    summary(taught(cells), "predicted", "predicted, with what the models before taught")
    summary(cells, "probed")
    for kind in ("decode", "prefill"):
        pairs = [(cell, cell.later) for cell in cells if cell.later and cell.kind == kind]
        if pairs:
            moved = [abs(later / cell.measured - 1) for cell, later in pairs]
            minutes = statistics.median((cell.later_at - cell.at) / 60 for cell, _ in pairs)
            print(
                f"| the same {minutes:.0f} minutes later | {kind} | {len(pairs)} | {statistics.median(moved):.1%} |"
                f" {at_90(moved):.1%} | – | – | – |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--later", action="store_true")
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--anew", action="store_true")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    lines = asked.output.read_bytes().splitlines() if asked.output.exists() else []
    cells = [codec.decode(line, Cell) for line in lines]
    done = {cell.model for cell in cells}

    def save() -> None:
        asked.output.write_text("".join(json.dumps(codec.plain(cell)) + "\n" for cell in cells))

    with Prober(spins=False) as prober:
        known = profile_of(prober, on_note=lambda text: print(text, file=sys.stderr))
        for i, (name, changes, level) in enumerate(HELD_OUT if asked.held_out else MODELS):
            what = called(name, changes, level, *["deep"] * asked.deep)
            if (asked.only and name not in asked.only) or (what in done) != (asked.later or asked.anew):
                continue
            if asked.deep and i not in DEEP_MODELS:
                continue
            if asked.anew:
                header = synth.header_of(replace(synth.SHAPES[name], **changes), level)  # type: ignore[arg-type]
                predict_anew([cell for cell in cells if cell.model == what], header, Here(known, prober.found))
                continue
            with model_file(name, changes, level) as path:
                if asked.later:
                    once_more(path, [cell for cell in cells if cell.model == what], prober)
                else:
                    pairs, depths = (PAIRS[0][:1], (DEEP,)) if asked.deep else (PAIRS[i % 2], DEPTHS)
                    probes = asked.probe and not asked.deep
                    cells += measure(path, what, pairs, depths, prober, known, probes=probes)
            save()
            print(f"{what}: {sum(cell.model == what for cell in cells)} figures", file=sys.stderr)
        if asked.real and asked.anew:
            real = [cell for cell in cells if cell.model == asked.real.name]
            predict_anew(real, open_header(asked.real), Here(known, prober.found))
        elif asked.real and asked.real.name not in done and not (asked.deep or asked.later or asked.held_out):
            cells += measure(asked.real, asked.real.name, PAIRS[0], DEPTHS, prober, known, probes=asked.probe)
            save()
    if asked.anew:
        save()
    report(cells)


if __name__ == "__main__":
    main()
