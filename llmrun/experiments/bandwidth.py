"""Experiment 6: what limits decoding: bytes read, or cores."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.bench.spec import Test
from llmrun.experiments.experiment import Cell, Finding, Result, Table, Verdict, shown
from llmrun.experiments.lab import Lab, figures_of
from llmrun.experiments.spread import Spread
from llmrun.machine import hardware
from llmrun.planning.footprint import CPU
from llmrun.units import UNKNOWN, percent, significant, size

MODELS = (
    ("qwen3-0.6b", "Q4_K_M"),
    ("qwen3-0.6b", "Q8_0"),
    ("qwen3-0.6b", "F16"),
    ("gemma3-1b", "Q4_K_M"),
    ("llama-1.2b", "Q4_K_M"),
    ("llama-1.2b", "Q8_0"),
    ("llama-1.2b", "F16"),
)
_QUICK = (0, 1, 4, 5)
THREADS_OF = ("llama-1.2b", "Q4_K_M")
_MEGABYTES = tuple((float(n), str(n)) for n in (250, 500, 1000, 2000, 4000))


def _threads(lab: Lab) -> list[int]:
    """One to all logical CPUs: each up to four, then by halves."""
    n, cpus = lab.n_threads, len(hardware.usable_cpus())
    return sorted({1, 2, 3, 4, n // 4, n // 2, 3 * n // 4, n, cpus} & set(range(1, max(n, cpus) + 1)))


def bandwidth(lab: Lab) -> Result:
    models = [MODELS[i] for i in _QUICK] if lab.quick else list(MODELS)
    n_gen = 16 if lab.quick else 32

    def of(shape: str, level: str, n_threads: int) -> Cell:
        def take() -> Mapping[str, float | None]:
            config = lab.config(n_threads=n_threads, n_threads_batch=n_threads, repack="off")
            found = dict(figures_of(lab.bench(lab.model(shape, level), config, Test("tg", 0, n_gen))))
            read = lab.prober.probe(CPU, "", n_threads, 0.2).read_bytes_per_s
            return {**found, "reads_at_threads": statistics.median(read) if read else None}

        return Cell(_key(shape, level, n_threads), take)

    all_threads = lab.n_threads
    threads = _threads(lab)
    lab.measure(
        [of(*model, all_threads) for model in models] + [of(*THREADS_OF, n) for n in threads if n != all_threads]
    )
    rows, points = [], []
    for shape, level in models:
        key = _key(shape, level, all_threads)
        reads, rate = lab.spread(key, "step_read_bytes"), lab.spread(key, "tps")
        achieved = _achieved(lab, key)
        ceiling = lab.spread(key, "reads_at_threads")
        if not (reads and rate and achieved and ceiling):
            continue
        share = achieved.median / ceiling.median
        rows.append(
            (shape, level, size(reads.median), shown(rate), shown(achieved, 1e-9), shown(ceiling, 1e-9), percent(share))
        )
        points.append((reads.median, rate, achieved, ceiling, f"{shape} {level}"))
    points.sort()
    scaling = []
    for n in threads:
        key = _key(*THREADS_OF, n)
        rate, read = lab.spread(key, "tps"), lab.spread(key, "reads_at_threads")
        if rate and read:
            scaling.append((n, rate, read))
    findings = [_limits(points, scaling, all_threads), _cores(scaling, all_threads)]
    per_step = tuple(Point(reads / 1e6, achieved.median / 1e9, label=name) for reads, _, achieved, _, name in points)
    roof = max((each.median for *_, each, _ in points), default=0.0) / 1e9
    across = (points[0][0] / 1e6, points[-1][0] / 1e6) if points else (1.0, 2.0)
    panels = [
        Panel("sweep", "bandwidth that decoding reaches", Axis("MB read for a token", "log", _MEGABYTES), Axis("GB/s"),
              (Series("decoding", per_step, "dot"),
               Series("plain reads, measured beside", tuple(Point(x, roof) for x in across), "roof"))),
        Panel("sweep", f"{' '.join(THREADS_OF)}, by threads", Axis("threads"), Axis("of one thread, ×"),
              tuple(_relative(scaling))),
    ]  # fmt: skip
    return Result(
        tuple(findings),
        (
            f"Decoding behind an empty context, {n_gen} tokens, weights as they are in the file, {all_threads}"
            " threads; beside each"
            " sample a matrix much larger than the caches is read by as many threads.",
            "Reached: bytes that a token reads (weights by the tensor table, keys and values) over its mean time.",
        ),
        (
            Table("Decoding by what it reads",
                  ("shape", "level", ">read a token", ">t/s", ">reached, GB/s", ">plain reads, GB/s", ">of it"),
                  tuple(rows)),
            Table(f"{' '.join(THREADS_OF)} by threads", (">threads", ">t/s", ">plain reads, GB/s"),
                  tuple((str(n), shown(rate), shown(read, 1e-9)) for n, rate, read in scaling)),
        ),
        {"": Figure("what decoding waits for", tuple(panels), ("median of the rounds",))},
        (
            ("Quantized weights have to be unpacked: where that takes longer than reading them, cores are the"
            " limit after all."),
            "A machine with more cores for each channel of memory saturates sooner.",
        ),
    )  # fmt: skip


def _key(shape: str, level: str, n_threads: int) -> str:
    return f"{shape} at {level}, {n_threads} thread{'s' * (n_threads > 1)}"


def _achieved(lab: Lab, key: str) -> Spread | None:
    found = [
        sample.values["step_read_bytes"] / sample.values["step_s"]  # type: ignore[operator]
        for sample in lab.cells.samples.get(key, ())
        if sample.values.get("step_read_bytes") and sample.values.get("step_s")
    ]
    return lab.noise.spread(found)


_BOUND = 0.6
"""Of what plain reads reach: as a bench has it (`record.BOUND_SHARE`)."""


def _limits(
    points: list[tuple[float, Spread, Spread, Spread, str]], scaling: list[tuple[int, Spread, Spread]], all_threads: int
) -> Finding:
    """Memory is the limit where decoding reads nearly as fast as can be read, and more threads read no faster."""
    claim = "Memory access is the limit, not the number of cores."
    if not points:
        return Finding(claim, "dream", UNKNOWN, "not measured")
    shares = [(achieved.median / ceiling.median, name) for _, _, achieved, ceiling, name in points]
    least, most = min(shares), max(shares)
    text = f"decoding reaches {percent(least[0])} ({least[1]}) to {percent(most[0])} ({most[1]}) of what plain reads do"
    reads = {n: read.median for n, _, read in scaling}
    whys = []
    saturates = True
    if 1 in reads and all_threads in reads and all_threads > 1:
        gain = reads[all_threads] / reads[1]
        text += f"; {all_threads} threads read {significant(gain)} × as fast as one"
        saturates = gain < 0.8 * all_threads
        if not saturates:
            whys.append("So many threads do not saturate this memory: more cores would read faster.")
    bound = [share >= _BOUND for share, _ in shares]
    if not all(bound):
        whys.append("Below 60 % something else takes the time: unpacking the weights, and what is between products.")
    verdict: Verdict = "holds" if all(bound) and saturates else "holds in part" if any(bound) else "does not hold"
    return Finding(claim, "dream", text, verdict, " ".join(whys))


def _cores(scaling: list[tuple[int, Spread, Spread]], all_threads: int) -> Finding:
    """Among physical cores: siblings of one are no cores."""
    claim = "Only a part of the cores helps."
    known = [each for each in scaling if each[0] <= all_threads]
    if len(known) < 2:
        return Finding(claim, "70b", UNKNOWN, "not measured", "There is one core.")
    most = max(rate.median for _, rate, _ in known)
    enough = next(n for n, rate, _ in known if rate.median >= 0.95 * most)
    last = known[-1]
    text = (
        f"{enough} of {last[0]} threads reach 95 % of the most; {last[0]} give"
        f" {significant(last[1].median / known[0][1].median)} × one, plain reads"
        f" {significant(last[2].median / known[0][2].median)} ×"
    )
    return Finding(claim, "70b", text, "holds" if enough < last[0] else "does not hold")


def _relative(scaling: list[tuple[int, Spread, Spread]]) -> list[Series]:
    if not scaling:
        return []
    _, one, read = scaling[0]
    return [
        Series("decode", tuple(rate.point(n, 1 / one.median) for n, rate, _ in scaling)),
        Series("plain reads", tuple(found.point(n, 1 / read.median) for n, _, found in scaling)),
        Series("in proportion", tuple(Point(n, n) for n, *_ in scaling), "roof"),
    ]
