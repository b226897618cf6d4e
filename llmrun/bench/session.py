"""One bench of one model, from its first load to its record: what is measured, told and kept, in that order.

    bench(model, cases) ── engine opened ─► record begins, journal on the disk
                           row finished   ─► journal, observers
                           end, or Ctrl-C ─► journal closed, observers, Record

Whoever shows or writes something of it is an `Observer`. The journal is kept whatever the observers do: a bench that is
ended at any moment leaves its finished rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from typing import Any

from llmrun.bench.journal import Journal
from llmrun.bench.observer import Observer
from llmrun.bench.perplexity import score
from llmrun.bench.quality import Quality
from llmrun.bench.record import Record, Row
from llmrun.bench.run import Hooks, Instruments, measure, measure_interleaved, open_instruments
from llmrun.bench.spec import Case, MeasurementOptions, Test, asked_settings
from llmrun.clock import new_id, utc
from llmrun.engine.devices import Found, find_devices
from llmrun.engine.interface import Engine
from llmrun.engine.jobs.roofline import key_of
from llmrun.errors import DiskError, LlmrunError
from llmrun.machine import profile
from llmrun.machine.environment import describe_build, describe_machine
from llmrun.machine.profile import Reads, Seen
from llmrun.models.model_info import describe_model
from llmrun.models.resolve import Model
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU
from llmrun.planning.load_plan import main_type


def bench(
    model: Model,
    cases: Sequence[Case],
    options: MeasurementOptions | None = None,
    *,
    observers: Sequence[Observer] = (),
    quality: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    must_load: bool = True,
    instruments: Instruments | None = None,
) -> Record:
    """Measures the cases and keeps them in a journal. Returns the record.

    A case that can't be measured is a row with an `error`. Raises what `Engine` raises for the first case where no
    settings at all could be loaded, unless `must_load` is False: then these are rows as well. Raises `DiskError`.
    `quality` and `command` are written into the record.
    """
    options = options or MeasurementOptions()
    planned = [Row(case.test, asked_settings(case.config)) for case in cases]
    errors: list[LlmrunError] = []
    waiting: list[Row] = []  # for a record, which begins with the first engine
    with ExitStack() as stack:
        tools = instruments or stack.enter_context(open_instruments(ceilings=options.ceilings))
        record: Record | None = None
        journal: Journal | None = None

        def opened(engine: Engine) -> None:
            for each in observers:
                each.loaded(engine.notes)
            if record is None:
                begin(engine, engine.loaded.description)

        def begin(seen: Engine | Found, description: str | None) -> None:
            nonlocal record, journal
            record = _begun(model, seen, description, options, quality, command)
            journal = stack.enter_context(Journal.of(record))
            stack.callback(ended)
            for each in observers:
                each.began(record, planned, energy=bool(tools.joules.counters))
            for row in waiting:
                keep(row)

        def failed(error: LlmrunError) -> None:
            errors.append(error)
            for each in observers:
                each.failed(error)

        def keep(row: Row) -> None:
            nonlocal record
            assert record and journal
            journal.add(row)
            record = replace(record, rows=(*record.rows, row))
            for each in observers:
                each.finished(row)

        def ended() -> None:
            assert record
            for each in observers:
                each.ended(record)

        rows = measure(model, cases, options, tools, Hooks(opened, _relay(observers), failed))
        for row in stack.enter_context(closing(rows)):
            if record is None:
                waiting.append(row)
            else:
                keep(row)
        if record is None:
            if must_load:
                raise errors[0]
            begin(find_devices(), None)
        assert record and journal
        record = replace(record, ended=utc())
        journal.end(record.ended)
        _refresh_profile(model, tools, record.rows)
        return record


def bench_interleaved(
    model: Model,
    a: LoadConfig,
    b: LoadConfig,
    tests: Sequence[Test],
    options: MeasurementOptions | None = None,
    *,
    observers: Sequence[Observer] = (),
    command: Sequence[str] = (),
    instruments: Instruments | None = None,
) -> tuple[Record, Record]:
    """Measures the tests with both settings in turn; returns two records that know of each other.

    They are kept when all of it is measured. Raises what `Engine` raises: half a comparison is none.
    """
    options = options or MeasurementOptions()
    begun: list[Record] = []

    def opened(engine: Engine) -> None:
        begun.append(_begun(model, engine, engine.loaded.description, options, None, command))

    with ExitStack() as stack:
        tools = instruments or stack.enter_context(open_instruments(ceilings=options.ceilings))
        rows = list(measure_interleaved(model, a, b, tests, options, tools, Hooks(opened, _relay(observers))))
        _refresh_profile(model, tools, [row for pair in rows for row in pair])
    first, second = (
        replace(record, rows=tuple(pair[i] for pair in rows), interleaved_with=begun[1 - i].id, ended=utc())
        for i, record in enumerate(begun)
    )
    for record in (first, second):
        Journal.of(record).close()
        for each in observers:
            each.ended(record)
    return first, second


def _refresh_profile(model: Model, tools: Instruments, rows: Iterable[Row]) -> None:
    """Add the ceilings that were measured beside the samples to the profile of this machine, where one is kept."""
    seen = [each for row in rows for each in _seen(row, main_type(model.header))]
    if tools.prober is not None and seen:
        with suppress(DiskError):  # the record has them as well
            profile.saw(key_of(tools.prober.found), seen)


def _seen(row: Row, kind: str) -> Iterator[Seen]:
    layers = list(row.settings.get("layers", ()))
    for memory, found in (row.ceiling_bytes_per_s or {}).items():
        device = CPU if memory == "RAM" else memory
        n_threads = row.settings["n_threads"] if device == CPU else None
        reads = Reads(device, n_threads, (statistics.median(found),), row.started or utc())
        is_busiest = device == max(set(layers), key=layers.count, default=None)
        flops = statistics.median(row.ceiling_flops_per_s) if is_busiest and row.ceiling_flops_per_s else None
        yield Seen(reads, kind, bool(row.settings["repack"]), flops)


def _relay(observers: Sequence[Observer]) -> Callable[[Case, int, int], None]:
    def sampled(case: Case, done: int, of: int) -> None:
        for each in observers:
            each.sampled(case, done, of)

    return sampled


def quality_of(
    model: Model,
    name: str,
    text: str,
    *,
    config: LoadConfig | None = None,
    reference: Model | None = None,
    on_progress: Callable[[Quality, int], None] | None = None,
) -> dict[str, Any]:
    """How well the model predicts the text of that name, as `Record.quality` has it. Raises what `score` raises."""
    judged = score(model, text, config=config, reference=reference, on_progress=on_progress)
    return {**judged.as_dict(), "text": name, "reference": reference.name if reference else None}


def _begun(
    model: Model,
    seen: Engine | Found,
    description: str | None,
    options: MeasurementOptions,
    quality: Mapping[str, Any] | None,
    command: Sequence[str],
) -> Record:
    """The record without its rows."""
    return Record(
        id=new_id(),
        created=utc(),
        machine=describe_machine(seen.devices),
        build=describe_build(seen.system_info, seen.versions),
        model=describe_model(model.name, model.path, model.header, description=description),
        command=tuple(command),
        settings=asdict(options),
        quality=quality,
    )
