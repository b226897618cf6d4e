"""Experiment 8: layers on a device, where that crosses the CPU alone; and sequences until the device's memory is full.

Without a device that was asked for, a worker of llama.cpp on loopback with one thread is it, and the CPU's side has one
thread as well: both share this machine's cores and memory, so that what is shown is how it works, not what a GPU gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from llmrun.bench.load import Call, closed_loop, drive
from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.engine.engine import plan_load
from llmrun.engine.protocol import PromptOptions, Trial
from llmrun.engine.rpc.host import Offer, Server
from llmrun.errors import LlmrunError
from llmrun.experiments.experiment import Cell, Finding, Result, Table, shown
from llmrun.experiments.lab import Lab
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
            return
        self.n_threads = 1
        server = stack.enter_context(Server(Offer(port=0, limit_bytes=weight_bytes + _ROOM_BYTES, n_threads=1)))
        self.name, self.rpc = "a worker on loopback", (f"127.0.0.1:{server.port}",)

    def config(self, lab: Lab, n_gpu_layers: object, **more: object) -> LoadConfig:
        # A worker of our own needs no room for a screen.
        left = {} if self.given else {"fit_target": _LEFT_BYTES}
        offload = Offload(n_gpu_layers=n_gpu_layers, devices=self.given or None, **left)  # type: ignore[arg-type]
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
    ahead = [n for n, rate in rates.items() if n and rate and alone and rate.median > alone.median]
    crosses = min(ahead, default=None)
    known = [(rate, guess) for n in layers if (rate := rates[n]) and (guess := predicted[n])]
    findings = []
    if alone and (whole := rates.get(n_all)):
        text = f"on {device.name}: all layers {whole.text()} t/s, none {alone.text()}; " + (
            f"from {crosses} layers on it is faster than the CPU alone"
            if crosses
            else "no number of layers is faster than the CPU alone"
        )
        if known:
            worst = max(abs(guess.median / rate.median - 1) for rate, guess in known)
            text += f"; the predicted curve is off by {significant(100 * worst)} % at most"
        claim = "Layers have to be tuned to the device: more of them are not always faster."
        findings.append(
            Finding(claim, "mlops", text, "holds" if crosses != min(n for n in layers if n) else "holds in part")
        )
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
            f"The device: {device.name}, {'with one thread, ' if not device.given else ''}whose memory is the weights'"
            f" {size(header.weight_bytes)} and"
            f" {size(_ROOM_BYTES)} more." if not device.given else f"The device: {device.name}.",
            (f"Full: all layers there, answers side by side with {_N_CTX} tokens of context each, until one more"
            " does not fit."),
        ),
        (
            Table("By layers", (">layers", ">decode, t/s", ">predicted, t/s", ">prompt, t/s"), layer_rows),
            Table("By answers at a time",
                  (">at a time", "admitted", ">median answer, s", ">all together, t/s", ">layers by auto"),
                  crowd_rows),
        ),
        {"": Figure(f"{SHAPE} {LEVEL} on {device.name}", tuple(panels), (("error bars: the least and the most of"
                                                                         " the rounds"),))},
        ("A worker shares the cores and the memory of this machine: its t/s says nothing of a GPU's.",),
    )  # fmt: skip


def _predicted(lab: Lab, device: _Device, path: object, layers: list[int]) -> dict[str, float | None]:
    from llmrun.tuning.curve import curve

    header = open_header(path)  # type: ignore[arg-type]
    found: Curve = curve(header, Question(128, 16, (128,), device.config(lab, "auto")), None, runs=False)
    by_layers = {point.n_gpu_layers: 1 / point.step_s.mid for point in found.points}
    return {f"tps_{n}": by_layers.get(n) for n in layers}


def _of_crowd(n: int) -> str:
    return f"{n} answers, all layers there"


def _crowd(lab: Lab, device: _Device, path: object, n: int) -> Cell:
    def take() -> Mapping[str, float | None]:
        config = device.config(lab, "all", n_ctx=_N_CTX)
        header = open_header(path)  # type: ignore[arg-type]
        plan_load(path, header, config, expected=Expected(_N_CTX, _N_CTX, n))  # type: ignore[arg-type]
        engine = lab.engine(path, config)  # type: ignore[arg-type]
        try:
            sampling = SamplingConfig(temperature=0, max_tokens=12, ignore_eos=True)
            with engine.parallel(n, _N_CTX) as parallel:
                found = drive(
                    parallel, closed_loop([Call("b " * 32, sampling) for _ in range(n + 2)], n), PromptOptions()
                )
        finally:
            lab.unload()
        return {"e2e_s": found.e2e_s(0.5), "tps": found.tokens_per_s}

    return Cell(_of_crowd(n), take)


def _auto(lab: Lab, device: _Device, path: object, sequences: tuple[int, ...]) -> dict[str, float | None]:
    """Layers that "auto" puts on the device, for as many answers."""
    header = open_header(path)  # type: ignore[arg-type]
    found: dict[str, float | None] = {}
    for n in sequences:
        config = device.config(lab, "auto", n_ctx=_N_CTX)
        try:
            plan = plan_load(path, header, config, expected=Expected(_N_CTX, _N_CTX, n))  # type: ignore[arg-type]
        except LlmrunError:
            found[f"layers_{n}"] = None
        else:
            found[f"layers_{n}"] = float(plan.layout.n_gpu_layers)
    return found


def _crowd_row(lab: Lab, n: int) -> tuple[str, ...]:
    error = lab.cells.errors.get(_of_crowd(n))
    auto = lab.spread("auto", f"layers_{n}")
    return (
        str(n),
        "yes" if error is None else f"no: {error}",
        shown(lab.spread(_of_crowd(n), "e2e_s")),
        shown(lab.spread(_of_crowd(n), "tps")),
        f"{auto.median:.0f}" if auto else UNKNOWN,
    )


def _memory_findings(lab: Lab, sequences: tuple[int, ...]) -> list[Finding]:
    claim = "Too much for the device's memory crashes or slows."
    refused = [n for n in sequences if _of_crowd(n) in lab.cells.errors]
    admitted = [n for n in sequences if lab.spread(_of_crowd(n), "e2e_s")]
    if not refused or not admitted:
        return [Finding(claim, "mlops", UNKNOWN, "not measured", "All of them fit.")]
    auto = lab.spread("auto", f"layers_{refused[0]}")
    slower = (lab.spread(_of_crowd(n), "e2e_s") for n in (admitted[0], admitted[-1]))
    first, last = (each.median if each else 0.0 for each in slower)
    text = (
        f"up to {admitted[-1]} at a time fit, an answer then takes {significant(last / first)} × as long;"
        f" {refused[0]} are refused"
        " before anything is loaded" + (f", and auto puts {auto.median:.0f} layers there instead" if auto else "")
    )
    return [
        Finding(claim, "mlops", text, "holds in part", "It slows; nothing crashes, as what does not fit is not begun.")
    ]
