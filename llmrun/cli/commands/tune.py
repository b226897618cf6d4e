"""`llmrun tune MODEL`: the fastest settings here, found by measuring, kept for `run`, `chat` and `bench --tuned`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast, get_args

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import load_model
from llmrun.cli.loading import tuned as tuning
from llmrun.cli.terminal import screen, tables
from llmrun.errors import Change, NotFound, UsageError
from llmrun.options.defaults import MOST_TUNE_S
from llmrun.options.load import KvType, LoadConfig
from llmrun.options.spec import Choice, Number, Whole
from llmrun.units import UNKNOWN, percent, rate

if TYPE_CHECKING:
    from llmrun.tuning import kept
    from llmrun.tuning.dials import Workload
    from llmrun.tuning.search import NotTried, Outcome
    from llmrun.tuning.tune import Tuned

PURPOSES = {"chat": (64, 256), "summarise": (2048, 128), "code": (512, 512), "batch": (512, 64)}
"""Tokens of prompt and of answer that they stand for."""
_DIALS = {
    "repack": "layout",
    "n_threads": "threads",
    "n_threads_batch": "prefill threads",
    "n_ubatch": "micro-batch",
    "flash_attn": "flash attention",
    "kv_type": "KV type",
    "load_mode": "load mode",
}
_TITLES = ("TRIED", "SETTINGS…", ">PROMPT", ">ANSWER", ">GAIN", "95 %", "")


def tune(
    model: options.ModelName,
    purpose: Annotated[
        str,
        Option(
            "--for", kind=Choice(tuple(PURPOSES)), help="What the model is for: prompts and answers of that length."
        ),
    ] = "chat",
    n_prompt: Annotated[
        int | None, Option("-p", "--n-prompt", kind=Whole(1, 1 << 20), help="Tokens of prompt.")
    ] = None,
    n_gen: Annotated[int | None, Option("-n", "--n-gen", kind=Whole(1, 1 << 20), help="Tokens of answer.")] = None,
    allow_kv: Annotated[
        list[str] | None,
        Option(
            "--allow-kv",
            kind=Choice(get_args(KvType)),
            metavar="TYPE",
            help="A type of keys and values that may be taken as well; it changes what the model answers. Repeatable.",
        ),
    ] = None,
    seconds: Annotated[
        float,
        Option(
            "--seconds",
            kind=Number(0.1, MOST_TUNE_S),
            metavar="S",
            help="Begin no measurement after so long, loading not counted.",
        ),
    ] = 60.0,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
) -> None:
    """Find the fastest settings for a model on this machine, and keep them.

    Weight layout, threads for decoding and for prefill, micro-batch, flash attention and load mode are tried one after
    the other, each in turn with the best so far; what gains more than noise is kept, for prompts of that length.
    `llmrun run`, `chat` and `bench --tuned` take it from then on, unless an option says otherwise. A table of what was
    tried goes to stdout.
    """
    from llmrun.tuning.dials import Workload, class_of
    from llmrun.tuning.tune import tune as measured

    _check_free(load)
    found = load_model.found(model, quiet=quiet)
    usual = PURPOSES[purpose]
    workload = Workload(n_prompt or usual[0], n_gen or usual[1])
    bounds = ((found.header.n_ctx_train, " that the model was trained on"), (load.n_ctx, " of the context"))
    for most, what in bounds:
        if most and workload.n_prompt + workload.n_gen > most:
            raise UsageError(
                f"{workload.n_prompt} tokens of prompt and {workload.n_gen} of answer are more than the {most}{what}",
                field="n_prompt",
                hint=Change({"n_prompt": max(1, most - workload.n_gen), "n_gen": min(workload.n_gen, most - 1)}),
            )

    def tell(outcome: Outcome) -> None:
        if not quiet:
            screen.note("  ".join(cells(outcome)).rstrip())

    kinds = cast("list[KvType]", allow_kv or [])
    tuned = measured(found, workload, load, budget_s=seconds, kv_types=kinds, on_outcome=tell)
    if (beside := tuning.disturbed(tuned.choice)) and not quiet:
        screen.note(f"{beside}: measured again when they have ended, it may come out otherwise")
    name = class_of(workload.n_prompt)
    if as_json:
        screen.out_json(_document(found.name, workload, name, tuned))
    else:
        tables.show(_TITLES, [*map(cells, tuned.outcomes), *map(_cells_not_tried, tuned.not_tried)])
        screen.out(f"\nkept for {name} prompts of {found.name}: {tuned.dials.words()}\n")


def list_(as_json: options.Json = False) -> None:
    """Show what was measured to be fastest, by model and length of prompt."""
    from llmrun.tuning import kept

    entries = [*kept.entries()]
    rows = [(entry.path.stem, entry.model, name, each) for entry in entries for name, each in entry.choices.items()]
    if n_damaged := sum(not entry.choices for entry in entries):
        screen.note(f"{n_damaged} damaged file{'s' if n_damaged > 1 else ''}: llmrun tune rm --all removes everything")
    if as_json:
        from llmrun import codec

        screen.out_json(
            [{"id": id, "model": model, "prompts": name, **codec.plain(each)} for id, model, name, each in rows]
        )
    else:
        shown = [(id, model, name, each.dials.words(), _by(each), each.made[:10]) for id, model, name, each in rows]
        tables.show(("ID", "MODEL", "PROMPTS", "SETTINGS…", "BY", "MADE"), shown)


def _by(choice: kept.Choice) -> str:
    return f"{choice.by}, {tuning.disturbed(choice)}" if tuning.disturbed(choice) else choice.by


def rm(
    ids: Annotated[list[str] | None, options.Argument("ID", "As `llmrun tune list` shows them, or models.")] = None,
    all_: Annotated[bool, Option("--all", help="Everything that was measured.")] = False,
) -> None:
    """Forget it: the next run measures anew."""
    from llmrun import fs
    from llmrun.tuning import kept

    if bool(ids) == all_:
        raise UsageError(f"name what to forget, or give --all{', not both' if all_ else ''}", hint="llmrun tune list")
    entries = [*kept.entries()]
    if not entries and all_:
        screen.note("nothing is kept")
    meant = entries if all_ else [entry for name in ids or () for entry in _named(name, entries)]
    for path, model in {entry.path: entry.model for entry in meant}.items():
        with fs.disk_errors(f"removing {path}"):
            path.unlink(missing_ok=True)
        screen.note(f"forgot {path.stem}, {model or 'damaged'}")


def _named(name: str, entries: Sequence[kept.Entry]) -> list[kept.Entry]:
    """What somebody means: an id, the name that a model had when it was measured, or a model that takes the same."""
    from llmrun.errors import LlmrunError
    from llmrun.models.resolve import find_model

    def not_here(named: object) -> NoReturn:
        raise NotFound(f"{named} is not here")

    if meant := [entry for entry in entries if name in (entry.path.stem, entry.model)]:
        return meant
    with suppress(LlmrunError):
        header = find_model(name, fetch=not_here, use="keep").header
        meant = [entry for entry in entries if entry.is_of(header)]
    if not meant:
        raise NotFound(f"nothing is kept as '{name[:40]}'", hint="llmrun tune list")
    return meant


def _check_free(load: LoadConfig) -> None:
    """What is to be found can't be given."""
    default = LoadConfig()
    for field in ("repack", "n_threads", "n_threads_batch", "n_ubatch", "flash_attn"):
        if getattr(load, field) != getattr(default, field):
            raise UsageError(
                f"{getattr(load, field)}: this is what is looked for; leave it out",
                field=field,
                value=getattr(load, field),
            )


def cells(outcome: Outcome) -> tuple[str, ...]:
    """Its row of the table."""
    # Two pairs, and no scatter known of others: a hundred times as fast or not says nothing.
    says_nothing = 1 + outcome.high > 100 * (1 + outcome.low)
    interval = f"{percent(outcome.low, signed=True)} to {percent(outcome.high, signed=True)}"
    return (
        _DIALS[outcome.dial],
        outcome.dials.words(),
        rate(1 / outcome.prefill_s),
        rate(1 / outcome.decode_s),
        percent(outcome.gain, signed=True),
        UNKNOWN if says_nothing else interval,
        "taken" if outcome.taken else "",
    )


def _cells_not_tried(left_out: NotTried) -> tuple[str, ...]:
    words = left_out.dials.words()
    return _DIALS[left_out.dial], words, UNKNOWN, UNKNOWN, percent(left_out.gain, signed=True), "predicted", "not tried"


def _document(model: str, workload: Workload, name: str, tuned: Tuned) -> dict[str, Any]:
    from llmrun import codec

    return {
        "model": model,
        "n_prompt": workload.n_prompt,
        "n_gen": workload.n_gen,
        "prompts": name,
        "settings": codec.plain(tuned.dials),
        "tried": [codec.plain(each) for each in tuned.outcomes],
        "not_tried": [codec.plain(each) for each in tuned.not_tried],
    }
