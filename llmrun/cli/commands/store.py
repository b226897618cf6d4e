"""What is on this machine: `list`, `rm`, `verify`, `import`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.loading import lookup
from llmrun.cli.terminal import progress, screen, tables
from llmrun.cli.terminal.tables import Column
from llmrun.clock import utc_of
from llmrun.errors import IntegrityError, NotInStore, UsageError
from llmrun.models import quants
from llmrun.units import UNKNOWN, count, percent, size

if TYPE_CHECKING:
    from llmrun.cli.commands.quantize import Workshop
    from llmrun.models.store import Leftover, StoredModel, Verdict, Verifying

# -- list ---


def list_(
    words: Annotated[
        list[str] | None,
        Argument("WORD", "Only what has all of these words in its name."),
    ] = None,
    catalog: Annotated[
        bool, Option("--catalog", help="The models that have a short name, here or not, and what they are for.")
    ] = False,
    names_only: Annotated[bool, Option("--names", "-q", help="Print the names only.", panel="Output")] = False,
    as_json: options.Json = False,
) -> None:
    """List the models on this machine, or those of the catalog."""
    wanted = [word.lower() for word in words or ()]
    rows = _catalog_rows() if catalog else _stored_rows()
    rows = [row for row in rows if all(word in _searched(row) for word in wanted)]
    if as_json:
        screen.out_json([_json_row(row) for row in rows])
    elif names_only:
        names = (row["name"] for row in rows if row.get("state", "complete") == "complete")
        screen.out("".join(screen.harmless(name) + "\n" for name in names))
    elif catalog:
        tables.show(_CATALOG_COLUMNS, map(_catalog_cells, rows))
    else:
        now_s = time.time()
        tables.show(_STORED_COLUMNS, (_stored_cells(row, now_s) for row in rows))


def _searched(row: dict[str, Any]) -> str:
    return " ".join(str(row.get(key) or "") for key in ("name", "repo", "file", "summary")).lower()


_STORED_COLUMNS = (
    Column("NAME"),
    Column("QUANT"),
    Column("SIZE", right=True),
    Column("PARAMETERS", right=True),
    Column("USED"),
    Column("WHERE", flexible=True),
)


def _stored_rows() -> list[dict[str, Any]]:
    from llmrun.cli.commands.quantize import abandoned
    from llmrun.models import store

    state = store.State()
    rows = [_tiny_row(state)]
    models = store.list_models(state=state)
    rows += [_model_row(model, name) for model, name in zip(models, lookup.typed_names(models), strict=True)]
    rows += [_leftover_row(item, lookup.typed_name(item)) for item in store.list_leftovers(state=state)]
    rows += [_workshop_row(item) for item in abandoned()]
    return rows


def _tiny_row(state: Any) -> dict[str, Any]:
    from llmrun.gguf.reader import open_header
    from llmrun.models.catalog import EMBEDDED

    ((name, path),) = EMBEDDED.items()
    header = open_header(path)
    return {
        "name": name,
        "repo": None,
        "commit": None,
        "file": path.name,
        "quant": header.quantization_label,
        "size": path.stat().st_size,
        "parameters": header.n_params,
        "architecture": header.architecture,
        "last_used_s": state.last_used().get(name),
        "path": os.fspath(path),
        "where": "part of llmrun",
        "state": "complete",
    }


def _model_row(model: StoredModel, name: str) -> dict[str, Any]:
    here, of = len(model.parts), model.n_parts
    where = "hub cache" if model.commit is not None else "imported"
    if model.commit is None and model.path.is_symlink():
        where = f"link to {model.path.readlink()}"
    return {
        "name": name,
        "repo": model.repo,
        "commit": model.commit,
        "file": model.file,
        "quant": model.quant,
        "size": model.size,
        "parameters": model.n_params,
        "architecture": model.architecture,
        "last_used_s": model.last_used_s,
        "path": os.fspath(model.path),
        "where": where if model.complete else f"{where}, {here} of {of} parts",
        "state": "complete" if model.complete else "incomplete",
    }


_LEFTOVER_WORDS = {
    "partial": "unfinished: pull it again",
    "incomplete": "another tool's unfinished download",
    "damaged": "damaged, set aside",
    "orphan": "a part of an unfinished model",
}
_WORKSHOP_WORDS = "of a quantizer that was killed"


def _leftover_row(item: Leftover, name: str) -> dict[str, Any]:
    share = f"{percent(item.size / item.total)} of {size(item.total)}, " if item.total else ""
    return {
        "name": name,
        "repo": item.repo,
        "commit": None,
        "file": item.file,
        "quant": quants.quant_of(item.file or ""),
        "size": item.size,
        "total": item.total,
        "parameters": None,
        "architecture": None,
        "last_used_s": None,
        "path": os.fspath(item.path),
        "where": share + _LEFTOVER_WORDS[item.kind],
        "state": item.kind,
    }


def _workshop_row(item: Workshop) -> dict[str, Any]:
    return {
        "name": item.name,
        "repo": item.name,
        "commit": None,
        "file": None,
        "quant": None,
        "size": item.size,
        "total": None,
        "parameters": None,
        "architecture": None,
        "last_used_s": None,
        "path": os.fspath(item.path),
        "where": _WORKSHOP_WORDS,
        "state": "partial",
    }


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    """With the Unix time as ISO 8601 in UTC, to the second."""
    if "last_used_s" not in row:
        return row
    at_s = row["last_used_s"]
    used = None if at_s is None else utc_of(at_s)
    return {**{key: value for key, value in row.items() if key != "last_used_s"}, "last_used": used}


def _stored_cells(row: dict[str, Any], now_s: float) -> list[str]:
    return [
        row["name"],
        row["quant"] or UNKNOWN,
        size(row["size"]),
        count(row["parameters"]),
        UNKNOWN if row["last_used_s"] is None else ago(now_s - row["last_used_s"]),
        row["where"],
    ]


def ago(seconds: float) -> str:
    """ "just now", "5 minutes ago", "yesterday", "3 weeks ago"."""
    if seconds < 60:
        return "just now"
    for unit, length, limit in (("minute", 60, 60), ("hour", 3600, 24), ("day", 86_400, 14), ("week", 604_800, 9)):
        n = int(seconds // length)
        if n < limit:
            return "yesterday" if (unit, n) == ("day", 1) else f"{n} {unit}{'s' if n > 1 else ''} ago"
    n = int(seconds // 2_629_800)
    return f"{n} months ago" if n < 24 else f"{n // 12} years ago"


_CATALOG_COLUMNS = (
    Column("NAME"),
    Column("PARAMETERS", right=True),
    Column("ACTIVE", right=True),
    Column("SIZE", right=True),
    Column("CONTEXT", right=True),
    Column("LICENCE"),
    Column("GOOD FOR", flexible=True),
)


def _catalog_rows() -> list[dict[str, Any]]:
    from llmrun.models import catalog

    rows = []
    for entry in catalog.load().entries:
        level = entry.quant or quants.quant_of(entry.file or "") or quants.DEFAULT
        bits = quants.bits_per_weight(level)
        n_bytes = round(entry.parameters * bits / 8) if entry.parameters and bits else None
        rows.append({**vars(entry), "aliases": [*entry.aliases], "usual_quant": level, "usual_bytes": n_bytes})
    return rows


def _catalog_cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        count(row["parameters"]),
        count(row["active_parameters"]) if row["active_parameters"] else "",
        "~" + size(row["usual_bytes"]) if row["usual_bytes"] else UNKNOWN,
        str(row["n_ctx"] or UNKNOWN),
        (row["licence"] or UNKNOWN) + (" (gated)" if row["gated"] else ""),
        row["summary"] or "",
    ]


# -- rm ---


def rm(
    names: options.SomeModelNames = None,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    partials: Annotated[
        bool, Option("--partials", help="Free unfinished and damaged downloads, of all models.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Remove models, and free exactly what nothing else needs.

    An imported link goes, the file it leads to stays.
    """
    from llmrun.cli.commands.quantize import abandoned
    from llmrun.models import store

    if not names and not partials:
        raise UsageError("name the models to remove, or --partials", hint="llmrun list")
    listed = lookup.listed_names()
    leftovers, workshops = store.list_leftovers(), abandoned()
    wanted: list[Leftover | Workshop] = [*leftovers, *workshops] if partials else []
    models: dict[Path, StoredModel] = {}
    for name in names or ():
        for item in _meant(name, listed, [*leftovers, *workshops]):
            if isinstance(item, store.StoredModel):
                models[item.path] = item
            elif item not in wanted:
                wanted.append(item)
    gone = [lookup.name_in(listed, model) for model in models.values()]
    if not models and not wanted:
        screen.note("there are no unfinished or damaged downloads")
    elif not yes and not _confirmed(listed, [*models.values()], wanted):
        screen.note("nothing was removed")
        models, wanted, gone = {}, [], []
    freed = store.remove(models.values())
    freed += store.remove_leftovers(item for item in wanted if isinstance(item, store.Leftover))
    freed += sum(item.remove() for item in wanted if not isinstance(item, store.Leftover))
    if as_json:
        screen.out_json({"removed": gone, "leftovers": [os.fspath(item.path) for item in wanted], "freed_bytes": freed})
    elif models or wanted:
        for name in (*gone, *(_leftover_name(item) for item in wanted)):
            screen.out(screen.harmless(name) + "\n")
        screen.note(f"{size(freed)} freed")


def _leftover_name(item: Leftover | Workshop) -> str:
    from llmrun.models import store

    return lookup.typed_name(item) if isinstance(item, store.Leftover) else item.name


def _meant(
    name: str, listed: dict[Path, str], leftovers: list[Leftover | Workshop]
) -> Sequence[StoredModel | Leftover | Workshop]:
    """What to remove under this name: a row of `list`, or else what no other row could be meant by.

    More than one only where the same row is several. Raises `NotInStore`, and `UsageError` for a name that is vague.
    """
    from llmrun.models.store import Leftover

    missing: NotInStore | None = None
    try:
        found = lookup.stored(name)
    except NotInStore as error:
        found, missing = [], error
    if exact := [model for model in found if lookup.same(lookup.name_in(listed, model), name)]:
        return exact
    if unfinished := [item for item in leftovers if _leftover_name(item).lower() == name.lower()]:
        if found:
            kept = " and ".join(sorted({lookup.name_in(listed, model) for model in found}))
            screen.note(f"{name} is the name of an unfinished or damaged download; to remove instead: {kept}")
        return unfinished
    names = sorted({lookup.name_in(listed, model) for model in found})
    if len(names) > 1:
        raise UsageError(f"'{name}' could be {' or '.join(names)}", hint=f"llmrun rm {names[0]}")
    if missing is None:
        return found
    unfinished = [
        item for item in leftovers if isinstance(item, Leftover) and lookup.is_meant(name, item.repo, item.file)
    ]
    names = sorted({_leftover_name(item) for item in unfinished})
    if len(names) > 1:
        raise UsageError(f"'{name}' could be {' or '.join(names)}", hint=f"llmrun rm {names[0]}")
    if not unfinished:
        raise missing
    return unfinished


def _confirmed(listed: dict[Path, str], models: list[StoredModel], leftovers: list[Leftover | Workshop]) -> bool:
    """Ask on the terminal. Raises `UsageError` where nobody can answer."""
    from llmrun.models import store

    if not (screen.is_terminal(sys.stdin) and screen.is_terminal(sys.stderr)):
        raise UsageError("there is no terminal to ask on: say -y to remove", hint="llmrun rm -y NAME")
    for model in models:
        screen.note(f"  {lookup.name_in(listed, model)}  {size(model.size)}")
    for item in leftovers:
        words = _LEFTOVER_WORDS[item.kind] if isinstance(item, store.Leftover) else _WORKSHOP_WORDS
        screen.note(f"  {_leftover_name(item)}  {size(item.size)}, {words}")
    sys.stderr.write("Remove? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# -- verify ---


def verify(
    names: options.SomeModelNames = None,
    everything: Annotated[bool, Option("--all", help="All models on this machine.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read every byte again and compare it with what the hub promised.

    What is damaged is set aside, so that nothing uses it and a pull brings it anew; then the exit code is 6.
    """
    from llmrun.models import store

    if bool(names) == everything:
        raise UsageError("name the models to verify, or --all", hint="llmrun verify --all")
    if everything:
        models = store.list_models(header_budget_s=0)
    else:
        models = [*{m.path: m for name in names or () for m in lookup.stored(name)}.values()]
    listed = lookup.listed_names()
    before, current = 0, ("", 0)
    with progress.of_bytes(f"verifying {_n(len(models), 'model')}", sum(m.size for m in models), quiet=quiet) as bar:

        def on_event(event: Verifying) -> None:
            nonlocal before, current
            if event.file != current[0]:
                before, current = before + current[1], (event.file, event.total)
            bar.update(before + event.done)

        verdicts = store.verify(models, on_event)
    words = {True: "ok", False: "damaged", None: "noted"}
    rows: list[dict[str, Any]] = [
        {
            "verdict": "missing" if verdict.missing else words[verdict.ok],
            "name": lookup.name_in(listed, verdict.model),
            "file": verdict.file,
            "reason": verdict.reason,
            "set_aside": None if verdict.set_aside is None else os.fspath(verdict.set_aside),
        }
        for verdict in verdicts
    ]
    if as_json:
        screen.out_json(rows)
    else:
        columns = (Column("VERDICT"), Column("NAME"), Column("FILE"), Column("WHY", flexible=True))
        tables.show(columns, ([row["verdict"], row["name"], row["file"], row["reason"]] for row in rows))
    if bad := [verdict for verdict in verdicts if verdict.ok is False]:
        raise _not_whole(bad, len(verdicts), listed)


def _not_whole(bad: list[Verdict], n_files: int, listed: dict[Path, str]) -> IntegrityError:
    damaged = [verdict for verdict in bad if not verdict.missing]
    missing = len(bad) - len(damaged)
    said = []
    if damaged:
        aside = " and set aside" if all(verdict.set_aside for verdict in damaged) else ""
        said.append(f"{len(damaged)} of {_n(n_files, 'file')} {_are(len(damaged))} damaged{aside}")
    if missing:
        said.append(f"{missing} of {_n(n_files, 'file')} {_are(missing)} missing")
    model = bad[0].model
    name = lookup.name_in(listed, model)
    again = "import the file again" if model.commit is None else f"llmrun pull {name}"
    return IntegrityError("; ".join(said), hint=again)


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _n(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# -- import ---


def import_(
    path: Annotated[Path, Argument("PATH", "A GGUF file; of a split model any part.")],
    name: Annotated[
        str | None, Option("--name", metavar="NAME", help="It becomes local/NAME.  [default: from the file]")
    ] = None,
    copy: Annotated[bool, Option("--copy", help="Copy the file; otherwise a link leads to it.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a GGUF file on this machine a model with a name."""
    from llmrun.models import store

    bars: list[progress.Bytes] = []

    def on_event(event: store.Copying) -> None:
        if not bars:
            bars.append(progress.Bytes(f"copying {path.name}", event.total, quiet=quiet))
        bars[0].update(event.done)

    try:
        model = store.import_file(path, copy=copy, name=name, on_event=on_event)
    finally:
        for bar in bars:
            bar.close()
    if as_json:
        screen.out_json(_json_row(_model_row(model, model.name)))
    else:
        screen.out(model.name + "\n")
