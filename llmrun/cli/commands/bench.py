"""`llmrun bench MODEL...`: tokens per second, with everything that the number depends on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.bench_options import OutputFile, OutputFormat, Texts, outputs, tests_of
from llmrun.cli.framework.options import Option, Swept
from llmrun.cli.loading import load_model
from llmrun.cli.terminal import progress, screen
from llmrun.cli.terminal.progress import CountBar
from llmrun.errors import Change, LlmrunError, UsageError
from llmrun.options.load import LoadConfig

if TYPE_CHECKING:
    from llmrun.bench.export.formats import Format
    from llmrun.bench.quality import Quality
    from llmrun.bench.record import Record, Row
    from llmrun.bench.spec import Case
    from llmrun.models.resolve import Model, Use


def bench(
    model: options.ModelNames,
    n_prompt: Annotated[
        Texts, Option("-p", "--n-prompt", metavar="N", help="Prompts to compute.", without="512")
    ] = None,
    n_gen: Annotated[Texts, Option("-n", "--n-gen", metavar="N", help="Tokens to generate.", without="128")] = None,
    pg: Annotated[
        Texts, Option("-pg", metavar="PP,TG", help="A prompt and then an answer, timed together. Repeatable.")
    ] = None,
    n_depth: Annotated[
        Texts, Option("-d", "--n-depth", metavar="N", help="Tokens that are in the context before.", without="0")
    ] = None,
    n_parallel: Annotated[
        Texts, Option("-B", "--n-parallel", metavar="N", help="Sequences side by side, as llama-batched-bench.")
    ] = None,
    end_to_end: Annotated[
        bool, Option("--end-to-end", help="Also what a user waits for: template, tokens, sampling, text.")
    ] = False,
    repetitions: Annotated[int, Option("-r", "--repetitions", help="Samples of each test.")] = 5,
    delay_s: Annotated[float, Option("--delay", metavar="S", help="Seconds of rest before each test.")] = 0.0,
    no_warmup: Annotated[bool, Option("--no-warmup", help="Time the first run as well.")] = False,
    no_ceilings: Annotated[
        bool, Option("--no-ceilings", help="Don't measure what the memory can do beside the samples.")
    ] = False,
    price_kwh: Annotated[
        float | None, Option("--price-kwh", metavar="P", help="Price of a kWh: cost of a million tokens.")
    ] = None,
    price_hour: Annotated[
        float | None, Option("--price-hour", metavar="P", help="Price of an hour of this machine: the same.")
    ] = None,
    quality: Annotated[
        str | None,
        Option("--quality", metavar="FILE", help="Also perplexity on this text; 'default' is the one that llmrun has."),
    ] = None,
    reference: Annotated[
        str | None,
        Option("--reference", metavar="MODEL", help="With --quality: how far from this model's predictions."),
    ] = None,
    tuned: Annotated[
        bool, Option("--tuned", help="Take what `llmrun tune` or a first use has found, where nothing else is said.")
    ] = False,
    output_format: OutputFormat = "table",
    output_file: OutputFile = None,
    quiet: options.Quiet = False,
    *,
    configs: Annotated[list[LoadConfig], Swept(without=("n_ctx",))],
) -> None:
    """Measure tokens per second.

    Options that take a list sweep all combinations: -t 1,2 -ub 128-512*2 -ngl 0,all. Names and syntax are
    llama-bench's, and so is the method: random tokens, no tokenization, no sampling. Rows appear as they are measured;
    what is finished when you press Ctrl-C is kept. `llmrun bench history` has every bench, `llmrun compare` sets two
    side by side.
    """
    from llmrun.bench.export.stream import ExportFile
    from llmrun.bench.session import bench as run_bench
    from llmrun.bench.spec import Case, MeasurementOptions

    format, output_file, file_format = outputs(output_format, output_file)
    if tuned:
        from llmrun.cli.loading.tuned import fastest
    measuring = MeasurementOptions(repetitions, not no_warmup, delay_s, not no_ceilings, price_kwh, price_hour)
    tests = tests_of(n_prompt, n_gen, pg, n_depth, n_parallel, end_to_end=end_to_end)
    cases = [Case(config, test) for config in configs for test in tests]
    if reference is not None and quality is None:
        raise UsageError("this is for `quality`", field="reference", hint=Change({"quality": "default"}))
    text = _read_text(quality) if quality is not None else None
    use: Use = "write" if any(test.n_gen for test in tests) else "read"
    models = [load_model.found(name, quiet=quiet, use=use) for name in model]
    with ExitStack() as stack:
        shown = stack.enter_context(_observer(format, len(cases) * repetitions, quiet=quiet))
        file = [stack.enter_context(ExportFile(output_file, file_format))] if output_file and file_format else []
        records = []
        for found in models:
            judged = _judged(found, text, reference, cases[0].config, quiet=quiet) if text else None
            records.append(
                run_bench(
                    found,
                    [replace(case, config=fastest(found, case, quiet=quiet)) for case in cases] if tuned else cases,
                    measuring,
                    observers=(*file, shown),
                    quality=judged,
                    command=("llmrun", *sys.argv[1:]),
                    must_load=len(models) * len(configs) == 1,
                )
            )
    if not any(row.samples for record in records for row in record.rows):
        raise shown.errors[0]


def _observer(format: Format, n_samples: int, *, quiet: bool) -> Any:
    """Rows on stdout as they are measured; notes and the bar on stderr. `errors` has those of all rows."""
    from llmrun.bench.export.stream import ExportStream

    class OnScreen(ExportStream):
        def __init__(self) -> None:
            super().__init__(format, self._out)
            self.errors: list[LlmrunError] = []
            self._bar = CountBar(n_samples, shown=not quiet)

        def _out(self, text: str) -> None:
            with self._bar.aside():
                screen.out(text)

        def _note(self, text: str) -> None:
            with self._bar.aside():
                screen.note(text)

        def loaded(self, notes: Sequence[str]) -> None:
            for note in () if quiet else notes:
                self._note(note)

        def began(self, record: Record, planned: Sequence[Row], *, energy: bool) -> None:
            super().began(record, planned, energy=energy)
            self._bar.start()

        def sampled(self, case: Case, done: int, of: int) -> None:
            self._bar.advance(f"{case.test.name} {done}/{of}")

        def finished(self, row: Row) -> None:
            super().finished(row)
            if row.error:
                self._note(f"{row.test.name}: {row.error}")

        def failed(self, error: LlmrunError) -> None:
            self.errors.append(error)

        def ended(self, record: Record) -> None:
            self._bar.stop()
            super().ended(record)
            if not quiet:
                screen.note(f"kept as {record.id}: llmrun bench history show {record.id}")

    return OnScreen()


def _read_text(text: str) -> tuple[str, str]:
    """The name of a text, and the text."""
    from llmrun.bench.quality import default_text, read_text

    if text == "default":
        return "llmrun's text", default_text()
    path = Path(text)
    return path.name, read_text(path)


def _judged(
    found: Model, text: tuple[str, str], reference: str | None, config: LoadConfig, *, quiet: bool
) -> dict[str, Any]:
    """How well the model predicts a text, as a record has it."""
    from llmrun.bench.session import quality_of

    beside = load_model.found(reference, quiet=quiet) if reference else None
    with progress.bar(f"perplexity of {found.name}", shown=not quiet) as bar:

        def tick(so_far: Quality, n_chunks: int) -> None:
            if bar:
                bar.update(so_far.n_chunks / n_chunks)

        return quality_of(found, *text, config=config, reference=beside, on_progress=tick)
