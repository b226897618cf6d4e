"""Experiment 9: one request's time and the throughput of many; and requests sent where they are answered first."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from llmrun.bench.load import Call, Load, closed_loop, drive, open_loop
from llmrun.bench.plot.figures import Axis, Figure, Panel, Series
from llmrun.engine.engine import ChildEngine
from llmrun.engine.protocol import PromptOptions, Trial
from llmrun.engine.router import Lane, Routed, Router, Speed
from llmrun.experiments.experiment import Cell, Finding, Result, Table, judged, shown
from llmrun.experiments.lab import Lab, answered
from llmrun.experiments.simulated import SimulatedEngine, VirtualClock
from llmrun.experiments.spread import BARS, Spread
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.predict.elsewhere import Elsewhere
from llmrun.planning.predict.machines import parse
from llmrun.planning.predict.prediction import Question
from llmrun.units import UNKNOWN, duration, percent, significant

SHAPE, LEVEL = "qwen3-0.6b", "Q4_K_M"
SMALL = synth.Shape(12, 768, 2048, 12, 4, 32_000, n_ctx_train=4096)
"""0.1 B: for two engines on two cores."""
CPU_MACHINE, GPU_MACHINE = "7950X3D 64gb", "RTX 4090"
SIMULATED = "llama-8b"
POLICIES = ("first", "second", "router")
_WATCHED, _BULK = PromptOptions(), PromptOptions(bulk=True)
"""Answers that somebody reads as they are made, whose gaps are kept short; and those that are wanted as a whole."""


def _sampling(n_gen: int) -> SamplingConfig:
    return SamplingConfig(temperature=0, max_tokens=n_gen, ignore_eos=True)


def _call(n_prompt: int, n_gen: int, seed: int) -> Call:
    """A prompt of its own, so that no beginning is shared."""
    chance = random.Random(seed)
    return Call(" ".join(chance.choice("bcdefghi") for _ in range(n_prompt)), _sampling(n_gen))


def latency(lab: Lab) -> Result:
    widths = (1, 4, 16) if lab.quick else (1, 2, 4, 8, 16)
    n_prompt, n_gen = (64, 16) if lab.quick else (128, 32)

    def side_by_side(n: int, *, watched: bool = False) -> Cell:
        def take() -> Mapping[str, float | None]:
            engine = lab.engine(lab.model(SHAPE, LEVEL), lab.config(repack="off"))
            calls = [_call(n_prompt, n_gen, seed) for seed in range(2 * n if n > 2 else 4)]
            with engine.parallel(n, n_prompt + n_gen + 16) as parallel:
                return answered(drive(parallel, closed_loop(calls, n), _WATCHED if watched else _BULK))

        return Cell(f"{n} at a time{', watched' if watched else ''}", take)

    lab.measure([side_by_side(n) for n in widths])
    lab.measure([side_by_side(widths[-1], watched=True)], rounds=1 if lab.quick else 2)
    lab.unload()
    lab.measure([Cell("one of two engines", partial(_speeds, lab))], rounds=1)
    lab.measure([Cell(f"two engines, {policy}", partial(_two_engines, lab, policy)) for policy in POLICIES])
    loads = (0.5, 1.5) if lab.quick else (0.25, 0.5, 1.0, 1.5)
    capacity = capacity_of(speed_on(GPU_MACHINE), _GPU_WIDTH)
    simulated = {
        (load, policy): simulate(load * capacity, policy, 150 if lab.quick else 400)
        for load in loads
        for policy in POLICIES
    }

    one, most = (lab.spread(f"{n} at a time", "tps") for n in (1, widths[-1]))
    alone, crowded = (lab.spread(f"{n} at a time", "e2e_s") for n in (1, widths[-1]))
    findings = []
    claim = "Batches raise the throughput, and each request waits longer."
    if one and most and alone and crowded:
        text = (
            f"{widths[-1]} at a time: {significant(most.median / one.median)} × the tokens of one, each answer takes"
            f" {significant(crowded.median / alone.median)} × as long"
        )
        holds = most.median > one.median and crowded.median > alone.median
        why = ""
        if watched := lab.spread(f"{widths[-1]} at a time, watched", "tps"):
            why = (
                f"Of answers that somebody watches, whose gaps are kept short while prompts of others are computed,"
                f" {widths[-1]} at a time make {significant(watched.median / one.median)} × the tokens."
            )
        findings.append(Finding(claim, "mlops", text, judged([holds]), why))
    else:
        findings.append(Finding(claim, "mlops", UNKNOWN, "not measured"))
    findings += [_router_finding(lab), *_simulated_findings(simulated, loads)]
    widths_table = Table(
        f"{SHAPE} at {LEVEL}, prompts of {n_prompt} and answers of {n_gen} tokens, so many always being answered",
        (">at a time", ">first token, s", ">whole answer, s", ">a token, ms", ">all together, t/s"),
        tuple(
            (key.removesuffix(" at a time"), *(shown(lab.spread(key, name), scale) for name, scale in _COLUMNS))
            for key in (*(f"{n} at a time" for n in widths), f"{widths[-1]} at a time, watched")
        ),
    )
    router_table = Table(
        "Two engines here, one thread each: the first answers one at a time, the second eight",
        ("requests go to", ">median answer, s", ">9 of 10 within, s", ">all together, t/s"),
        tuple(
            (
                _NAMES[policy],
                shown(lab.spread(f"two engines, {policy}", "e2e_s")),
                shown(lab.spread(f"two engines, {policy}", "e2e_90_s")),
                shown(lab.spread(f"two engines, {policy}", "tps")),
            )
            for policy in POLICIES
        ),
    )
    simulated_table = Table(
        (
            f"{SIMULATED} at {LEVEL}, simulated with plan's times: {CPU_MACHINE} (the first) and {GPU_MACHINE}"
            " (the second)"
        ),
        (
            ">of what the GPU can do",
            "requests go to",
            ">median answer",
            ">9 of 10 within",
            ">small ones to the first",
            ">large ones to the first",
        ),
        tuple(
            (
                percent(load),
                _NAMES[policy],
                duration(found["e2e_s"]),
                duration(found["e2e_90_s"]),
                percent(found["small_first"]),
                percent(found["large_first"]),
            )
            for (load, policy), found in simulated.items()
        ),
    )
    throughput = [(n, lab.spread(f"{n} at a time", "tps")) for n in widths]
    waits = [(n, lab.spread(f"{n} at a time", "e2e_s")) for n in widths]
    ticks = tuple((float(n), str(n)) for n in widths)
    panels = (
        Panel("sweep", "all together", Axis("answers at a time", "log", ticks), Axis("tokens per second"),
              (Series("tokens per second", _points(throughput)),)),
        Panel("sweep", "one answer", Axis("answers at a time", "log", ticks), Axis("seconds"),
              (Series("seconds", _points(waits)),)),
    )  # fmt: skip
    return Result(
        tuple(findings),
        (
            "A closed loop of requests, all answers of the same length, no two prompts alike, answers wanted as a"
            " whole; medians over requests, then over rounds.",
            "Two engines: a 0.1 B shape, three of four requests small (32 + 16 tokens), the others large (384 +"
            " 64); they come at"
            " random, the same times for each way of sending them.",
            "Simulated: no engine computes; prefill rate and step time are plan's for each machine, further"
            " sequences in a step"
            " cost what a token of a prompt does. Requests are small (64 + 64) or large (2,048 + 256).",
        ),
        (widths_table, router_table, simulated_table),
        {"": Figure(f"{SHAPE} {LEVEL}: answers side by side", panels, (BARS,))},
        (
            (
                "Two engines of one thread each share this machine's memory: what a router gains there is what its"
                " logic is worth, and no more."
            ),
        ),
    )


_COLUMNS = (("ttft_s", 1.0), ("e2e_s", 1.0), ("tpot_s", 1e3), ("tps", 1.0))
_NAMES = {"first": "the first alone", "second": "the second alone", "router": "where it is done first"}


def _points(found: Sequence[tuple[int, Spread | None]]) -> tuple[Any, ...]:
    return tuple(spread.point(n) for n, spread in found if spread)


# -- two engines here ---


def mixed_load(n: int, per_s: float, small: tuple[int, int], large: tuple[int, int], seed: int = 7) -> Load:
    """Three small requests to each large one, in an order that is the same every time."""
    chance = random.Random(seed)
    sizes = [large if chance.random() < 0.25 else small for _ in range(n)]
    return open_loop([_call(*each, i) for i, each in enumerate(sizes)], per_s, seed)


def _two_engines(lab: Lab, policy: str) -> dict[str, float | None]:
    path = lab.model(SMALL, LEVEL, "small-0.1b")
    config = lab.config(n_threads=1, n_threads_batch=1, repack="off")
    n_ctx = sum(_LARGE) + 32
    speed = Speed(*(lab.values("one of two engines", name)[0] for name in ("prefill_tps", "one_step_s", "more_s")))
    with ExitStack() as stack:
        engines = [stack.enter_context(closing(ChildEngine(path, open_header(path), config))) for _ in range(2)]
        widths = (1, 8)
        lanes = [
            Lane(name, stack.enter_context(engine.parallel(width, n_ctx)), speed)
            for name, engine, width in zip(("first", "second"), engines, widths, strict=True)
        ]
        used = {"first": lanes[:1], "second": lanes[1:], "router": lanes}[policy]
        router = Router(used, n_prompt_of=lambda prompt: len(str(prompt).split()))
        # More than the first can do alone, and less than both together.
        load = mixed_load(16 if lab.quick else 32, 1.2 * capacity_of(speed, 1, _SMALL, _LARGE), _SMALL, _LARGE)
        found = answered(drive(router, load, _BULK))  # type: ignore[arg-type]
        return {**found, "first": lanes[0].n_answered / len(load.calls)}


_SMALL, _LARGE = (32, 16), (384, 64)
_SMALL_THERE, _LARGE_THERE = (64, 64), (2048, 256)
"""Tokens of prompt and answer: here, and of what is simulated. One in four is large."""
_SHARE_LARGE = 0.25
_CPU_WIDTH, _GPU_WIDTH = 4, 32


def capacity_of(
    speed: Speed, n_seq: int, small: tuple[int, int] = _SMALL_THERE, large: tuple[int, int] = _LARGE_THERE
) -> float:
    """Requests a second that an engine can answer, so many side by side."""
    mean_s = (1 - _SHARE_LARGE) * speed.work_s(*small, n_seq - 1) + _SHARE_LARGE * speed.work_s(*large, n_seq - 1)
    return 1 / mean_s


def _speeds(lab: Lab) -> dict[str, float | None]:
    """Of one thread, once: so that every policy gets the same load."""
    path = lab.model(SMALL, LEVEL, "small-0.1b")
    config = lab.config(n_threads=1, n_threads_batch=1, repack="off")
    speed = _speed_of(lab.engine(path, config), 512)
    lab.unload()
    return {"prefill_tps": speed.prefill_tps, "one_step_s": speed.step_s, "more_s": speed.more_s}


def _speed_of(engine: ChildEngine, n_ctx: int) -> Speed:
    prefill = engine.run_trial(Trial(128, 8, n_ctx=n_ctx))
    four = engine.run_trial(Trial(16, 8, n_seq=4, n_ctx=n_ctx))
    step_s = sum(prefill.step_s[1:]) / len(prefill.step_s[1:])
    of_four = sum(four.step_s[1:]) / len(four.step_s[1:])
    return Speed(128 / (prefill.prefill_s or 1.0), step_s, max(0.0, (of_four - step_s) / 3))


def _router_finding(lab: Lab) -> Finding:
    claim = "Requests that go where they are answered first are answered sooner than by the better engine alone."
    first, second, routed = (lab.spread(f"two engines, {policy}", "e2e_s") for policy in POLICIES)
    if not (first and second and routed):
        return Finding(claim, "mlops", UNKNOWN, "not measured")
    best = min(first.median, second.median)
    text = (
        f"two engines here, a thread each: the median answer takes {significant(routed.median / best)} × that"
        " of the better one"
    )
    return Finding(claim, "mlops", text, judged([routed.median < 0.97 * best]))


# -- simulated ---


def speed_on(machine: str, shape: str = SIMULATED, level: str = LEVEL) -> Speed:
    """By plan. A step of several sequences takes what a prompt's token does for each further one."""
    header = synth.header_of(synth.SHAPES[shape], level)
    found = Elsewhere(parse(machine)).predict(header, Question(512, 256, (512,)))
    rate, prefill = found.decode_tps[512], found.prefill_tps
    assert rate is not None
    prefill_tps = prefill.mid if prefill else 20 * rate.mid
    return Speed(prefill_tps, 1 / rate.mid, 1 / prefill_tps)


def simulate(per_s: float, policy: str, n: int) -> dict[str, float | None]:
    """Seconds of answers that come so many a second, and the shares of small and of large ones that went to the first
    machine."""
    clock = VirtualClock()
    speeds = speed_on(CPU_MACHINE), speed_on(GPU_MACHINE)
    engines = (SimulatedEngine(each, n, clock) for each, n in zip(speeds, (_CPU_WIDTH, _GPU_WIDTH), strict=True))
    lanes = [
        Lane(name, engine, speed)  # type: ignore[arg-type]
        for name, engine, speed in zip(("first", "second"), engines, speeds, strict=True)
    ]
    used = {"first": lanes[:1], "second": lanes[1:], "router": lanes}[policy]
    router = _Counting(used, n_prompt_of=lambda prompt: len(str(prompt).split()), clock=clock)
    load = mixed_load(n, per_s, _SMALL_THERE, _LARGE_THERE)
    outcomes = drive(router, load, _BULK, clock=clock, sleep=clock.sleep)  # type: ignore[arg-type]
    of_small, of_large = (router.went[size] for size in (_SMALL_THERE[1], _LARGE_THERE[1]))
    return {
        **answered(outcomes),
        "small_first": of_small.count("first") / len(of_small) if of_small else None,
        "large_first": of_large.count("first") / len(of_large) if of_large else None,
    }


class _Counting(Router):
    """Knows where requests went, by the tokens that they wanted."""

    went: dict[int, list[str]]

    def submit(self, *given: Any, **named: Any) -> Routed:
        routed = super().submit(*given, **named)
        self.went.setdefault(given[1].max_tokens, []).append(routed.lane)
        return routed

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.went = {_SMALL_THERE[1]: [], _LARGE_THERE[1]: []}


def _simulated_findings(
    found: Mapping[tuple[float, str], Mapping[str, float | None]], loads: Sequence[float]
) -> list[Finding]:
    claim, other = (
        "A router in front of CPU and GPU gains over the GPU alone.",
        "Small single requests belong to the CPU, batches to the GPU.",
    )
    parts, gains, shares = [], [], []
    for load in loads:
        routed, alone = (found[load, policy]["e2e_90_s"] for policy in ("router", "second"))
        small, large = (found[load, "router"][name] for name in ("small_first", "large_first"))
        if routed and alone:
            gains.append(routed / alone)
            parts.append(f"{significant(routed / alone)} × at {percent(load)}")
        if small is not None and large is not None:
            shares.append((small, large))
    text = f"nine of ten answers, beside the {GPU_MACHINE} alone, by its load: {', '.join(parts)}"
    verdict = judged([gain < 0.95 for gain in gains])
    why = "" if verdict == "holds" else "As long as the GPU keeps up, it is the faster one for small requests, too."
    small, large = (sum(each[i] for each in shares) / max(1, len(shares)) for i in (0, 1))
    went = f"of small requests {percent(small)} go to the {CPU_MACHINE}, of large ones {percent(large)}"
    is_so = [a > b and a > 0.05 for a, b in shares]
    return [
        Finding(claim, "mlops", text, verdict, why, predicted=True),
        Finding(other, "mlops", f"{went}, over all loads", judged(is_so), predicted=True),
    ]
