"""A bench without a model: what is measured in which order, what is kept, and what makes a row doubtful.

The engine is a scripted one whose bare runs take seconds that were given, and which writes down what it was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import TOKEN_S, ScriptedEngine, ScriptedGeneration, Trials
from scripted_engine import Script as Answer

from llmrun.bench import journal
from llmrun.bench.observer import Observer
from llmrun.bench.record import Record, Row
from llmrun.bench.run import Instruments
from llmrun.bench.session import bench, bench_interleaved
from llmrun.bench.spec import Case, MeasurementOptions, Test
from llmrun.engine.devices import Found
from llmrun.engine.jobs.roofline import key_of
from llmrun.engine.protocol import Probed, TrialResult
from llmrun.errors import BadModel, EngineCrashed, LlmrunError, OutOfMemory
from llmrun.machine import profile
from llmrun.machine.energy import Joules
from llmrun.machine.sampler import Usage
from llmrun.models.resolve import Model, find_model
from llmrun.options.load import MAX_CTX, LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.load_plan import Planner, main_type

TG, PP, E2E = Test("tg", n_gen=4), Test("pp", n_prompt=8), Test("e2e", 16, 4)
ONE, TWO = LoadConfig(n_threads=1), LoadConfig(n_threads=2)
QUIET = Usage(5, 1.0, other_cpu_s=0.0, cost_s=0.0, interval_s=0.25)


class Engine(ScriptedEngine):
    """Of a real model; its answers have four tokens, 10 ms apart, after 50 ms. What trials take, the script says."""

    def __init__(self, script: Script, model: Model, config: LoadConfig) -> None:
        super().__init__(Answer("Once upon a time", prefill_s=0.04), n_ctx=config.n_ctx or 0)
        self._script, self._name = script, f"-t {config.n_threads}"
        self.header, self.notes, self.trials = model.header, [f"loaded {self._name}"], script.trials
        self.plan = Planner(model.path, model.header, (), None, lambda *_: None).plan(config)

    def trial(self, n_prompt: int, n_gen: int, *, n_depth: int = 0, n_seq: int = 1, n_ctx: int = 0) -> TrialResult:
        self._script.log(f"{self._name}: {n_prompt},{n_gen}")
        return super().trial(n_prompt, n_gen, n_depth=n_depth, n_seq=n_seq, n_ctx=n_ctx)

    def generate(
        self, prompt: str | Sequence[dict[str, str]], sampling: SamplingConfig | None = None, **more: Any
    ) -> ScriptedGeneration:
        assert sampling and not isinstance(prompt, str)
        self._script.log(f"{self._name}: asks {self.n_tokens(prompt)},{sampling.max_tokens}")
        return super().generate(prompt, sampling, **more)

    def close(self) -> None:
        self._script.log(f"{self._name}: closed")


class Script:
    """Opens scripted engines, and is the prober and the watch beside them."""

    cpu_s = 0.0
    found = Found([], "", {"ggml": "1"})

    def __init__(self, trials: Sequence[float | LlmrunError] = (0.1,), usage: Usage = QUIET) -> None:
        self.trials = Trials([*trials])
        self._usage = usage
        self.events: list[str] = []
        self.unloadable: dict[int | None, LlmrunError] = {}
        self.broken_prober = False
        self.most_context = MAX_CTX

    def log(self, event: str) -> None:
        self.events.append(event)

    def open(self, model: Model, config: LoadConfig) -> Engine:
        if error := self.unloadable.get(config.n_threads):
            raise error
        if (config.n_ctx or 0) > self.most_context:
            raise OutOfMemory(f"needs {config.n_ctx} tokens")
        self.log(f"-t {config.n_threads}: opened, n_ctx {config.n_ctx}")
        return Engine(self, model, config)

    def probe(self, device: str, kind: str, n_threads: int, seconds: float, *, repack: bool = False) -> Probed:
        if self.broken_prober:
            raise EngineCrashed("it died")
        self.log(f"probe {device}")
        return Probed([10e9], [1e12])

    def instruments(self, *, ceilings: bool = False, on_battery: bool = False) -> Instruments:
        myself: Any = self
        return Instruments(
            Joules(),
            lambda _pid, _own_cpu_s: myself,
            myself if ceilings else None,
            self.open,
            cpu_mhz=lambda: 2000.0,
            on_battery=lambda: on_battery,
            clock_s=lambda: 0.0,
            sleep=lambda seconds: self.log(f"rest {seconds:g}") if seconds else None,
        )

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None: ...

    def summary(self) -> Usage:
        return self._usage


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    return tmp_path


def run(script: Script, cases: Sequence[Case], instruments: Instruments | None = None, **options: Any) -> Record:
    return bench(
        find_model("tiny"),
        cases,
        MeasurementOptions(**{"repetitions": 3, **options}),
        instruments=instruments or script.instruments(),
    )


def test_the_profile_gets_what_was_measured_beside() -> None:
    """Where one is kept: the last row's ceilings of each layout and number of threads, by the model's main type. A
    bench without ceilings adds nothing, and where no profile is kept none is made."""
    script, key = Script(), key_of(Script.found)
    run(script, [Case(ONE, PP)], script.instruments(ceilings=True))
    assert profile.load(key) is None
    profile.save(key, profile.Profile("2026-11-28T10:00:00Z"))
    run(script, [Case(ONE, PP), Case(ONE, TG), Case(TWO, TG)], script.instruments(ceilings=True))
    run(script, [Case(LoadConfig(n_threads=3), TG)])
    kept = profile.load(key)
    assert kept and [(each.reads.n_threads, each.flops_per_s) for each in kept.seen] == [(1, 1e12), (2, 1e12)]
    assert {each.kind for each in kept.seen} == {main_type(find_model("tiny").header)}
    latest = kept.latest(2)
    assert latest and latest.bytes_per_s == (10e9,) and latest.measured > kept.measured


# -- the order ---------------------------------------------------------------------------------------------------------


def test_order() -> None:
    """One engine for cases with the same settings; a warm-up of each case that is not counted; then its samples."""
    script = Script()
    record = run(script, [Case(ONE, PP), Case(ONE, TG), Case(TWO, TG)], repetitions=2)
    assert script.events == [
        *("-t 1: opened, n_ctx 8", "-t 1: 8,0", "-t 1: 8,0", "-t 1: 8,0", "-t 1: 0,1", "-t 1: 0,4", "-t 1: 0,4"),
        *("-t 1: closed", "-t 2: opened, n_ctx 4", "-t 2: 0,1", "-t 2: 0,4", "-t 2: 0,4", "-t 2: closed"),
    ]
    assert [(row.test, row.settings["n_threads"], len(row.samples)) for row in record.rows] == [
        (PP, 1, 2),
        (TG, 1, 2),
        (TG, 2, 2),
    ]
    assert [row.load_s for row in record.rows] == [TOKEN_S, None, TOKEN_S]


def test_without_warm_up_and_with_rests() -> None:
    """The first run counts; before each case the machine rests."""
    script = Script()
    run(script, [Case(ONE, TG), Case(ONE, PP)], repetitions=1, warm_up=False, delay_s=1.5)
    assert script.events[1:-1] == ["rest 1.5", "-t 1: 0,4", "rest 1.5", "-t 1: 8,0"]


def test_ceilings_are_measured_behind_every_sample() -> None:
    """Beside the samples and not before them; each sample has one of its own."""
    script = Script()
    (row,) = run(script, [Case(ONE, TG)], script.instruments(ceilings=True)).rows
    assert script.events[1:-1] == ["-t 1: 0,1", *["-t 1: 0,4", "probe CPU"] * 3]
    assert row.ceiling_bytes_per_s == {"RAM": (10e9,) * 3} and row.ceiling_flops_per_s == (1e12,) * 3
    assert row.mbu and row.buffers == {"RAM": {"weights": 4}}


def test_a_prober_that_dies() -> None:
    """The bench goes on without ceilings, and says so."""
    script = Script()
    script.broken_prober = True
    record = run(script, [Case(ONE, TG), Case(ONE, PP)], script.instruments(ceilings=True))
    assert [len(row.samples) for row in record.rows] == [3, 3] and record.ended
    assert "ceilings are not known: it died" in map(str, record.rows[0].warnings)


def test_end_to_end() -> None:
    """A text of exactly so many tokens with its template; a warm-up of two tokens; TTFT, gaps and all of it."""
    script = Script()
    (row,) = run(script, [Case(ONE, E2E)], repetitions=1).rows
    assert script.events[1:-1] == [
        *("-t 1: asks 18,0", "-t 1: asks 16,0", "-t 1: asks 16,2", "-t 1: asks 16,4"),
    ]
    (sample,) = row.samples
    assert (sample.prefill_s, sample.ttft_s, sample.total_s) == pytest.approx((0.04, 0.05, 0.08))
    assert row.mean_tps == pytest.approx(50) and sample.cpu_mhz == 2000


def test_in_turn() -> None:
    """Both engines are loaded; who is first changes from pair to pair; two records know of each other."""
    script = Script()
    a, b = bench_interleaved(
        find_model("tiny"),
        ONE,
        TWO,
        [TG],
        MeasurementOptions(repetitions=3),
        instruments=script.instruments(),
    )
    assert script.events == [
        *("-t 1: opened, n_ctx 4", "-t 2: opened, n_ctx 4", "-t 1: 0,1", "-t 2: 0,1"),
        *("-t 1: 0,4", "-t 2: 0,4", "-t 2: 0,4", "-t 1: 0,4", "-t 1: 0,4", "-t 2: 0,4"),
        *("-t 2: closed", "-t 1: closed"),
    ]
    assert a.interleaved_with == b.id and b.interleaved_with == a.id and a.ended
    assert {each.id for each in journal.stored()} == {a.id, b.id}


def test_half_a_comparison_is_none() -> None:
    """A side that dies ends it, and nothing is kept."""
    script = Script([0.1, 0.1, 0.1, EngineCrashed("it died")])
    with pytest.raises(EngineCrashed, match="it died"):
        bench_interleaved(find_model("tiny"), ONE, TWO, [TG], instruments=script.instruments())
    assert journal.stored() == [] and script.events[-2:] == ["-t 2: closed", "-t 1: closed"]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_settings_that_can_not_be_loaded() -> None:
    """They are rows with an error, wherever they stand; the error is the bench's own where nothing can be loaded."""
    script = Script()
    script.unloadable[2] = OutOfMemory("needs 64 GiB", hint="less")
    record = run(script, [Case(ONE, TG), Case(TWO, TG), Case(TWO, PP), Case(ONE, PP)])
    assert [row.error for row in record.rows] == [None, "needs 64 GiB", "needs 64 GiB", None] and record.ended
    told = Told()
    record = told_of(script, told, [Case(TWO, PP), Case(ONE, TG)])
    assert [(row.error, len(row.samples)) for row in record.rows] == [("needs 64 GiB", 0), (None, 2)]
    assert told.events[:4] == ["failed: needs 64 GiB", "loaded -t 1", "began with pp8, tg4", "finished pp8"]
    n_stored = len(journal.stored())
    with pytest.raises(OutOfMemory) as error:
        run(script, [Case(TWO, TG)])
    assert error.value.hint == "less" and len(journal.stored()) == n_stored


def test_a_model_that_can_not_be_loaded_among_others() -> None:
    """Its rows say why, on a machine that is described all the same."""
    script, told = Script(), Told()
    script.unloadable[1] = BadModel("no model")
    record = told_of(script, told, [Case(ONE, TG)], must_load=False)
    assert [row.error for row in record.rows] == ["no model"] and record.ended
    assert record.machine.devices[0].name == "CPU" and record.build.ggml and record.model.description is None
    assert told.events == ["failed: no model", "began with tg4", "finished tg4", "ended with 1, complete"]


def test_a_context_that_does_not_fit() -> None:
    """The case that needs it has the error, at its place; the others are measured with the longest one that fits."""
    script = Script()
    script.most_context = 64
    cases = [Case(ONE, replace(TG, n_depth=n)) for n in (1 << 24, 0, 4096, 32)]
    record = run(script, cases)
    errors = [(row.error or "").partition(" is outside")[0] for row in record.rows]
    assert errors == ["n_ctx: 16777220", "", "needs 4100 tokens", ""]
    assert [len(row.samples) for row in record.rows] == [0, 3, 0, 3] and record.rows[1].settings["n_ctx"] == 36


def test_an_engine_that_dies() -> None:
    """Its row keeps the samples that it has; the rest of its cases gets another engine."""
    script = Script([0.1, 0.1, 0.1, EngineCrashed("the engine was killed"), 0.2])
    record = run(script, [Case(ONE, TG), Case(ONE, PP), Case(TWO, TG)])
    assert [(len(row.samples), row.error) for row in record.rows] == [
        (2, "the engine was killed"),
        (3, None),
        (3, None),
    ]
    assert record.rows[0].usage == QUIET and [row.load_s for row in record.rows] == [TOKEN_S] * 3
    assert [event for event in script.events if "opened" in event] == [
        *("-t 1: opened, n_ctx 8", "-t 1: opened, n_ctx 8", "-t 2: opened, n_ctx 4"),
    ]


# -- who is told -------------------------------------------------------------------------------------------------------


class Told(Observer):
    """Notes what it is told; `interrupt` is called with each row."""

    def __init__(self, interrupt: Callable[[Row], None] = lambda row: None) -> None:
        self.events: list[str] = []
        self._interrupt = interrupt

    def loaded(self, notes: Sequence[str]) -> None:
        self.events += notes

    def began(self, record: Record, planned: Sequence[Row], *, energy: bool) -> None:
        assert not record.rows and not energy
        self.events.append(f"began with {', '.join(row.test.name for row in planned)}")

    def sampled(self, case: Case, done: int, of: int) -> None:
        self.events.append(f"{case.test.name} {done}/{of}")

    def finished(self, row: Row) -> None:
        self.events.append(f"finished {row.test.name}")
        self._interrupt(row)

    def failed(self, error: LlmrunError) -> None:
        self.events.append(f"failed: {error}")

    def ended(self, record: Record) -> None:
        self.events.append(f"ended with {len(record.rows)}, {'cut short' if record.ended is None else 'complete'}")


def told_of(script: Script, told: Told, cases: Sequence[Case] = (), **more: Any) -> Record:
    return bench(
        find_model("tiny"),
        cases or [Case(ONE, PP), Case(ONE, TG), Case(TWO, TG)],
        MeasurementOptions(repetitions=2),
        observers=[told],
        quality={"ppl": 8.0},
        command=["llmrun", "bench"],
        instruments=script.instruments(),
        **more,
    )


def test_observers_and_journal() -> None:
    """Everything in its order; the journal has the record that is returned."""
    told = Told()
    record = told_of(Script(), told)
    assert told.events == [
        *("loaded -t 1", "began with pp8, tg4, tg4", "pp8 1/2", "pp8 2/2", "finished pp8"),
        *("tg4 1/2", "tg4 2/2", "finished tg4", "loaded -t 2", "tg4 1/2", "tg4 2/2", "finished tg4"),
        "ended with 3, complete",
    ]
    (stored,) = journal.stored()
    assert stored.record == record and record.command == ("llmrun", "bench") and record.quality == {"ppl": 8.0}
    assert record.settings["repetitions"] == 2 and record.build.ggml == "1.2"
    assert record.machine.devices[0].name == "CPU" and record.model.name == "tiny"


def test_interrupted() -> None:
    """Ctrl-C while a row is shown: its engine is closed, the row is kept, and the record is cut short."""

    def interrupt(row: Row) -> None:
        if row.test == TG:
            raise KeyboardInterrupt

    script, told = Script(), Told(interrupt)
    with pytest.raises(KeyboardInterrupt):
        told_of(script, told)
    assert script.events[-1] == "-t 1: closed" and told.events[-1] == "ended with 2, cut short"
    (stored,) = journal.stored()
    assert stored.record and stored.record.ended is None
    assert [row.test for row in stored.record.rows] == [PP, TG]


# -- warnings ----------------------------------------------------------------------------------------------------------


def codes(script: Script, **options: Any) -> list[str]:
    on_battery = options.pop("on_battery", False)
    (row,) = run(script, [Case(ONE, TG)], script.instruments(on_battery=on_battery), **options).rows
    return [warning.code for warning in row.warnings]


def test_warnings() -> None:
    """A quiet machine has none; what was seen while the samples ran is in the row."""
    assert codes(Script()) == []
    assert codes(Script(), repetitions=2) == ["few-samples"]
    assert codes(Script([0.1, 0.1, 0.2, 0.3])) == ["noisy"]
    assert codes(Script(), on_battery=True) == ["battery"]
    assert codes(Script(usage=replace(QUIET, other_cpu_s=0.5, major_faults=3))) == ["others-busy", "read-from-disk"]
