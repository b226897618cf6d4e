"""Runs tests on a model and yields a row for each, as it is measured.

    cases ── same settings? one engine ──► warm-up ─► sample, ceiling, sample, ceiling, … ─► Row

Bare tests (pp, tg, pg) are llama-bench's: random tokens, nothing sampled (`engine/trial.py`). "e2e" is what a user
waits for: a text through template and tokenizer, tokens sampled and turned into text again. The ceilings are measured
between the samples, not before them: on a machine that others use as well they drift by tens of percent within minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from types import TracebackType

from llmrun.bench.exports import asked_settings
from llmrun.bench.record import Caveat, Row, Sample, Steps, Test
from llmrun.clock import utc
from llmrun.engine.engine import Engine
from llmrun.engine.jobs.roofline import Prober
from llmrun.engine.layout import by_device, settings_of
from llmrun.errors import EngineCrashed, OutOfMemory, UsageError
from llmrun.machine.energy import EnergyMeter, Joules, measure_idle
from llmrun.machine.environment import on_battery
from llmrun.machine.hardware import cpu_mhz
from llmrun.machine.sampler import NoGpus, Nvml, Sampler, Usage, open_nvml
from llmrun.models.resolve import Model
from llmrun.options.config import LoadConfig, SamplingConfig
from llmrun.planning.footprint import CPU, flops_per_token, step_reads
from llmrun.planning.placement import main_type
from llmrun.units import percent

_PROBE_S = 0.1
"""Of each ceiling, between two samples."""
_BUSY_CORES = 0.1
"""Of others, from which on it is said."""
_SPREAD = 0.05
"""Standard deviation of the samples over their mean, from which on it is said."""


@dataclass(frozen=True)
class Case:
    """One row to be."""

    config: LoadConfig
    test: Test


@dataclass(frozen=True)
class Method:
    """How every case is measured.

    Attributes:
        repetitions: samples of each.
        warm_up: whether one run of each kind comes before, uncounted: it faults the weights in.
        delay_s: of rest before each case.
        ceilings: whether to measure what the memories can do, beside the samples.
        price_kwh, price_hour: money for a kWh and for an hour of this machine, in whatever currency.
    """

    repetitions: int = 5
    warm_up: bool = True
    delay_s: float = 0.0
    ceilings: bool = True
    price_kwh: float | None = None
    price_hour: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.repetitions <= 10_000:
            raise UsageError(f"-r/--repetitions: {self.repetitions} is outside 1 to 10000")
        if not 0 <= self.delay_s <= 86_400:
            raise UsageError(f"--delay: {self.delay_s} is outside 0 to 86400 seconds")
        for option, price in (("--price-kwh", self.price_kwh), ("--price-hour", self.price_hour)):
            if price is not None and not 0 <= price <= 1e9:
                raise UsageError(f"{option}: {price} is no price")


Tick = Callable[[Case, int, int], None]
"""Called with the case, the samples that it has and those it will have, whenever there is one more."""


def run(
    model: Model,
    cases: Sequence[Case],
    method: Method,
    *,
    on_engine: Callable[[Engine], None] | None = None,
    on_tick: Tick | None = None,
) -> Iterator[Row]:
    """A row for every case, in order; one that can't be measured has its `error` and no samples.

    `on_engine` is called with every engine that is opened: once per change of settings.
    """
    started = time.monotonic()
    tools = _Tools(open_nvml())
    with ExitStack() as stack:
        tools.prober = stack.enter_context(Prober()) if method.ceilings else None
        for config, group in groupby(cases, key=lambda case: case.config):
            same = list(group)
            n_ctx = max(n_ctx_of(case.test) for case in same)
            try:
                engine = Engine(model.path, model.header, replace(config, n_ctx=n_ctx))
            except (OutOfMemory, EngineCrashed) as error:
                yield from (Row(case.test, asked_settings(config), error=error.message, started=utc()) for case in same)
                continue
            with engine:
                if on_engine:
                    on_engine(engine)
                tools.measure_idle()
                for i, case in enumerate(same):
                    time.sleep(method.delay_s)
                    measured = _Measured(engine, case, method, tools, started, n_ctx)
                    yield measured.row(on_tick, load_s=_load_s(engine) if i == 0 else None)
                    if not engine.alive:
                        rest = same[i + 1 :]
                        yield from (Row(each.test, asked_settings(config), error="the engine is gone") for each in rest)
                        break


def run_interleaved(
    model: Model,
    a: LoadConfig,
    b: LoadConfig,
    tests: Sequence[Test],
    method: Method,
    *,
    on_engine: Callable[[Engine], None] | None = None,
    on_tick: Tick | None = None,
) -> Iterator[tuple[Row, Row]]:
    """Both settings in turn, with both engines loaded: a pair of rows for every test, the i-th samples taken together.

    Who is first changes from pair to pair, so that a machine that drifts favours neither. Raises what `Engine` raises:
    half a comparison is none.
    """
    started = time.monotonic()
    tools = _Tools(open_nvml())
    n_ctx = max(n_ctx_of(test) for test in tests)
    with ExitStack() as stack:
        tools.prober = stack.enter_context(Prober()) if method.ceilings else None
        engines = [
            stack.enter_context(Engine(model.path, model.header, replace(config, n_ctx=n_ctx))) for config in (a, b)
        ]
        for engine in engines if on_engine else ():
            on_engine(engine)  # type: ignore[misc]
        tools.measure_idle()
        for test in tests:
            time.sleep(method.delay_s)
            sides = [
                _Measured(engine, Case(config, test), method, tools, started, n_ctx)
                for engine, config in zip(engines, (a, b), strict=True)
            ]
            with sides[0], sides[1]:
                for i in range(method.repetitions):
                    for side in sides if i % 2 == 0 else reversed(sides):
                        if not side.sample():
                            raise EngineCrashed(side.error or "a sample could not be taken")
                        side.probe()
                    if on_tick:
                        on_tick(sides[0].case, i + 1, method.repetitions)
            yield sides[0].made(None), sides[1].made(None)


def n_ctx_of(test: Test) -> int:
    """Tokens of context that a test takes, of all its sequences; the template of "e2e" has room as well."""
    return test.n_seq * (test.n_depth + test.n_prompt + test.n_gen) + (256 if test.kind == "e2e" else 0)


def _load_s(engine: Engine) -> float:
    return engine.loaded.end_s - engine.loaded.begin_s


class _Tools:
    """What measures beside the engine, for all cases together."""

    def __init__(self, nvml: Nvml | NoGpus) -> None:
        self.nvml = nvml
        self.joules = Joules.open(nvml=nvml)
        self.idle_w: dict[str, float] = {}
        self.prober: Prober | None = None

    def measure_idle(self) -> None:
        """With a model loaded and nobody asking: what is used beyond this is the computation's."""
        self.idle_w = measure_idle(self.joules)


class _Measured:
    """One case being measured."""

    def __init__(
        self,
        engine: Engine,
        case: Case,
        method: Method,
        tools: _Tools,
        started: float,
        n_ctx: int,
    ) -> None:
        self.engine, self.case, self.method, self.tools = engine, case, method, tools
        self.started, self.n_ctx = started, n_ctx
        self.meter = EnergyMeter(tools.joules, tools.idle_w)
        self.samples: list[Sample] = []
        self.reads: dict[str, list[float]] = {}
        self.flops: list[float] = []
        self.buffers: dict[str, dict[str, int]] = {}
        self.error: str | None = None

    def row(self, on_tick: Tick | None, *, load_s: float | None) -> Row:
        """All samples, one after the other."""
        with self:
            for i in range(self.method.repetitions):
                if not self.sample():
                    break
                if on_tick:
                    on_tick(self.case, i + 1, self.method.repetitions)
                self.probe()
        return self.made(load_s)

    def __enter__(self) -> _Measured:
        """Warmed up, and watched from here on."""
        self.began = utc()
        try:
            self._take = self._prepared()
        except (OutOfMemory, EngineCrashed) as problem:
            self.error = problem.message
        self._sampler = Sampler(self.engine.pid, nvml=self.tools.nvml, own_cpu=self._own_cpu_s)
        self._sampler.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._sampler.__exit__(kind, error, tb)

    def sample(self) -> bool:
        """One more; False when there can be none, for a reason that the row tells."""
        if self.error is not None:
            return False
        at_s = time.monotonic() - self.started
        try:
            with self.meter:
                taken = self._take()
            self.samples.append(replace(taken, at_s=at_s, cpu_mhz=cpu_mhz()))
        except (OutOfMemory, EngineCrashed) as problem:
            self.error = problem.message
        return self.error is None

    def made(self, load_s: float | None) -> Row:
        test, engine = self.case.test, self.engine
        usage = self._sampler.summary() if self.samples else None
        n_past = test.n_depth + test.n_prompt + max(0, test.n_gen - 1) / 2
        config, plan = self.case.config, engine.plan
        reads = step_reads(engine.header, plan.placement, n_past, config.type_k, config.type_v) if test.n_gen else None
        energy = self.meter.result()
        made = Row(
            test=test,
            settings=self._settings(),
            samples=tuple(self.samples),
            started=self.began,
            load_s=load_s,
            # Weights are read once for all sequences, keys and values for each: known only for one.
            step_read_bytes=None if reads is None or test.n_seq > 1 else {_memory(on): n for on, n in reads.items()},
            flops_per_token=flops_per_token(engine.header, test.n_depth + test.n_prompt / 2),
            ceiling_bytes_per_s={memory: tuple(found) for memory, found in self.reads.items()} or None,
            ceiling_flops_per_s=tuple(self.flops) or None,
            energy=None if isinstance(energy, str) else energy,
            energy_unknown=energy if isinstance(energy, str) else None,
            usage=usage,
            buffers=self.buffers or None,
            error=self.error,
        )
        doubts = [*warnings(made, usage, self.method)]
        if on_battery():
            doubts.append(Caveat("battery", "the machine runs on battery", {}, "plug it in"))
        return replace(made, warnings=tuple(doubts))

    def _own_cpu_s(self) -> float:
        """CPU time of what measures: nobody's disturbance but ours, and never while a sample is taken."""
        return time.process_time() + (self.tools.prober.cpu_s if self.tools.prober else 0.0)

    def _settings(self) -> dict[str, object]:
        engine, plan = self.engine, self.engine.plan
        settings = settings_of(
            self.case.config,
            plan.layout,
            n_ctx=self.n_ctx,
            n_ctx_most=None,
            n_threads=engine.n_threads,
            repack=plan.repack,
        )
        return {**asdict(settings), "n_cpu_moe": plan.layout.n_cpu_moe, "layers": list(plan.placement.layers)}

    def _prepared(self) -> Callable[[], Sample]:
        """What takes one sample, warmed up."""
        test = self.case.test
        if test.kind == "e2e":
            prompt = text_of(self.engine, test.n_prompt)
            if self.method.warm_up:
                self._end_to_end(prompt, 2)
            return lambda: self._end_to_end(prompt, test.n_gen)
        if self.method.warm_up:
            # As llama-bench does: the whole prompt once, one token of the answer.
            self.engine.trial(test.n_prompt, min(1, test.n_gen), n_seq=test.n_seq, n_ctx=self.n_ctx)
        return self._bare

    def _bare(self) -> Sample:
        test = self.case.test
        tried = self.engine.trial(test.n_prompt, test.n_gen, n_depth=test.n_depth, n_seq=test.n_seq, n_ctx=self.n_ctx)
        self._note_buffers(tried.buffers)
        steps = Steps.of(tried.step_s)
        total = None
        if test.kind == "pg":
            total = (tried.prefill_s or 0.0) + (steps.total_s if steps else 0.0)
        return Sample(prefill_s=tried.prefill_s, steps=steps, total_s=total)

    def _end_to_end(self, prompt: str | list[dict[str, str]], n_gen: int) -> Sample:
        generation = self.engine.generate(prompt, SamplingConfig(max_tokens=n_gen, seed=1, ignore_eos=True))
        for _ in generation:
            pass
        self._note_buffers(generation.buffers)
        timing = generation.timing
        total = None if timing.ttft_s is None else timing.ttft_s + timing.decode_s
        return Sample(timing.prefill_s, Steps.of(timing.step_s), timing.ttft_s, total)

    def _note_buffers(self, buffers: Sequence[object]) -> None:
        found = by_device(buffers, self.engine.devices)  # type: ignore[arg-type]
        self.buffers = {_memory(device): dict(kinds) for device, kinds in found.items()}

    def probe(self) -> None:
        """What the memories can do just now; the products of a prompt on the device that does most of them."""
        if self.tools.prober is None:
            return
        engine = self.engine
        layers = engine.plan.placement.layers
        remote = {device.name for device in engine.devices if device.backend.startswith("RPC")}
        for device in dict.fromkeys(layers):
            if device in remote:
                continue  # a worker serves one client, and that is the engine
            busiest = device == max(set(layers), key=layers.count)
            probed = self.tools.prober.probe(
                device, main_type(engine.header), engine.n_threads, _PROBE_S, repack=engine.plan.repack
            )
            if probed.read_bytes_per_s:
                self.reads.setdefault(_memory(device), []).append(statistics.median(probed.read_bytes_per_s))
            if busiest and probed.flops_per_s:
                self.flops.append(statistics.median(probed.flops_per_s))


def _memory(device: str) -> str:
    return "RAM" if device == CPU else device


def text_of(engine: Engine, n_tokens: int) -> str | list[dict[str, str]]:
    """A message, or a text where the model has no template, of exactly `n_tokens` tokens with everything around it.

    As near as it gets, that is: a template alone may have more.
    """

    def made(n_words: int) -> str | list[dict[str, str]]:
        text = " ".join(["b"] * max(1, n_words))
        return [{"role": "user", "content": text}] if engine.loaded.has_template else text

    n_words = n_tokens
    for _ in range(8):
        generation = engine.generate(made(n_words), SamplingConfig(max_tokens=0))
        list(generation)
        off = generation.timing.n_prompt - n_tokens
        if not off or (n_words == 1 and off > 0):
            break
        n_words = max(1, n_words - (off if abs(off) < n_words else off // 2))
    return made(n_words)


def warnings(row: Row, usage: Usage | None, method: Method) -> Iterator[Caveat]:
    """What makes a row doubtful."""
    if method.repetitions < 3:
        yield Caveat(
            "few-samples",
            f"{method.repetitions} samples say nothing of their spread",
            {"samples": method.repetitions},
            "-r 5",
        )
    mean, deviation = row.mean_tps, row.stddev_tps
    if mean and deviation and deviation / mean > _SPREAD:
        share = deviation / mean
        yield Caveat(
            "noisy",
            f"the samples spread by {percent(share)} of their mean",
            {"share": share},
            "a quiet machine, or -r 20",
        )
    if usage is None:
        return
    if usage.other_cores is not None and usage.other_cores > _BUSY_CORES:
        yield Caveat(
            "others-busy",
            f"other processes used {usage.other_cores:.2f} cores",
            {"cores": usage.other_cores},
            "end them, measure later, or set GOMP_SPINCOUNT=1000",
        )
    if usage.steal_cores is not None and usage.steal_cores > _BUSY_CORES:
        yield Caveat(
            "steal", f"the host took {usage.steal_cores:.2f} cores away", {"cores": usage.steal_cores}, "measure later"
        )
    if usage.major_faults:
        yield Caveat(
            "read-from-disk",
            f"{usage.major_faults} pages were read from the disk while it ran",
            {"pages": usage.major_faults},
            "more free RAM, or a smaller model",
        )
    if usage.peak_swap_bytes:
        yield Caveat("swapping", "a part of the engine lay in swap", {"bytes": usage.peak_swap_bytes})
    for gpu in usage.gpus or ():
        if gpu.throttled:
            yield Caveat("throttled", f"GPU {gpu.index} was slowed down: {', '.join(gpu.throttled)}")
