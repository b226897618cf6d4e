"""`llmrun plan MODEL...`: whether a model fits, and how fast it would be, before it is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llmrun.cli.framework import options, sweeps
from llmrun.cli.framework.options import Option
from llmrun.cli.plans import layer_curve, report
from llmrun.cli.plans.accuracy import tell_accuracy
from llmrun.cli.plans.asked import Asked
from llmrun.cli.terminal import screen
from llmrun.errors import UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.spec import Number, Whole

if TYPE_CHECKING:
    from llmrun.planning.predict.prediction import Source

MAX_DEPTHS = 32

NGen = Annotated[
    int | None, Option("-n", "--n-gen", kind=Whole(0, 1 << 24), help="Tokens of answer.", without="128, or -c if less")
]
NDepth = Annotated[
    list[str] | None,
    Option("-d", "--n-depth", metavar="N", help="Tokens before the one that is decoded.", without="0,4096"),
]


def plan(
    model: options.OptionalModelNames = None,
    what_if: Annotated[
        str | None,
        Option(
            "--what-if",
            metavar="MACHINE",
            help="On a machine that is not here: 'RTX 4090', '2x RTX 3090', 'M3 Max 40c', 'DDR5-5600 x2 32gb',"
            " 'RTX 4090 + DDR5-5600 x2', 'kind=cpu,bandwidth=89.6,memory=32'.",
        ),
    ] = None,
    n_prompt: Annotated[
        int | None,
        Option("-p", "--n-prompt", kind=Whole(1, 1 << 24), help="Tokens of prompt.", without="512, or -c if less"),
    ] = None,
    n_gen: NGen = None,
    n_depth: NDepth = None,
    target_tps: Annotated[
        float | None,
        Option("--target-tps", kind=Number(0.001, 1e6), metavar="N", help="Name the best level that decodes so fast."),
    ] = None,
    watts: Annotated[
        float | None,
        Option("--watts", kind=Number(0.1, 1e6), metavar="W", help="What the machine takes while it decodes: energy."),
    ] = None,
    price_kwh: Annotated[
        float | None,
        Option("--price-kwh", kind=Number(0, 1e9), metavar="P", help="Price of a kWh: cost of a million tokens."),
    ] = None,
    probe: Annotated[bool, Option("--probe", help="Measure it on this machine, by slices of the model.")] = False,
    curve: Annotated[
        bool, Option("--curve", help="Every number of layers on devices: by slices, and at most four runs of it.")
    ] = False,
    output: Annotated[
        Path | None, Option("-o", "--output", metavar="FILE", help="Draw the curve to this .svg or .png as well.")
    ] = None,
    accuracy: Annotated[bool, Option("--accuracy", help="Show how right predictions for runs here were.")] = False,
    forget: Annotated[bool, Option("--forget", help="Forget that, and the corrections that were learned.")] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
) -> None:
    """Predict whether a model fits, and how fast it would be.

    For every level in a model's repository, or for the one that is named: only headers are read, a few MB each. Without
    a model: those of the catalog, the best for this machine first. Figures are the likeliest, and the range that holds
    the truth in 80 to 95 of 100 cases. For this machine they come from its profile, which is measured once, in half a
    minute. How they are computed, and how wrong they were: docs/how-speed-is-predicted.md.
    """
    from llmrun.models.store import state
    from llmrun.planning.predict.costs import Costs

    if (probe or curve) and what_if is not None:
        measured = "--curve" if curve else "--probe"
        raise UsageError(
            "another machine can't be measured", field="what_if", hint=f"leave out one of {measured}, --what-if"
        )
    if output is not None and not curve:
        raise UsageError("only a curve is drawn", field="output", hint="--curve")
    if accuracy or forget:
        if model:
            option = "--forget" if forget else "--accuracy"
            raise UsageError(f"{option} is about the runs of all models: name none", hint=f"llmrun plan {option}")
        tell_accuracy(as_json=as_json, forget=forget)
        return
    depths = tuple(dict.fromkeys(sweeps.whole("-d/--n-depth", n_depth or [])))
    if len(depths) > MAX_DEPTHS:
        raise UsageError(f"{len(depths)} depths; {MAX_DEPTHS} are enough", field="n_depth")
    costs = Costs(state.download_rate(), watts, price_kwh)
    size = _within(load, n_prompt, 512), _within(load, n_gen, 128)
    asked = Asked(*size, depths, load, target_tps, costs, offline=offline, as_json=as_json, quiet=quiet)
    if curve:
        layer_curve.tell(model or [], asked, output)
        return
    # First whatever may be refused, then what takes half a minute.
    models = report.looked_up(model, asked) if model else report.catalog_looked_up(asked)
    with _source(what_if, load, probe=probe, quiet=quiet) as source:
        tell = report.tell if model else report.rank
        tell(models, source, asked, _called(what_if))


def probe(
    model: options.ModelNames,
    n_prompt: Annotated[
        int | None,
        Option("-p", "--n-prompt", kind=Whole(1, 1 << 16), help="Tokens of prompt.", without="512, or -c if less"),
    ] = None,
    n_gen: NGen = None,
    n_depth: NDepth = None,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
) -> None:
    """Measure how fast a model would be here, without it: by slices of it.

    They take at most 4 GB. Its header is enough, of a file or of one on the hub; a model that is larger than this
    machine's memory can be measured as well. As `llmrun plan --probe`.
    """
    from llmrun.models.store import state
    from llmrun.planning.predict.costs import Costs

    depths = tuple(dict.fromkeys(sweeps.whole("-d/--n-depth", n_depth or [])))
    costs = Costs(state.download_rate())
    size = _within(load, n_prompt, 512), _within(load, n_gen, 128)
    asked = Asked(*size, depths, load, None, costs, offline=offline, as_json=as_json, quiet=quiet)
    models = report.looked_up(model, asked)
    with _source(None, load, probe=True, quiet=quiet) as source:
        report.tell(models, source, asked, "this machine")


def _within(load: LoadConfig, asked: int | None, usual: int) -> int:
    """What is asked, else what is usual, as far as a context that is asked holds it."""
    return min(usual, load.n_ctx or usual) if asked is None else asked


@contextmanager
def _source(what_if: str | None, load: LoadConfig, *, probe: bool, quiet: bool) -> Iterator[Source]:
    """Who predicts for the machine that is meant. Raises `UsageError`."""
    if what_if is not None:
        from llmrun.planning.predict.elsewhere import Elsewhere
        from llmrun.planning.predict.machines import parse

        yield Elsewhere(parse(what_if))
        return
    from llmrun.cli.terminal import progress
    from llmrun.engine.jobs.roofline import Prober
    from llmrun.machine.energy import Joules
    from llmrun.machine.nvml import NoGpus
    from llmrun.tuning import sources

    # Ended before anything is planned: a worker serves one client at a time.
    with Prober(load.rpc, spins=False) as prober:
        found, now = prober.found, sources.Moment()
        known = None if probe else sources.profile_of(prober, on_measure=partial(_say, quiet), on_note=screen.note)
        if known is not None:
            now = sources.moment_of(known, prober, Joules.open(NoGpus("of the CPU alone")))
    if known is not None:
        if known.is_uneven and not quiet:
            from llmrun.units import fixed

            least, most = (fixed(each, 2) for each in (min(known.later), max(known.later)))
            screen.note(
                f"this machine is uneven: seconds later its products took {least} to {most} times as long, so that"
                " ranges are wide; llmrun devices --profile measures it anew"
            )
        yield sources.Here(known, found, now)
        return
    with progress.bar("measuring slices", shown=not quiet) as bar:
        yield sources.Probe(found, on_round=lambda done, of: bar.update(done / of) if bar else None)


def _called(what_if: str | None) -> str:
    """The machine, as it is told of in text."""
    from llmrun.planning.predict.machines import parse

    return "this machine" if what_if is None else parse(what_if).title


def _say(quiet: bool) -> None:
    if not quiet:
        screen.note("measuring what this machine can do, once: half a minute")
