"""Experiment 8: layers on a device, where that crosses the CPU alone; and sequences until the device's memory is full.

Without a device that was asked for, a worker of llama.cpp on loopback with one thread is it, and the CPU's side has one
thread as well: both share this machine's cores and memory, so that what is shown is how it works, not what a GPU gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from llmrun.bench.load import Call, closed_loop, drive
from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.engine.engine import plan_load
from llmrun.engine.protocol import PromptOptions, Trial
from llmrun.engine.rpc.host import Offer, Server
from llmrun.errors import LlmrunError, OutOfMemory
from llmrun.experiments.experiment import Cell, Finding, Result, Table, shown
from llmrun.experiments.lab import Lab, answered
from llmrun.experiments.spread import BARS, Spread
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig, Offload
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import CPU
from llmrun.planning.load_plan import Expected
from llmrun.planning.predict.curve import Curve
from llmrun.planning.predict.prediction import Question
from llmrun.units import UNKNOWN, significant, size

SHAPE, LEVEL = "qwen3-0.6b", "Q4_K_M"
_N_CTX = 1024
_ROOM_BYTES = 700 << 20
"""Of the worker, beside the weights: a handful of sequences of `_N_CTX` tokens."""
_LEFT_BYTES = 32 << 20


class _Device:
    """What layers are put on: devices that were asked for, or a worker of our own."""

    def __init__(self, lab: Lab, stack: ExitStack, weight_bytes: int) -> None:
        self.given = tuple(name for name in lab.options.devices if name != CPU)
        if self.given:
            self.name, self.n_threads, self.rpc = ", ".join(self.given), lab.n_threads, lab.options.rpc
            self.is_ours = False
            return
        self.n_threads = 1
        server = stack.enter_context(Server(Offer(port=0, limit_bytes=weight_bytes + _ROOM_BYTES, n_threads=1)))
        self.name, self.rpc = "a worker on loopback", (f"127.0.0.1:{server.port}",)
        self.given = tuple(f"RPC{i}" for i, _ in enumerate(server.devices))
        self.is_ours = True

    def config(self, lab: Lab, n_gpu_layers: object, **more: object) -> LoadConfig:
        # A worker of our own needs no room for a screen.
        left = {"fit_target": _LEFT_BYTES} if self.is_ours else {}
        offload = Offload(n_gpu_layers=n_gpu_layers, devices=self.given, **left)  # type: ignore[arg-type]
        threads = {"n_threads": self.n_threads, "n_threads_batch": self.n_threads}
        return lab.config(offload=offload, rpc=self.rpc, repack="off", **threads, **more)


def offload(lab: Lab) -> Result:
    path = lab.model(SHAPE, LEVEL)
    header = open_header(path)
    n_all = (header.n_layer or 0) + 1
    layers = sorted({0, 4, 8, 14, 20, 24, n_all} if not lab.quick else {0, 8, 20, n_all})
    n_prompt = 128 if lab.quick else 256
    with ExitStack() as stack:
        device = _Device(lab, stack, header.weight_bytes)

        def on(n: int) -> Cell:
            def take() -> Mapping[str, float | None]:
                engine = lab.engine(path, device.config(lab, n))
                engine.run_trial(Trial(32, 2, n_ctx=512))
                done = engine.run_trial(Trial(n_prompt, 16, n_ctx=512))
                lab.unload()  # a worker serves one client at a time
                return {"tps": len(done.step_s) / sum(done.step_s), "pp_tps": n_prompt / (done.prefill_s or 1.0)}

            return Cell(f"{n} layers", take)

        lab.measure([on(n) for n in layers])
        lab.measure([Cell("predicted", lambda: _predicted(lab, device, path, layers))], rounds=1)
        sequences = (1, 2, 4, 16) if lab.quick else (1, 2, 4, 6, 8, 16)
        lab.measure([_crowd(lab, device, path, n) for n in sequences], rounds=1 if lab.quick else 2)
        lab.unload()
        lab.measure([Cell("auto", lambda: _auto(lab, device, path, sequences))], rounds=1)
    rates = {n: lab.spread(f"{n} layers", "tps") for n in layers}
    predicted = {n: lab.spread("predicted", f"tps_{n}") for n in layers}
    alone = rates.get(0)
    findings = [_layers_finding(device.name, n_all, rates, predicted)]
    findings += _memory_findings(lab, sequences)
    layer_rows = tuple(
        (str(n), shown(rates[n]), shown(predicted[n]), shown(lab.spread(f"{n} layers", "pp_tps"))) for n in layers
    )
    crowd_rows = tuple(_crowd_row(lab, n) for n in sequences)
    measured = tuple(rate.point(n) for n, rate in rates.items() if rate)
    series = [Series("measured", measured)]
    if guessed := tuple(Point(n, guess.median) for n, guess in predicted.items() if guess):
        series.append(Series("predicted by slices", guessed))
    if alone:
        series.append(Series("CPU alone", tuple(Point(n, alone.median) for n in (layers[0], layers[-1])), "roof"))
    waits = tuple(spread.point(n) for n in sequences if (spread := lab.spread(_of_crowd(n), "e2e_s")))
    panels = [Panel("sweep", "decode", Axis(f"layers on {device.name}"), Axis("tokens per second"), tuple(series))]
    if waits:
        panels.append(Panel("sweep", "one answer, until the memory is full", Axis("answers at a time"), Axis("seconds"),
                            (Series("seconds", waits),)))  # fmt: skip
    return Result(
        tuple(findings),
        (
            f"{SHAPE} at {LEVEL}: {n_all} layers with the output; a prompt of {n_prompt} tokens and 16 decoded,"
            f" {device.n_threads}"
            f" thread{'s' * (device.n_threads > 1)} for what stays in RAM.",
            f"The device: {device.name}, with one thread, whose memory is the weights' {size(header.weight_bytes)} and"
            f" {size(_ROOM_BYTES)} more." if device.is_ours else f"The device: {device.name}.",
            (f"Full: all layers there, answers side by side with {_N_CTX} tokens of context each, until one more"
            " does not fit."),
        ),
        (
            Table("By layers", (">layers", ">decode, t/s", ">predicted, t/s", ">prompt, t/s"), layer_rows),
            Table("By answers at a time",
                  (">at a time", "admitted", ">median answer, s", ">all together, t/s", ">layers by auto"),
                  crowd_rows),
        ),
        {"": Figure(f"{SHAPE} {LEVEL} on {device.name}", tuple(panels), (BARS,))},
        (("A worker shares the cores and the memory of this machine: its t/s says nothing of a GPU's.",)
         if device.is_ours else ()),
    )  # fmt: skip


def _predicted(lab: Lab, device: _Device, path: Path, layers: list[int]) -> dict[str, float | None]:
    from llmrun.tuning.curve import curve

    header = open_header(path)
    found: Curve = curve(header, Question(128, 16, (128,), device.config(lab, "auto")), None, runs=False)
    by_layers = {point.n_gpu_layers: 1 / point.step_s.mid for point in found.points}
    return {f"tps_{n}": by_layers.get(n) for n in layers}


def _of_crowd(n: int) -> str:
    return f"{n} answers, all layers there"


def _crowd(lab: Lab, device: _Device, path: Path, n: int) -> Cell:
    def take() -> Mapping[str, float | None]:
        config = device.config(lab, "all", n_ctx=_N_CTX)
        sampling = SamplingConfig(temperature=0, max_tokens=12, ignore_eos=True)
        calls = [Call("b " * 32, sampling) for _ in range(n + 2)]
        try:
            with lab.engine(path, config).parallel(n, _N_CTX) as parallel:
                found = drive(parallel, closed_loop(calls, n), PromptOptions(bulk=True))
        except OutOfMemory:
            return {"refused": 1.0}
        finally:
            lab.unload()
        return {**answered(found), "refused": 0.0}

    return Cell(_of_crowd(n), take)


def _auto(lab: Lab, device: _Device, path: Path, sequences: tuple[int, ...]) -> dict[str, float | None]:
    """Layers that "auto" puts on the device, for as many answers."""
    header = open_header(path)
    found: dict[str, float | None] = {}
    for n in sequences:
        config = device.config(lab, "auto", n_ctx=_N_CTX)
        try:
            plan = plan_load(path, header, config, expected=Expected(_N_CTX, _N_CTX, n))
        except LlmrunError:
            found[f"layers_{n}"] = None
        else:
            found[f"layers_{n}"] = float(plan.layout.n_gpu_layers)
    return found


def _crowd_row(lab: Lab, n: int) -> tuple[str, ...]:
    key = _of_crowd(n)
    auto, refused = lab.spread("auto", f"layers_{n}"), lab.spread(key, "refused")
    admitted = "no" if refused and refused.high else "yes" if refused else f"it failed: {lab.cells.errors.get(key, '')}"
    figures = (shown(lab.spread(key, name)) for name in ("e2e_s", "tps"))
    return str(n), admitted, *figures, f"{round(auto.median)}" if auto else UNKNOWN


def _layers_finding(
    name: str, n_all: int, rates: Mapping[int, Spread | None], predicted: Mapping[int, Spread | None]
) -> Finding:
    claim = "Layers have to be tuned to the device: more of them are not always faster."
    known = {n: rate.median for n, rate in rates.items() if rate}
    if 0 not in known or len(known) < 3:
        return Finding(claim, "mlops", UNKNOWN, "not measured")
    alone = known.pop(0)
    crosses = min((n for n, rate in known.items() if rate > alone), default=None)
    best = max(known, key=lambda n: known[n])
    where = f"from {crosses} layers on it is ahead" if crosses else "no number of layers is ahead"
    text = (
        f"on {name}: {significant(known[best])} t/s at best, with {best} of {n_all} layers, the CPU alone"
        f" {significant(alone)}; {where}"
    )
    errors = [abs(guess.median / known[n] - 1) for n in known if (guess := predicted.get(n))]
    if errors:
        text += f"; the predicted curve is off by {significant(100 * max(errors))} % at most"
    rises = best == n_all and crosses == min(known)
    return Finding(claim, "mlops", text, "does not hold" if rises else "holds")


def _memory_findings(lab: Lab, sequences: tuple[int, ...]) -> list[Finding]:
    claim = "Too much for the device's memory crashes or slows."
    refused = [n for n in sequences if (found := lab.spread(_of_crowd(n), "refused")) and found.high]
    admitted = [n for n in sequences if lab.spread(_of_crowd(n), "e2e_s") and n not in refused]
    crashed = [n for n in sequences if _of_crowd(n) in lab.cells.errors]
    if crashed:
        text = f"{crashed[0]} at a time: {lab.cells.errors[_of_crowd(crashed[0])]}"
        return [Finding(claim, "mlops", text, "holds")]
    if not refused or not admitted:
        why = "All of them fit." if admitted else "None of them fits."
        return [Finding(claim, "mlops", UNKNOWN, "not measured", why)]
    auto = lab.spread("auto", f"layers_{refused[0]}")
    first, last = (lab.spread(_of_crowd(n), "e2e_s") for n in (admitted[0], admitted[-1]))
    slower = last.median / first.median if first and last else 1.0
    text = (
        f"{admitted[-1]} at a time fit, an answer then takes {significant(slower)} × as long; {refused[0]} are refused"
        + (f", and auto puts {round(auto.median)} layers there instead" if auto else "")
    )
    why = "What does not fit is refused before it is computed: nothing crashes."
    return [Finding(claim, "mlops", text, "holds in part" if slower > 1.2 else "does not hold", why)]
