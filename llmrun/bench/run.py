"""Runs tests on a model and yields a row for each, as it is measured.

    cases ── same settings? one engine ──► warm-up ─► sample, ceiling, sample, ceiling, … ─► Row

Bare tests (pp, tg, pg) are llama-bench's: random tokens, nothing sampled (`engine/child/raw_bench.py`). "e2e" is what a
user waits for: a text through template and tokenizer, tokens sampled and turned into text again. The ceilings are
measured between the samples, not before them: on a machine that others use as well they drift by tens of percent
within minutes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple

from llmrun import codec
from llmrun.bench.record import Row, Sample, Steps
from llmrun.bench.spec import Case, MeasurementOptions, Test, asked_settings
from llmrun.bench.warnings import RowWarning, warnings_of
from llmrun.clock import utc
from llmrun.engine.buffers import by_device
from llmrun.engine.interface import Engine
from llmrun.engine.jobs.roofline import Prober
from llmrun.engine.loader import settings_of
from llmrun.engine.protocol import Buffer
from llmrun.errors import EngineCrashed, LlmrunError, OutOfMemory
from llmrun.machine.energy import EnergyMeter, Joules, measure_idle
from llmrun.machine.hardware import cpu_mhz, on_battery
from llmrun.machine.nvml import open_nvml
from llmrun.machine.sampler import Sampler
from llmrun.models.resolve import Model
from llmrun.options.load import AutoOnOff, LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import CPU, flops_per_token, step_reads
from llmrun.planning.load_plan import main_type

_PROBE_S = 0.1
"""Of each ceiling, between two samples."""


class Hooks(NamedTuple):
    """Who is told while a bench runs.

    Attributes:
        opened: of every engine, when it is.
        sampled: of the case, the samples that it has and those it will have, whenever there is one more.
        failed: of the error of each row that has one.
    """

    opened: Callable[[Engine], None] = lambda _engine: None
    sampled: Callable[[Case, int, int], None] = lambda _case, _done, _of: None
    failed: Callable[[LlmrunError], None] = lambda _error: None


def open_engine(model: Model, config: LoadConfig) -> Engine:
    """The model in a child process. Raises what `Engine` raises."""
    from llmrun.engine.engine import ChildEngine

    # A guard would change how many threads are measured: it is on only where that was asked for.
    guard: AutoOnOff = "on" if config.thread_guard == "on" else "off"
    return ChildEngine(model.path, model.header, replace(config, thread_guard=guard))


# -- what measures beside the engine -----------------------------------------------------------------------------------


@dataclass
class Instruments:
    """What opens engines and measures beside them, for all cases of a bench together.

    Attributes:
        joules: the machine's counters.
        watch: makes what watches the process whose id its first argument tells, also after a reload; its second tells
            the CPU time that measuring took, which must not count as somebody else's.
        prober: measures the ceilings; None: they are not measured.
        open_engine: loads a model. Raises what `Engine` raises.
        cpu_mhz: how fast the CPUs run just now.
        on_battery: None where the system does not tell.
        clock_s: a monotonic clock.
        sleep: rests so many seconds.
        idle_w: watts by boundary with a model loaded and nothing to do; filled by `measure_idle`.
    """

    joules: Joules
    watch: Callable[[Callable[[], int], Callable[[], float]], Sampler]
    prober: Prober | None = None
    open_engine: Callable[[Model, LoadConfig], Engine] = open_engine
    cpu_mhz: Callable[[], float | None] = cpu_mhz
    on_battery: Callable[[], bool | None] = on_battery
    clock_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    idle_w: dict[str, float] = field(default_factory=dict)

    def measure_idle(self) -> None:
        """With a model loaded and no request: what is used beyond this is the computation's."""
        self.idle_w = measure_idle(self.joules)

    def own_cpu_s(self) -> float:
        """CPU time of what measures: ours, not another's, and never taken while a sample is."""
        return time.process_time() + (self.prober.cpu_s if self.prober else 0.0)


@contextmanager
def open_instruments(*, ceilings: bool = True) -> Iterator[Instruments]:
    """Those of this machine; `ceilings`: with a prober, in a process of its own that ends with the block."""
    nvml = open_nvml()
    with Prober() if ceilings else nullcontext() as prober:
        yield Instruments(Joules.open(nvml), lambda pid, own: Sampler(pid, nvml=nvml, own_cpu=own), prober)


# -- the order ---------------------------------------------------------------------------------------------------------


def measure(
    model: Model,
    cases: Sequence[Case],
    options: MeasurementOptions,
    instruments: Instruments,
    hooks: Hooks = Hooks(),  # noqa: B008  # a tuple
) -> Generator[Row]:
    """A row for every case, in order; one that can't be measured has its `error` and no samples, or fewer.

    What goes wrong is one case's alone wherever it can be: a context that does not fit is left out for the sake of the
    shorter ones, and after an engine that died comes another.
    """
    started_s = instruments.clock_s()
    for config, group in groupby(cases, key=lambda case: case.config):
        left = list(group)
        while left:
            engine, n_ctx, failed = _opened(model, config, left, instruments)
            load_s = None
            with closing(engine) if engine else nullcontext():
                if engine:
                    load_s = engine.loaded.end_s - engine.loaded.begin_s
                    hooks.opened(engine)
                    instruments.measure_idle()
                while left and (engine is None or engine.alive):
                    case = left.pop(0)
                    error = failed.get(case.test.n_ctx)
                    if engine is None or error:
                        row = Row(case.test, asked_settings(config), error=str(error), started=utc())
                    else:
                        instruments.sleep(options.delay_s)
                        measured = _Measured(engine, case, options, instruments, started_s, n_ctx)
                        row, load_s, error = measured.row(hooks, load_s=load_s), None, measured.error
                    if error:
                        hooks.failed(error)
                    yield row


def _opened(
    model: Model, config: LoadConfig, cases: Sequence[Case], instruments: Instruments
) -> tuple[Engine | None, int, dict[int, LlmrunError]]:
    """An engine with the longest context of the cases that can be had, that context, and the errors of longer ones."""
    lengths = sorted({case.test.n_ctx for case in cases}, reverse=True)
    failed: dict[int, LlmrunError] = {}
    for n_ctx in lengths:
        try:
            return instruments.open_engine(model, replace(config, n_ctx=n_ctx)), n_ctx, failed
        except LlmrunError as error:
            failed[n_ctx] = error
            if not (isinstance(error, OutOfMemory) or error.field == "n_ctx"):  # a shorter one would not help
                return None, 0, {**dict.fromkeys(lengths, error), **failed}
    return None, 0, failed


def measure_interleaved(
    model: Model,
    a: LoadConfig,
    b: LoadConfig,
    tests: Sequence[Test],
    options: MeasurementOptions,
    instruments: Instruments,
    hooks: Hooks,
) -> Iterator[tuple[Row, Row]]:
    """Both settings in turn, with both engines loaded: a pair of rows for every test, the i-th samples taken together.

    Who is first changes from pair to pair, so that a machine that drifts favours neither. Raises what `Engine` raises:
    half a comparison is none.
    """
    started_s = instruments.clock_s()
    n_ctx = max(test.n_ctx for test in tests)
    with ExitStack() as stack:
        configs = [replace(config, n_ctx=n_ctx) for config in (a, b)]
        engines = [stack.enter_context(closing(instruments.open_engine(model, config))) for config in configs]
        for engine in engines:
            hooks.opened(engine)
        instruments.measure_idle()
        for test in tests:
            instruments.sleep(options.delay_s)
            sides = [
                _Measured(engine, Case(config, test), options, instruments, started_s, n_ctx)
                for engine, config in zip(engines, (a, b), strict=True)
            ]
            with sides[0], sides[1]:
                for i in range(options.repetitions):
                    for side in sides if i % 2 == 0 else reversed(sides):
                        if not side.sample():
                            raise side.error or EngineCrashed("a sample could not be taken")
                        side.probe()
                    hooks.sampled(sides[0].case, i + 1, options.repetitions)
            yield sides[0].made(None), sides[1].made(None)


# -- one case ----------------------------------------------------------------------------------------------------------


@dataclass
class _Measured:
    """One case being measured."""

    engine: Engine
    case: Case
    options: MeasurementOptions
    instruments: Instruments
    started_s: float
    n_ctx: int
    samples: list[Sample] = field(default_factory=list)
    reads: dict[str, list[float]] = field(default_factory=dict)
    flops: list[float] = field(default_factory=list)
    buffers: dict[str, dict[str, int]] = field(default_factory=dict)
    error: LlmrunError | None = None
    lost_ceilings: str | None = None

    def __post_init__(self) -> None:
        self.meter = EnergyMeter(self.instruments.joules, self.instruments.idle_w)

    def row(self, hooks: Hooks, *, load_s: float | None) -> Row:
        """All samples, one after the other."""
        with self:
            for i in range(self.options.repetitions):
                if not self.sample():
                    break
                hooks.sampled(self.case, i + 1, self.options.repetitions)
                self.probe()
        return self.made(load_s)

    def __enter__(self) -> _Measured:
        """Warmed up, and watched from here on."""
        self.began = utc()
        try:
            self._take = self._prepared()
        except LlmrunError as problem:
            self.error = problem
        self._watch = self.instruments.watch(lambda: self.engine.pid, self.instruments.own_cpu_s)
        self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.__exit__()

    def sample(self) -> bool:
        """Takes one more. Returns False when there can be none, for a reason that the row tells."""
        if self.error is not None:
            return False
        at_s = self.instruments.clock_s() - self.started_s
        try:
            with self.meter:
                taken = self._take()
            self.samples.append(replace(taken, at_s=at_s, cpu_mhz=self.instruments.cpu_mhz()))
        except LlmrunError as problem:
            self.error = problem
        return self.error is None

    def made(self, load_s: float | None) -> Row:
        test, engine = self.case.test, self.engine
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
            flops_per_token=flops_per_token(
                engine.header, test.n_depth + test.n_prompt / 2, outputs=1 / test.n_prompt if test.n_prompt else 1.0
            ),
            ceiling_bytes_per_s={memory: tuple(found) for memory, found in self.reads.items()} or None,
            ceiling_flops_per_s=tuple(self.flops) or None,
            energy=None if isinstance(energy, str) else energy,
            energy_unknown=energy if isinstance(energy, str) else None,
            usage=self._watch.summary() if self.samples else None,
            buffers=self.buffers or None,
            error=None if self.error is None else str(self.error),
        )
        doubts = [*warnings_of(made, self.options.repetitions, on_battery=bool(self.instruments.on_battery()))]
        if self.lost_ceilings:
            doubts.append(RowWarning("ceilings-lost", f"ceilings are not known: {self.lost_ceilings}"))
        return replace(made, warnings=tuple(doubts))

    def _settings(self) -> dict[str, object]:
        plan, n_threads = self.engine.plan, self.engine.n_threads
        settings = settings_of(
            plan.config, plan.layout, n_ctx=self.n_ctx, n_ctx_most=None, n_threads=n_threads, repack=plan.repack
        )
        return {**codec.plain(settings), "n_cpu_moe": plan.layout.n_cpu_moe, "layers": list(plan.placement.layers)}

    def _prepared(self) -> Callable[[], Sample]:
        """What takes one sample, warmed up."""
        test = self.case.test
        if test.kind == "e2e":
            prompt = text_of(self.engine, test.n_prompt)
            if self.options.warm_up:
                self._end_to_end(prompt, 2)
            return partial(self._end_to_end, prompt, test.n_gen)
        if self.options.warm_up:
            # As llama-bench does: the whole prompt once, one token of the answer.
            self.engine.trial(test.n_prompt, min(1, test.n_gen), n_seq=test.n_seq, n_ctx=self.n_ctx)
        return self._bare

    def _bare(self) -> Sample:
        test = self.case.test
        tried = self.engine.trial(test.n_prompt, test.n_gen, n_depth=test.n_depth, n_seq=test.n_seq, n_ctx=self.n_ctx)
        self._note_buffers(tried.buffers)
        steps = Steps.of(tried.step_s)
        total = (tried.prefill_s or 0.0) + (steps.total_s if steps else 0.0)
        return Sample(prefill_s=tried.prefill_s, steps=steps, total_s=total if test.kind == "pg" else None)

    def _end_to_end(self, prompt: str | list[dict[str, str]], n_gen: int) -> Sample:
        generation = self.engine.generate(prompt, SamplingConfig(max_tokens=n_gen, seed=1, ignore_eos=True))
        list(generation)
        self._note_buffers(generation.buffers)
        timing = generation.timing
        total = None if timing.ttft_s is None else timing.ttft_s + timing.decode_s
        return Sample(timing.prefill_s, Steps.of(timing.step_s), timing.ttft_s, total)

    def _note_buffers(self, buffers: Sequence[Buffer]) -> None:
        found = by_device(buffers, self.engine.devices)
        self.buffers = {_memory(device): dict(kinds) for device, kinds in found.items()}

    def probe(self) -> None:
        """What the memories can do just now; the products of a prompt on the device that does most of them."""
        if self.instruments.prober is None:
            return
        engine, layers = self.engine, self.engine.plan.placement.layers
        remote = {device.name for device in engine.devices if device.backend.startswith("RPC")}
        for device in dict.fromkeys(layers):
            if device in remote:
                continue  # a worker serves one client, and that is the engine
            busiest = device == max(set(layers), key=layers.count)
            try:
                kind, repack = main_type(engine.header), engine.plan.repack
                probed = self.instruments.prober.probe(device, kind, engine.n_threads, _PROBE_S, repack=repack)
            except EngineCrashed as problem:  # the bench goes on without
                self.instruments.prober = None
                self.lost_ceilings = problem.message
                return
            if probed.read_bytes_per_s:
                self.reads.setdefault(_memory(device), []).append(statistics.median(probed.read_bytes_per_s))
            if busiest and probed.flops_per_s:
                self.flops.append(statistics.median(probed.flops_per_s))


def _memory(device: str) -> str:
    return "RAM" if device == CPU else device


def text_of(engine: Engine, n_tokens: int) -> str | list[dict[str, str]]:
    """A message, or a text where the model has no template, of `n_tokens` tokens with everything around it.

    As near as it gets: a template alone may have more.
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
