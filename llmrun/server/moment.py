"""What each model does at this moment, for whoever watches: figures of the engine's meter, and as they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrun.engine.meter import Meter
from llmrun.machine.proc import Proc
from llmrun.planning.footprint import DecodeReads
from llmrun.server.runner import Runner
from llmrun.units import UNKNOWN, bandwidth, rate, size


def of_all(runners: Mapping[str, Runner]) -> list[dict[str, Any]]:
    return [of_runner(name, runner) for name, runner in runners.items()]


def of_runner(name: str, runner: Runner) -> dict[str, Any]:
    """A document: tokens per second of all answers together, bytes per second that decoding reads, bytes of memory;
    null is not known."""
    engine, answers = runner.engine, list(runner.answers())
    rates = [found for answer in answers if (found := answer.meter.recent_tps()) is not None]
    tps = sum(rates) if rates else None
    reads = _reads(engine.reads, [answer.meter for answer in answers], max(rates, default=None)) if engine else None
    memory = Proc().memory(engine.pid) if engine is not None and engine.alive else None
    ram = memory.rss_bytes if memory is not None else None
    plan = engine.plan.footprint if engine is not None else None
    vram = sum(need.total for device, need in plan.by_device.items() if device != "CPU") if plan is not None else None
    shown = {
        "tps": UNKNOWN if tps is None else rate(tps).removesuffix(" t/s"),
        "active": f"{runner.n_active} of {runner.n_slots or UNKNOWN}",
        "waiting": str(runner.n_waiting),
        "reads": bandwidth(reads),
        "ram": size(ram),
        "vram": size(vram) if vram else UNKNOWN,
    }
    return {
        "model": name,
        "state": runner.state,
        "n_slots": runner.n_slots or None,
        "n_ctx": runner.width.n_ctx_most if runner.width else None,
        "n_active": runner.n_active,
        "n_waiting": runner.n_waiting,
        "tokens_per_s": tps,
        "read_bytes_per_s": reads,
        "rss_bytes": ram,
        "vram_bytes": vram,
        "shown": shown,
    }


def _reads(reads: DecodeReads, meters: list[Meter], steps_per_s: float | None) -> float | None:
    """A step reads the weights once for all, and the keys and values of each."""
    of_each = [found for meter in meters if (found := reads.at_depth(meter.n_context)) is not None]
    if not of_each or steps_per_s is None:
        return None
    return (reads.weight_bytes + sum(each - reads.weight_bytes for each in of_each)) * steps_per_s
