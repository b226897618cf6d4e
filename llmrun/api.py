"""llmrun from Python: what `import llmrun` offers, each with the work of the command of its name behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrun.bench.observer import Observer
    from llmrun.bench.record import Record
    from llmrun.bench.spec import MeasurementOptions, Test
    from llmrun.engine.interface import Engine
    from llmrun.models.hub.events import OnPullEvent
    from llmrun.options.load import KvType, LoadConfig
    from llmrun.tuning.search import Outcome
    from llmrun.tuning.tune import Tuned


def open_model(
    reference: str, config: LoadConfig | None = None, *, on_progress: Callable[[float], None] | None = None
) -> Engine:
    """Loads a model in a process of its own; use it as a context manager.

    `reference` is what the command line takes: "tiny", "qwen3:4b", "user/repo:Q4_K_M", a path to a GGUF file. What is
    missing is pulled. `on_progress` gets the share that is loaded, 0 to 1. Raises what `find_model` and `Engine` raise,
    all of it `LlmrunError`.
    """
    from llmrun.engine.engine import ChildEngine
    from llmrun.models.resolve import find_model

    model = find_model(reference)
    return ChildEngine(model.path, model.header, config, on_progress=on_progress)


def pull(
    reference: str,
    *,
    quant: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    on_event: OnPullEvent | None = None,
) -> Path:
    """Fetches a model from the hub, verified, and returns its file, of a split model the first.

        llmrun.pull("qwen3:4b", quant="Q8_0", on_event=print)

    What is here already is not fetched again, and an interrupted pull goes on where it stopped. The hub is asked what
    the name means now; `open_model` asks it only for what is not here.

    Attributes:
        reference: "qwen3:4b", "user/repo", a file's URL on the hub; "tiny" and imported models are here already.
        quant: quantization level, "Q4_K_M"; None: that of the name, else the usual one.
        revision: branch, tag or commit of the repository; None: that of the name, else the main branch.
        offline: only look for it on this machine.
        on_event: gets what happens, each a dataclass of `llmrun.models.hub.events`: PullStarted, PullProgress...

    Raises `LlmrunError`: `UsageError` for a file, and where the name says another quant or revision; `NotFound`,
    `NotInStore`, `NetworkError`, `IntegrityError`, `DiskError`, `BadModel`.
    """
    from llmrun.models.hub import download, info
    from llmrun.models.reference import Embedded
    from llmrun.models.resolve import find_imported, to_pull

    named = to_pull(reference, quant, revision)
    if isinstance(named, Embedded):
        return named.path
    if imported := find_imported(named):
        return imported.path
    return download.pull(info.resolve(named, offline=offline), on_event, offline=offline)


def benchmark(
    reference: str,
    tests: Sequence[Test] | None = None,
    configs: Sequence[LoadConfig] | None = None,
    options: MeasurementOptions | None = None,
    *,
    observers: Sequence[Observer] = (),
) -> Record:
    """Measures tokens per second as `llmrun bench` does, and keeps the record in its history.

        record = llmrun.benchmark("tiny", [llmrun.BenchTest("tg", n_gen=128)])
        print(record.rows[0].median_tps, "t/s")

    Attributes:
        reference: as in `open_model`.
        tests: what is measured; None: a prompt of 512 tokens, and 128 tokens generated.
        configs: settings to load the model with, every test with each; None: the defaults.
        options: how often, with a warm-up or not, beside ceilings or not.
        observers: are told of every sample and row as it is measured.

    Raises what `find_model` and `Engine` raise, and `DiskError`, all of it `LlmrunError`. Settings that do not fit are
    a row with an `error`, except the first.
    """
    from llmrun.bench.session import bench
    from llmrun.bench.spec import Case, make_tests
    from llmrun.models.resolve import find_model
    from llmrun.options.load import LoadConfig

    cases = [Case(config, test) for config in configs or [LoadConfig()] for test in tests or make_tests()]
    model = find_model(reference, use="write" if any(case.test.n_gen for case in cases) else "read")
    return bench(model, cases, options, observers=observers)


def tune(
    reference: str,
    n_prompt: int = 64,
    n_gen: int = 256,
    config: LoadConfig | None = None,
    *,
    budget_s: float = 60.0,
    kv_types: Sequence[KvType] = (),
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Tuned:
    """Finds the fastest settings for prompts and answers of such lengths on this machine, as `llmrun tune` does, and
    keeps them for `llmrun run`, `chat` and `bench --tuned`.

        tuned = llmrun.tune("qwen3:0.6b", n_prompt=512, n_gen=128)
        with llmrun.open_model("qwen3:0.6b", tuned.dials.applied(llmrun.LoadConfig())) as model: ...

    Attributes:
        reference: as in `open_model`.
        n_prompt, n_gen: tokens.
        config: what stays as it is.
        budget_s: no measurement is begun after so long.
        kv_types: types of keys and values that may be tried; they change what the model answers.
        on_outcome: is told of every candidate that was measured.

    Raises what `find_model` and `Engine` raise, and `DiskError`, all of it `LlmrunError`.
    """
    from llmrun.models.resolve import find_model
    from llmrun.tuning.dials import Workload
    from llmrun.tuning.tune import tune as measured

    work = Workload(n_prompt, n_gen)
    return measured(find_model(reference), work, config, budget_s=budget_s, kv_types=kv_types, on_outcome=on_outcome)
