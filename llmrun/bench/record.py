"""What a bench leaves behind: one record, versioned, that says what was measured, on what, with what, and how long.

    Record ─┬─ machine, build, model      what the numbers are worth nothing without
            ├─ rows ── test + settings ── samples: seconds, as they were measured
            │                          ├─ bytes and operations of a step, measured ceilings, joules, what the run took
            │                          └─ warnings: what makes this row doubtful
            └─ loads                      of a server instead: the requests of each (`load_row.py`)

Seconds, bytes and joules are stored; rates are derived from them here and nowhere else, by llama-bench's formulas
where it has the same figure. What is unknown is None, null in JSON. A reader ignores fields that it does not know;
a record of another major version is refused.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from llmrun import codec
from llmrun.bench.load_row import LoadRow, ServerInfo
from llmrun.bench.spec import Test
from llmrun.bench.warnings import RowWarning
from llmrun.engine.meter import nearest_rank
from llmrun.errors import UsageError
from llmrun.machine.energy import Energy, cost_per_million_tokens
from llmrun.machine.environment import BuildInfo, MachineInfo
from llmrun.machine.sampler import Usage
from llmrun.models.model_info import ModelInfo

SCHEMA = "llmrun.bench/1"
"""Name and major version. New fields that may be missing leave it; what old readers would misread raises it."""
KEPT_STEPS = 4096
"""Of a sample with more steps than this, only the summary is kept: a record is read by people, too."""
BOUND_SHARE = 0.6
"""Of a measured ceiling, from which on a row counts as bound by it. Real kernels reach 0.6 to 0.95 of a plain read."""

BEYOND_SHARE = 1.1
"""Of a ceiling, from which on it is not that of what was read or computed: a small model lies in the CPU's cache."""

Bound = Literal["memory", "compute", "neither"]
_T = TypeVar("_T")


# -- what was measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """The decodes of one sample; each computes one token of every sequence.

    Attributes:
        n: how many were timed. A generation of N tokens has N-1 between its tokens, a "tg" sample N.
        total_s: all of them together.
        median_s, p95_s, max_s: of one; nearest rank.
        each_s: one by one, in order; None where there were too many to keep.
    """

    n: int
    total_s: float
    median_s: float
    p95_s: float
    max_s: float
    each_s: tuple[float, ...] | None = None

    @classmethod
    def of(cls, step_s: Sequence[float], *, keep: int = KEPT_STEPS) -> Steps | None:
        """The summary of steps in seconds; None without any."""
        median, p95 = nearest_rank(step_s, 0.5), nearest_rank(step_s, 0.95)
        if median is None or p95 is None:
            return None
        each = tuple(step_s) if len(step_s) <= keep else None
        return cls(len(step_s), math.fsum(step_s), median, p95, max(step_s), each)


@dataclass(frozen=True)
class Sample:
    """One repetition, as it was timed. None: not part of this test, or not known.

    Attributes:
        prefill_s: computing the prompts of all sequences.
        steps: decoding.
        ttft_s: from the request to the first token; "e2e" only.
        total_s: "e2e": from the request to the last token. "pg": from the beginning of the prefill to the last token.
        at_s: when it began, in seconds since the record was created: what drifts, shows.
        cpu_mhz: of the CPUs when it ended, their mean.
    """

    prefill_s: float | None = None
    steps: Steps | None = None
    ttft_s: float | None = None
    total_s: float | None = None
    at_s: float | None = None
    cpu_mhz: float | None = None


@dataclass(frozen=True)
class Row:
    """One test with one set of settings.

    Attributes:
        test: what was computed.
        settings: everything that the model was loaded with, by the names of `engine.protocol.Settings`: n_ctx, n_batch,
            n_ubatch, n_threads, n_threads_batch, n_gpu_layers, devices, tensor_split, split_mode, main_gpu,
            override_tensor, n_cpu_moe, offload_kv, flash_attn, type_k, type_v, load_mode, repack.
        samples: in the order in which they were measured; empty where `error` says why.
        started: when the first one began; UTC, ISO 8601.
        load_s: loading the model for this row; None where it was loaded already.
        step_read_bytes: what one decode step reads (weights and KV cache, at the mean depth of the test), by the memory
            that it lies in: {"RAM": …, "CUDA0": …}. With one sequence, that is per token.
        flops_per_token: operations that one token of the prompt costs at the test's mean depth, two per multiply-add.
        ceiling_bytes_per_s: bandwidth of plain reads by memory, measured beside the samples, each time anew.
        ceiling_flops_per_s: operations per second of plain matrix products, measured beside the samples.
        energy: by boundary, the widest first; None: `energy_unknown` says why.
        energy_unknown: why `energy` is None.
        usage: what the engine's process took while the samples ran.
        buffers: what llama.cpp took, in bytes, by memory and kind ("model", "KV", "compute").
        warnings: what makes this row doubtful.
        error: why there are no samples, or no more of them: the settings did not fit, the engine died.
    """

    test: Test
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    started: str | None = None
    load_s: float | None = None
    step_read_bytes: Mapping[str, int] | None = None
    flops_per_token: float | None = None
    ceiling_bytes_per_s: Mapping[str, tuple[float, ...]] | None = None
    ceiling_flops_per_s: tuple[float, ...] | None = None
    energy: tuple[Energy, ...] | None = None
    energy_unknown: str | None = None
    usage: Usage | None = None
    buffers: Mapping[str, Mapping[str, int]] | None = None
    warnings: tuple[RowWarning, ...] = ()
    error: str | None = None

    # -- rates, all of them derived --

    def seconds(self, sample: Sample) -> float | None:
        """What the rate of a sample counts over: the prefill, the steps, both, or the whole request."""
        match self.test.kind:
            case "pp":
                return sample.prefill_s
            case "tg":
                return sample.steps.total_s if sample.steps else None
            case "e2e":
                return sample.total_s
        if sample.total_s is not None:
            return sample.total_s
        known = sample.prefill_s is not None and sample.steps is not None
        return sample.prefill_s + sample.steps.total_s if known else None  # type: ignore[operator, union-attr]

    def n_tokens(self, sample: Sample) -> int:
        """The tokens that it counts: computed or made in that time, by all sequences."""
        test, n_steps = self.test, sample.steps.n if sample.steps else 0
        made = {"pp": test.n_prompt, "tg": n_steps, "pg": test.n_prompt + n_steps, "e2e": n_steps + 1}[test.kind]
        return made * test.n_seq

    def tps(self, sample: Sample) -> float | None:
        """Tokens per second of one sample, as llama-bench counts them: tokens of prompt and answer over all its time.

        Of "e2e", tokens of the answer over the time from the request to the last: what a user sees.
        """
        seconds = self.seconds(sample)
        return self.n_tokens(sample) / seconds if seconds else None

    @property
    def samples_tps(self) -> tuple[float, ...]:
        return tuple(tps for sample in self.samples if (tps := self.tps(sample)) is not None)

    @property
    def mean_tps(self) -> float | None:
        """The mean of the samples' rates (`avg_ts` of llama-bench), not tokens over the sum of the times."""
        return mean(self.samples_tps)

    @property
    def stddev_tps(self) -> float | None:
        """Of the samples' rates, over n-1 (`stdev_ts` of llama-bench, which says 0 where there is one sample)."""
        return deviation(self.samples_tps)

    @property
    def median_tps(self) -> float | None:
        return _median(self.samples_tps)

    @property
    def prefill_tps(self) -> float | None:
        """Tokens of the prompt per second, the median of the samples; also of "pg" and "e2e"."""
        n = self.test.n_prompt * self.test.n_seq
        return _median([n / sample.prefill_s for sample in self.samples if n and sample.prefill_s])

    @property
    def decode_tps(self) -> float | None:
        """Tokens made per second over the steps, the median of the samples; also of "pg" and "e2e"."""
        return _median(self.samples_decode_tps)

    @property
    def samples_decode_tps(self) -> tuple[float, ...]:
        """The same of each sample."""
        n_seq = self.test.n_seq
        return tuple(s.steps.n * n_seq / s.steps.total_s for s in self.samples if s.steps and s.steps.total_s)

    @property
    def ttft_s(self) -> float | None:
        return _median([sample.ttft_s for sample in self.samples if sample.ttft_s is not None])

    @property
    def gap_median_s(self) -> float | None:
        """A step's median, the median of the samples'."""
        return _median([sample.steps.median_s for sample in self.samples if sample.steps])

    @property
    def gap_p95_s(self) -> float | None:
        """A step's 95th percentile, the median of the samples'."""
        return _median([sample.steps.p95_s for sample in self.samples if sample.steps])

    @property
    def step_s(self) -> float | None:
        """A step's mean, the median of the samples'."""
        return _median([sample.steps.total_s / sample.steps.n for sample in self.samples if sample.steps])

    @property
    def read_bytes_per_s(self) -> dict[str, float] | None:
        """Bandwidth that decoding achieved, by memory, over the whole step: with several memories, each of them
        waits while another is read, so that none can show its ceiling here."""
        if self.step_read_bytes is None or not self.step_s:
            return None
        return {memory: n_bytes / self.step_s for memory, n_bytes in self.step_read_bytes.items()}

    @property
    def mbu(self) -> float | None:
        """Memory bandwidth utilisation, 0 to 1: the time that a step's reads take at the measured ceilings, one memory
        after the other, over the time that the step took. With one memory that is achieved ÷ ceiling.

        None where the ceiling of a memory that was read is not known.
        """
        if not self.step_read_bytes or not self.step_s or self.ceiling_bytes_per_s is None:
            return None
        ideal_s = 0.0
        for memory, n_bytes in self.step_read_bytes.items():
            ceiling = _median(self.ceiling_bytes_per_s.get(memory, ()))
            if n_bytes and not ceiling:
                return None
            ideal_s += n_bytes / ceiling if ceiling else 0.0
        return ideal_s / self.step_s

    @property
    def mfu(self) -> float | None:
        """Share of the measured operations per second that the prefill achieved, 0 to 1."""
        ceiling = _median(self.ceiling_flops_per_s or ())
        if self.flops_per_token is None or not ceiling or self.prefill_tps is None:
            return None
        return self.flops_per_token * self.prefill_tps / ceiling

    @property
    def verdict(self) -> Bound | None:
        """What held the row up: the ceiling of which it reached `BOUND_SHARE`; "neither" if none was reached.

        Of "tg" and "e2e" memory is looked at, of "pp" operations; "pg" is both, and None. So is what is beyond its
        ceiling.
        """
        share = {"tg": self.mbu, "e2e": self.mbu, "pp": self.mfu, "pg": None}[self.test.kind]
        if share is None or share > BEYOND_SHARE:
            return None
        if share < BOUND_SHARE:
            return "neither"
        return "compute" if self.test.kind == "pp" else "memory"

    @property
    def joules_per_token(self) -> dict[str, float] | None:
        """By boundary: joules of all samples over their tokens, those that `tps` counts."""
        n = sum(self.n_tokens(sample) for sample in self.samples)
        return {each.boundary: each.joules / n for each in self.energy} if self.energy and n else None

    @property
    def joules_above_idle_per_token(self) -> dict[str, float] | None:
        """The same without what the machine takes at rest, of the boundaries where that was measured."""
        n = sum(self.n_tokens(sample) for sample in self.samples)
        found = {each.boundary: above for each in self.energy or () if (above := each.above_idle_j) is not None}
        return {boundary: joules / n for boundary, joules in found.items()} if found and n else None

    @property
    def headline_joules(self) -> tuple[str, float] | None:
        """The boundary whose joules per token are shown, and these: above idle where that is known.

        The widest one that was measured; of layers on GPUs that of all GPUs, where nothing wider than the CPU is known.
        """
        joules = self.joules_above_idle_per_token or self.joules_per_token
        if not joules:
            return None
        gpus = {name: n for name, n in joules.items() if name.startswith("GPU ")}
        if gpus and "whole machine" not in joules and any(on != "CPU" for on in self.settings.get("layers") or ()):
            return " + ".join(gpus), sum(gpus.values())
        return next(iter(joules.items()))


def mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation over n-1; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


# -- all of it together ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One bench.

    Attributes:
        schema: name and major version of the format.
        id: sorts by time: "20261121-010203-ab12".
        created: when the bench began; UTC, ISO 8601.
        machine, build, model: on what, with what and what was measured.
        command: the command line, its words.
        settings: what holds for all rows: how it was measured (repetitions, warm-ups, order, seed).
        interleaved_with: the id of the record whose samples were taken in turn with these: the i-th of a row there
            belongs to the i-th of the same row here.
        quality: how well the model predicts a text, beside its speed: what `quality.Quality.as_dict` tells, and "text",
            the name of it, and "reference", that of the model it was compared with; null: not measured.
        rows: in the order in which they were finished.
        server: that was measured, by loads instead of rows; a record of a model leaves `server` and `loads` out.
        loads: in the order in which they were finished.
        ended: when the last row was written; null: the bench was cut short.
    """

    schema: str = field(default=SCHEMA, kw_only=True)
    id: str
    created: str
    machine: MachineInfo
    build: BuildInfo
    model: ModelInfo
    command: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] | None = None
    rows: tuple[Row, ...] = ()
    server: ServerInfo | None = None
    loads: tuple[LoadRow, ...] = ()
    interleaved_with: str | None = None
    ended: str | None = None

    @property
    def prices(self) -> tuple[float | None, float | None]:
        """Of a kWh and of an hour, as they were given to the bench."""
        found = [self.settings.get(name) for name in ("price_kwh", "price_hour")]
        kwh, hour = (float(price) if isinstance(price, int | float) else None for price in found)
        return kwh, hour

    def cost_per_million(self, row: Row) -> float | None:
        """Money for a million tokens of this row's kind; None where no price was given, or joules are not known."""
        joules = row.headline_joules
        return cost_per_million_tokens(joules[1] if joules else None, row.median_tps, *self.prices)


# -- to JSON and back --------------------------------------------------------------------------------------------------


def to_document(value: Any) -> Any:
    """A record, or any part of one, as dicts, lists, numbers and texts, for JSON; NaN and infinity are null."""
    document = codec.plain(value)
    if isinstance(value, Record) and value.server is None:
        for name in ("server", "loads"):
            document.pop(name, None)
    return document


def read_record(document: Any, where: str) -> Record:
    """The record in plain data. `where` names it in messages. Raises `UsageError`, naming the field."""
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if not isinstance(schema, str) or not schema.startswith("llmrun.bench/"):
        raise UsageError(f"{where}: not a record of a bench")
    if schema.partition("/")[2].partition(".")[0] != SCHEMA.partition("/")[2]:
        raise UsageError(
            f"{where} is written as {schema!r}, this llmrun reads {SCHEMA!r}",
            hint="read it with the version of llmrun that wrote it, or a newer one",
        )
    return read_part(Record, document, where)


def read_part(kind: type[_T], document: Any, where: str, at: str = "") -> _T:
    """One of the record's dataclasses, which lies at `at` in the record, from plain data. Raises `UsageError`."""
    try:
        return codec.convert(document, kind)
    except codec.Malformed as error:
        place = ".".join(filter(None, (at, error.place))) or "the whole of it"
        raise UsageError(f"{where}: {place} {error.problem}") from None
