#!/usr/bin/env python
"""Fit the constants of `llmrun plan --what-if` to measurements of others, and say how wrong the predictions are.

    scripts/fit_predictions.py MEASURED.csv            the tables of docs/prediction.md
    scripts/fit_predictions.py MEASURED.csv --write    the same, and llmrun/data/prediction.toml
    scripts/fit_predictions.py MEASURED.csv --rows     every row with its prediction
    scripts/fit_predictions.py MEASURED.csv --try OTHERS.csv      the tables for other rows of the same form

A row is always predicted by constants that were fitted without its device. Columns that are read: id, device, backend,
model, arch_class, quant, size_gib, params_b, decode_read_gib, pp_test, pp_tps, tg_test, tg_tps, depth, build, date,
quality, note, and for devices without a name here kind, mem_bw_gb_s. The fit is robust (Huber's, on logarithms): some
rows are of a bad build, or of a hot laptop, and nobody knows which.

What a build of its time costs is fitted beside the rest and not kept: a prediction is for llama.cpp of today.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmrun.errors import LlmrunError
from llmrun.planning.predict import speed
from llmrun.planning.predict.machines import Part, parse
from llmrun.planning.predict.speed import Decode, Load, Mixture, Prefill

DATA = Path(__file__).parents[1] / "llmrun" / "data" / "prediction.toml"
GIB = 1 << 30
INSIDE = 0.92
"""Of the rows, the part that a range is made to hold."""

# Layers, elements of keys and values for each token, weights that a token is multiplied by in 10^9: from config.json.
# Bytes that a token reads of a mixture, in GiB, where attention has more bits than the experts: from the shapes.
MODELS: Mapping[str, tuple[int, int, float]] = {
    "Llama-2-7B": (32, 262_144, 6.607),
    "LLaMA-7B": (32, 262_144, 6.607),
    "Llama-2-13B": (40, 409_600, 12.86),
    "Llama-3-8B": (32, 65_536, 7.505),
    "Llama-3.1-8B": (32, 65_536, 7.505),
    "Llama-3-70B": (80, 163_840, 69.5),
    "Llama-3.1-70B": (80, 163_840, 69.5),
    "Midnight-Miqu-70B": (80, 163_840, 68.7),
    "Llama-3.2-1B": (16, 16_384, 1.236),
    "Llama-3.2-3B": (28, 57_344, 3.21),
    "TinyLlama-1.1B": (22, 11_264, 1.035),
    "phi-2": (32, 163_840, 2.65),
    "Mistral-Nemo-12B": (40, 81_920, 11.58),
    "Ministral-3-14B": (40, 81_920, 12.8),
    "Qwen2.5-14B": (48, 98_304, 13.99),
    "DeepSeek-R1-Distill-Qwen-14B": (48, 98_304, 13.99),
    "Qwen2.5-Coder-7B": (28, 28_672, 7.07),
    "Qwen3-4B": (36, 73_728, 4.02),
    "Qwen3-14B": (40, 81_920, 14.0),
    "Qwen3-32B": (64, 131_072, 31.98),
    "Qwen3.6-27B": (64, 32_768, 25.6),
    "Qwen3.8-27B": (64, 32_768, 25.6),
    "gemma-3-4B": (34, 69_632, 3.88),
    "gemma-3-27b": (62, 253_952, 27.0),
    "gemma-4-31B": (60, 163_840, 29.3),
    "gpt-oss-20b": (24, 24_576, 3.03),
    "gpt-oss-120b": (36, 36_864, 4.55),
    "Qwen3-30B-A3B": (48, 49_152, 3.03),
    "Qwen3-Coder-30B-A3B": (48, 49_152, 3.03),
    "Qwen3.6-35B-A3B": (40, 10_240, 3.0),
    "gemma-4-26B-A4B": (30, 61_440, 4.0),
    "Nemotron-3-Super-120B-A12B": (88, 16_384, 11.5),
}
READS = {
    "gpt-oss-20b MXFP4": 2.386,
    "gpt-oss-120b MXFP4": 3.30,
    "Qwen3.6-35B-A3B Q4_K_XL": 2.37,
    "Qwen3.6-35B-A3B Q4_K_M": 1.87,
}
# The layers with a window of 128 (gpt-oss) or 1024 tokens (gemma) keep that and no more: the part that sees all.
SEES_ALL = {"gpt-oss-20b": 0.5, "gpt-oss-120b": 0.5, "gemma-3-4B": 1 / 6, "gemma-3-27b": 1 / 6, "gemma-4-31B": 1 / 6}
# localscore: the mean over nine tests, with prompts of 16 to 4096 tokens and answers of 16 to 3072.
LOCALSCORE_DEPTH, LOCALSCORE_PROMPT = 1800.0, 1200


@dataclass(frozen=True)
class Sample:
    """One row of the table, in the terms of the formulas."""

    id: str
    device: str
    model: str
    part: Part
    load: Load
    prompt: Load
    n_prompt: int
    n_ubatch: int
    decode_tps: float | None
    prefill_tps: float | None
    software: frozenset[str]
    is_mixture: bool
    note: str


def samples_of(path: Path) -> list[Sample]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            _sample(row) for row in csv.DictReader(file) if row["quality"] != "X" and "bad default" not in row["note"]
        ]


def _sample(row: Mapping[str, str]) -> Sample:
    n_layer, n_kv, n_weights = MODELS.get(row["model"]) or _unknown(row)
    is_mixture = row["arch_class"].startswith("moe")
    size = float(row["size_gib"] or 26.0)
    gib = float(
        row["decode_read_gib"]
        or READS.get(f"{row['model']} {row['quant']}")
        or size * n_weights / float(row["params_b"])
    )
    depth, n_prompt = float(row["depth"] or 0), 512
    generated, prompted = re.search(r"tg(\d+)", row["tg_test"]), re.search(r"pp(\d+)", row["pp_test"])
    if "localscore" in row["tg_test"]:
        depth, n_prompt = LOCALSCORE_DEPTH, LOCALSCORE_PROMPT
    mean = depth + (int(generated[1]) / 2 if generated else 100)
    n_prompt = int(prompted[1]) if prompted else n_prompt
    quantized = 0.0 if row["quant"] in ("F16", "BF16", "F32") else 1.0

    def load(at: float) -> Load:
        seen = at if at < 1024 else 1024 + (at - 1024) * SEES_ALL.get(row["model"], 1.0)
        return Load(
            weight_bytes=gib * GIB,
            kv_bytes=2 * n_kv * seen,
            n_weights=n_weights * 1e9,
            # Every head of the queries looks at every element: about as many as keys and values have in four groups.
            attention_flops=2 * n_kv * (1 if n_kv > 2e5 else 4) * seen,
            n_layers=n_layer,
            n_expert_layers=n_layer if is_mixture else 0,
            n_recurrent_layers=round(n_layer * 0.75) if row["arch_class"].endswith("hybrid") else 0,
            quantized=quantized,
            file_bytes=size * GIB,
        )

    return Sample(
        id=row["id"],
        device=row["device"],
        model=f"{row['model']} {row['quant']}",
        part=_part(row),
        load=load(mean),
        prompt=load((float(row["depth"] or 0)) + n_prompt / 2),
        n_prompt=n_prompt,
        n_ubatch=int(row["ubatch"] or 512),
        decode_tps=float(row["tg_tps"]) if row["tg_tps"] else None,
        prefill_tps=float(row["pp_tps"]) if row["pp_tps"] else None,
        software=frozenset(_software(row, quantized)),
        is_mixture=is_mixture,
        note=row["note"],
    )


def _unknown(row: Mapping[str, str]) -> tuple[int, int, float]:
    """Of a model that is not in the list, about the shape of its size."""
    n_layer = round(16 * float(row["params_b"]) ** 0.35)
    return n_layer, 2048 * n_layer, float(row["active_params_b"] or row["params_b"])


def _part(row: Mapping[str, str]) -> Part:
    try:
        part = parse(row["device"]).parts[0]
        # llamafile does not know the matrix units of Apple's fifth generation.
        return replace(part, family="apple") if "llamafile" in row["build"] and part.family == "apple-m5" else part
    except LlmrunError:
        return replace(parse(f"kind={row['kind']},bandwidth={row['mem_bw_gb_s']}").parts[0], name=row["device"])


def _software(row: Mapping[str, str], quantized: float) -> Iterable[str]:
    """What makes a row other than llama.cpp of today with its first backend."""
    if "llamafile" in row["build"]:
        yield "llamafile"
    if "localscore" in row["pp_test"]:
        yield "localscore"
    if row["date"][:7] in ("2023-11", "2024-05"):
        yield "old"
    if row["backend"].startswith("Vulkan"):
        yield "Vulkan"
    if not quantized:
        yield "F16"


# -- the fit ---

Values = dict[str, float]
Row = TypeVar("Row")
_HUBER = 0.12


def fitted(residuals: Callable[[Values], list[float]], start: Values, fixed: Iterable[str] = ()) -> Values:
    """The values with the smallest errors: Gauss-Newton on their logarithms, far errors with less weight (Huber's).

    A weak pull towards the start keeps what the rows do not tell where it was.
    """
    names = [name for name in start if name not in fixed]
    origin = at = np.log([start[name] for name in names])

    def of(point: NDArray[Any]) -> NDArray[Any]:
        return np.array(residuals({**start, **dict(zip(names, np.exp(point).tolist(), strict=True))}))

    def cost(errors: NDArray[Any], point: NDArray[Any]) -> float:
        far = np.abs(errors)
        robust = np.where(far < _HUBER, far**2 / 2, _HUBER * (far - _HUBER / 2)).sum()
        return float(robust + _PULL * ((point - origin) ** 2).sum() / 2)

    errors, damping = of(at), 1e-3
    best = cost(errors, at)
    for _ in range(25):
        slopes = np.stack([(of(at + step) - errors) / 1e-4 for step in np.eye(len(at)) * 1e-4], axis=1)
        weights = np.where(np.abs(errors) < _HUBER, 1.0, _HUBER / np.maximum(np.abs(errors), 1e-9))
        normal = slopes.T @ (slopes * weights[:, None]) + _PULL * np.eye(len(at))
        downhill = slopes.T @ (weights * errors) + _PULL * (at - origin)
        before = best
        for _ in range(6):
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), downhill)
            there = at - np.clip(step, -0.7, 0.7)
            found = of(there)
            if (now := cost(found, there)) < best:
                at, errors, best, damping = there, found, now, damping / 5
                break
            damping *= 5
        if before - best < 1e-5 * before:
            break
    return {**start, **dict(zip(names, np.exp(at).tolist(), strict=True))}


_PULL = 0.02

# What is fitted of each group, and where it begins. `old` and `llamafile`: a layer's seconds in builds of that time.
DECODE: Mapping[str, Values] = {
    "nvidia": {"share": 0.9, "unpack": 5, "layer_s": 3e-5, "old": 6e-5, "llamafile": 6e-5},
    "amd": {"share": 0.9, "unpack": 5, "layer_s": 6e-5, "llamafile": 1e-4},
    "intel-xe": {"share": 0.6, "unpack": 5, "layer_s": 6e-5},
    "intel-xe2": {"share": 0.7, "unpack": 5, "layer_s": 6e-5},
    "apple": {"share": 0.9, "unpack": 2, "layer_s": 9e-5, "old": 1.5e-4, "llamafile": 2.5e-4},
    "cpu": {"share": 0.65, "layer_s": 1e-4},
}
# Factors of the rate: of other software, of a table that is a mean over nine tests, of weights that are not quantized.
PREFILL: Mapping[str, Values] = {
    "nvidia": {
        "rate": 0.75, "growth": 0.5, "power": 0.5, "experts": 0.5, "localscore": 0.9, "llamafile": 0.9, "Vulkan": 0.75,
        "F16": 0.9,
    },
    "amd": {"rate": 0.5, "experts": 0.5, "Vulkan": 1.0},
    "intel-xe": {"rate": 0.7},
    "intel-xe2": {"rate": 0.7},
    "apple": {
        "rate": 0.7, "experts": 0.7, "localscore": 0.9, "llamafile": 0.9, "F16": 1.0, "old": 0.9,
    },
    "cpu": {"rate": 1.0, "llamafile": 1.0},
}  # fmt: skip
MIXTURE: Values = {"experts": 0.8, "recurrent": 0.5}
FIXED = {"cpu": ("layer_s",)}
"""What the rows can't tell: the seconds of a layer on a CPU are a dozen barriers of its threads."""
DOUBTED = re.compile(r"channels not stated|RAM population (?:not stated|and build unknown)")
"""Notes on CPUs whose bandwidth is not known: neither fitted nor counted."""
FROM_NVIDIA = {"amd": ("growth", "power", "llamafile"), "apple": ("growth",)}
"""What the rows of others are too few to tell, and NVIDIA's are not: how rates follow matrix units and power."""


def decode_of(values: Values) -> Decode:
    return Decode(values["share"], values.get("unpack", 0.0), values["layer_s"], 1.0)


def prefill_of(values: Values) -> Prefill:
    named = (values.get("growth", 0.0), values.get("power", 0.0), values.get("experts", 0.5))
    return Prefill(values["rate"], *named, 1.0)


def mixture_of(values: Values) -> Mixture:
    return Mixture(values["experts"], values["recurrent"], 1.0)


def decode_error(sample: Sample, values: Values, mixture: Values = MIXTURE) -> float:
    """ln of predicted over measured speed."""
    for name in ("old", "llamafile"):
        if name in sample.software and name in values:
            values = {**values, "layer_s": values[name]}
    seconds = speed.decode_s(sample.part, sample.load, decode_of(values), mixture_of(mixture))
    return -math.log(seconds * (sample.decode_tps or math.nan))


def prefill_error(sample: Sample, values: Values, decode: Values, mixture: Values = MIXTURE) -> float:
    """The same of prefill."""
    n_batches = -(-sample.n_prompt // sample.n_ubatch)
    software = math.prod(values.get(name, 1.0) for name in sample.software)
    seconds = speed.prefill_s(
        sample.part,
        sample.prompt,
        sample.n_prompt,
        n_batches,
        decode_of(decode),
        prefill_of({**values, "rate": values["rate"] * software}),
        mixture_of(mixture),
    )
    assert seconds is not None
    return -math.log(seconds * (sample.prefill_tps or math.nan) / sample.n_prompt)


@dataclass(frozen=True)
class Judged:
    """A row, predicted without its device; `blind`: the error of one who is not told of the row's software."""

    sample: Sample
    error: float
    blind: float
    spread: float

    @property
    def off(self) -> float:
        """|predicted / measured - 1|."""
        return abs(math.expm1(self.error))

    @property
    def holds(self) -> bool:
        return abs(self.error) <= math.log(self.spread)


@dataclass(frozen=True)
class Fit:
    """All constants, by group, and the spreads."""

    decode: Mapping[str, Values]
    prefill: Mapping[str, Values]
    mixture: Values
    decode_spread: Mapping[str, float]
    prefill_spread: Mapping[str, float]
    mixture_spread: float


def is_plain(sample: Sample) -> bool:
    return not (sample.load.n_expert_layers or sample.load.n_recurrent_layers)


def has_prefill(sample: Sample) -> bool:
    """No targets: quantized prefill on NVIDIA's cards from before #8075, and on CPUs what is noted as a lower bound.
    Both were computed in other ways."""
    lower_bound = speed.group(sample.part) == "cpu" and re.search("lower bound|cliff", sample.note)
    before_8075 = speed.group(sample.part) == "nvidia" and "old" in sample.software and "F16" not in sample.software
    return bool(sample.prefill_tps and sample.part.flops) and not before_8075 and not lower_bound


def _errors(rows: Sequence[Sample], values: Values) -> list[float]:
    return [decode_error(row, values) for row in rows]


def spread_of(errors: Sequence[float]) -> float:
    """What holds about `INSIDE` of other rows: what holds that of the fitted ones, more where they are few."""
    n = len(errors)
    if not n:
        return 2.0
    within = float(np.quantile(np.abs(errors), INSIDE))
    return math.exp(within * math.sqrt(n / max(1, n - 3)))


def grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found


def middle(rows: Sequence[Sample]) -> Sample:
    """Of one device's rows the one whose bytes per second are the median."""
    return sorted(rows, key=lambda each: each.load.weight_bytes * (each.decode_tps or 0))[(len(rows) - 1) // 2]


def fit(samples: Sequence[Sample], before: Fit | None = None, group: str | None = None) -> Fit:
    """Of all groups; with `before`, of this group only, the others as they were there."""
    decode, prefill = dict(before.decode if before else {}), dict(before.prefill if before else {})
    decode_spread = dict(before.decode_spread if before else {})
    prefill_spread = dict(before.prefill_spread if before else {})
    # A CPU starts no kernels; and keys and values of a type that nobody told may be half as long.
    mixed = [e for e in samples if e.decode_tps and not is_plain(e) and speed.group(e.part) != "cpu"]
    mixed = [each for each in mixed if "KV type not stated" not in each.note]
    for name in [group] if group else list(DECODE):
        rows = [each for each in samples if each.decode_tps and is_plain(each) and speed.group(each.part) == name]
        if name == "cpu":  # a few devices with many rows each: one row of every device
            rows = [each for each in rows if not DOUBTED.search(each.note)]
            rows = [middle(some) for some in grouped(rows, lambda each: each.part.name).values()]
        values = fitted(partial(_errors, rows), DECODE[name], FIXED.get(name, ()))
        decode[name] = values
        decode_spread[name] = spread_of([decode_error(row, values) for row in rows])
    mixture = fitted(lambda at: [decode_error(row, decode[speed.group(row.part)], at) for row in mixed], MIXTURE)
    mixture_spread = spread_of([decode_error(row, decode[speed.group(row.part)], mixture) for row in mixed])
    for name in [group] if group else list(PREFILL):
        rows = [each for each in samples if has_prefill(each) and speed.group(each.part) == name]

        def errors(at: Values, rows: list[Sample] = rows, name: str = name) -> list[float]:
            return [prefill_error(row, at, decode[name], mixture) for row in rows]

        known = {each: prefill["nvidia"][each] for each in FROM_NVIDIA.get(name, ())}
        prefill[name] = fitted(errors, {**PREFILL[name], **known}, known)
        prefill_spread[name] = spread_of(errors(prefill[name]))
    return Fit(decode, prefill, mixture, decode_spread, prefill_spread, mixture_spread)


def judged(samples: Sequence[Sample], tried: Sequence[Sample] = ()) -> tuple[Fit, list[Judged], list[Judged]]:
    """The constants of all rows; decode and prefill of every row (of `tried`, if any) by those of other devices."""
    whole = fit(samples)
    decode, prefill = [], []
    for name, rows in grouped(tried or samples, lambda each: each.part.name).items():
        group = speed.group(rows[0].part)
        without = fit([each for each in samples if each.part.name != name], whole, group)
        for row in rows:
            today = replace(row, software=row.software & {"F16"})
            if row.decode_tps:
                told, blind = (decode_error(each, without.decode[group], without.mixture) for each in (row, today))
                plain, mixed = is_plain(row), max(without.decode_spread[group], without.mixture_spread)
                decode.append(Judged(row, told, blind, without.decode_spread[group] if plain else mixed))
            if has_prefill(row):
                values = (without.prefill[group], without.decode[group], without.mixture)
                told, blind = (prefill_error(each, *values) for each in (row, today))
                prefill.append(Judged(row, told, blind, without.prefill_spread[group]))
    return whole, decode, prefill


# -- the tables ---


def table(title: str, rows: Sequence[Judged], column: Callable[[Judged], float] = lambda each: each.error) -> str:
    """A line of Markdown: rows, devices, median and 90 % of the error, what the ranges hold."""
    off = np.array([abs(math.expm1(column(each))) for each in rows])
    n_devices = len({each.sample.part.name for each in rows})
    holds = float(np.mean([each.holds for each in rows]))
    blind = float(np.median([abs(math.expm1(each.blind)) for each in rows]))
    return (
        f"| {title} | {len(rows)} | {n_devices} | {np.median(off):.1%} | {np.quantile(off, 0.9):.1%} | {holds:.0%} |"
        f" {blind:.1%} |"
    ).replace("%", " %")


def by_device(rows: Sequence[Judged]) -> list[Judged]:
    """One for each device: the row with its median error."""
    devices = grouped(rows, lambda each: each.sample.part.name)
    return [sorted(some, key=lambda each: each.off)[(len(some) - 1) // 2] for some in devices.values()]


def report(decode: Sequence[Judged], prefill: Sequence[Judged]) -> None:
    def line(title: str, rows: Sequence[Judged]) -> None:
        if rows:
            print(table(title, rows))

    def of(rows: Sequence[Judged], *groups: str) -> list[Judged]:
        return [each for each in rows if speed.vendor(each.sample.part) in groups]

    plain = [each for each in decode if not each.sample.is_mixture]
    cpus = [each for each in of(plain, "cpu") if not DOUBTED.search(each.sample.note)]
    gpus = ("nvidia", "amd", "intel", "apple")
    print("| | rows | devices | median error | 90 % | ranges hold | median, software not told |")
    print("|---|---|---|---|---|---|---|")
    line("decode, dense, GPUs", of(plain, *gpus))
    for name in gpus:
        line(f"· {name}", of(plain, name))
    line("decode, mixtures of experts", [each for each in decode if each.sample.is_mixture])
    line("decode, CPUs, a device once", by_device(cpus))
    line("decode, CPUs, every row", cpus)
    for name in gpus:
        rows = of(prefill, name)
        line(f"prefill, {name}", [each for each in rows if not each.sample.is_mixture])
        line("· mixtures", [each for each in rows if each.sample.is_mixture])
    line("prefill, CPUs", of(prefill, "cpu"))
    doubted = sorted({each.sample.id for each in of(plain, "cpu") if DOUBTED.search(each.sample.note)})
    print(f"\nCPU rows whose note doubts the channels: {', '.join(doubted)}")


def written(whole: Fit) -> str:
    lines = [
        "# Constants of the formulas in planning/predict/speed.py, which has their units. Made by",
        "# scripts/fit_predictions.py; docs/prediction.md has what they are fitted to, and their errors.",
    ]
    tables: dict[str, object] = {"mixture": replace(mixture_of(whole.mixture), spread=whole.mixture_spread)}
    for name, values in whole.decode.items():
        tables[f"decode.{name}"] = replace(decode_of(values), spread=whole.decode_spread[name])
    for name, values in whole.prefill.items():
        tables[f"prefill.{name}"] = replace(prefill_of(values), spread=whole.prefill_spread[name])
    for name, constants in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {value:.4g}" for key, value in asdict(constants).items())]  # type: ignore[call-overload]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    parser.add_argument("--try", dest="tried", type=Path, metavar="CSV")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rows", action="store_true")
    options = parser.parse_args()
    samples = samples_of(options.measured)
    whole, decode, prefill = judged(samples, samples_of(options.tried) if options.tried else ())
    report(decode, prefill)
    if options.rows:
        for title, rows in (("decode", decode), ("prefill", prefill)):
            print(f"\n{title}: predicted / measured")
            for each in sorted(rows, key=lambda each: (speed.group(each.sample.part), each.error)):
                row = each.sample
                print(
                    f"  {row.id} {math.exp(each.error):5.2f} {math.exp(each.blind):5.2f} {each.spread:5.2f}"
                    f" {row.device[:32]:32} {row.model:32} {', '.join(sorted(row.software))}"
                )
    if options.write:
        DATA.write_text(written(whole))
        print(f"\nwritten: {DATA.name}")


if __name__ == "__main__":
    main()
