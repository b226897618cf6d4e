"""`llmrun experiment NAME...`: the founding questions, answered by measurement on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen
from llmrun.errors import LlmrunError
from llmrun.options import parse
from llmrun.options.endpoints import listed, parse_endpoints
from llmrun.options.spec import Number, Written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrun.experiments.record import Record


def experiment(
    names: Annotated[list[str] | None, Argument("NAME", "One or several of the list, or all.")] = None,
    quick: Annotated[bool, Option("--quick", help="Fewer values and rounds: a quarter of an hour for all.")] = False,
    device: Annotated[
        tuple[str, ...] | None,
        Option("-dev", "--device", metavar="NAME,...", kind=Written(parse.devices), help="Measure on these as well."),
    ] = None,
    rpc: Annotated[
        tuple[str, ...] | None,
        Option(
            "--rpc", metavar="HOST:PORT,...", kind=Written(parse_endpoints, listed), help="Workers that lend devices."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        Option("--model", metavar="GGUF", help="A real model, whose levels are judged by what they lose."),
    ] = None,
    watts: Annotated[
        float | None,
        Option("--watts", kind=Number(0.1, 1e6), metavar="W", help="What this machine takes, where nothing counts it."),
    ] = None,
    price_kwh: Annotated[
        float, Option("--price-kwh", kind=Number(0, 1e9), metavar="P", help="Price of a kWh, in any currency.")
    ] = 0.30,
    output: Annotated[
        Path | None,
        Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Write records, pictures and pages there.",
            without="beside the records of benches",
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Conduct experiments: claims on CPUs and GPUs, and what they are worth here.

    Without a name: the list. Each writes a record, pictures and a page with claim, method, result and verdict; the
    front page is one table of all that lie in the folder. An experiment that was ended goes on where it was. Models are
    noise in real shapes, written for the time; several GB of disk are needed.
    """
    from llmrun.experiments import conduct
    from llmrun.experiments.lab import Options

    if not names:
        _list(as_json=as_json)
        return
    wanted = conduct.chosen(names)
    from llmrun.cli.terminal import progress

    folder, errors = output or conduct.usual_folder(), list[LlmrunError]()
    asked = Options(quick, tuple(device or ()), tuple(rpc or ()), model, watts, price_kwh)
    if model is not None:
        from llmrun.models.resolve import find_model

        find_model(str(model))  # before anything is measured
    with progress.bar("measuring", shown=not quiet) as bar:

        def began(name: str, n_found: int) -> None:
            if not quiet:
                entry = conduct.EXPERIMENTS[name]
                screen.note(f"{name}: {entry.title}" + (f" ({n_found} samples are there already)" if n_found else ""))

        def measuring(_cell: str, done: int, of: int) -> None:
            if bar:
                bar.update(done / of)

        def ended(_record: Record, files: Sequence[Path]) -> None:
            if not quiet:
                screen.note(f"wrote {files[-1]}")

        def failed(name: str, error: LlmrunError) -> None:
            errors.append(error)
            screen.note(f"{name} could not be measured: {error.message}")

        hooks = conduct.Hooks(began, measuring, ended, failed, lambda text: None if quiet else screen.note(text))
        records = conduct.conduct(
            wanted, asked, folder, command=lambda name: _command(name, asked, output), hooks=hooks
        )
    _show(records, as_json=as_json)
    if errors:
        raise errors[0]


def _list(*, as_json: bool) -> None:
    from llmrun.cli.terminal import tables
    from llmrun.experiments.conduct import EXPERIMENTS
    from llmrun.experiments.experiment import ARTICLES

    rows = [(name, entry.title, ARTICLES[entry.article]) for name, entry in EXPERIMENTS.items()]
    if as_json:
        screen.out_json([{"name": name, "title": title, "article": article} for name, title, article in rows])
    else:
        tables.show(["NAME", "QUESTION", "ARTICLE"], rows)


def _command(name: str, asked: object, output: Path | None) -> tuple[str, ...]:
    from llmrun.experiments.lab import Options

    assert isinstance(asked, Options)
    words = ["llmrun", "experiment", name]
    words += ["--quick"] * asked.quick
    words += ["--device", ",".join(asked.devices)] if asked.devices else []
    words += ["--rpc", "HOST:PORT"] if asked.rpc else []
    words += ["--model", asked.model.name] if asked.model else []
    words += ["--watts", f"{asked.watts:g}"] if asked.watts else []
    words += ["--price-kwh", f"{asked.price_kwh:g}"] if asked.price_kwh != Options().price_kwh else []
    words += ["-o", str(output)] if output is not None and not output.is_absolute() else []
    return tuple(words)


def _show(records: Sequence[Record], *, as_json: bool) -> None:
    from llmrun.bench.record import to_document
    from llmrun.experiments import report

    if as_json:
        documents = [to_document(record) for record in records]
        screen.out_json(documents[0] if len(documents) == 1 else documents)
    elif len(records) == 1:
        screen.out(report.page(records[0], {}))
    else:
        screen.out(report.front(records))
