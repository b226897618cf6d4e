"""`llmrun pull NAMES...`: models from the hub, verified, into the cache that all tools share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun import fs, paths
from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import fetch
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.progress import teller
from llmrun.errors import Act, LlmrunError, NotFound
from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.rules import writes_no_text
from llmrun.models import resolve
from llmrun.models.reference import Embedded
from llmrun.options.parse import connections as parse_connections
from llmrun.options.spec import Written
from llmrun.units import duration, size

if TYPE_CHECKING:
    from llmrun.models.catalog import CatalogEntry
    from llmrun.models.hub.info import Resolved


_CONNECTIONS = Option(
    "--connections",
    metavar="auto|N",
    kind=Written(parse_connections, wanted="auto or a number"),
    help="To fetch a file over; auto: as many as make it faster.",
    without="auto",
)


@dataclass(frozen=True)
class _Wanted:
    """How, and what beside the model."""

    mmproj: bool
    draft: bool
    n_connections: int | None
    dry_run: bool
    offline: bool
    quiet: bool


def pull(
    names: options.ModelNames,
    quant: Annotated[str | None, Option("--quant", metavar="LEVEL", help="Quantization level, such as Q4_K_M.")] = None,
    revision: Annotated[
        str | None, Option("--revision", metavar="REVISION", help="Branch, tag or commit of the repository.")
    ] = None,
    mmproj: Annotated[
        bool, Option("--mmproj", help="Its projector (images, sound) as well, for other programs: llmrun reads text.")
    ] = False,
    draft: Annotated[
        bool, Option("--draft", help="A small model of its vocabulary as well, which can guess for it.")
    ] = False,
    connections: Annotated[int | None, _CONNECTIONS] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Say what would be fetched and whether it fits; fetch nothing.")
    ] = False,
    offline: options.Offline = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch models from the hub.

    A pull that was interrupted goes on where it stopped. Every byte is verified before anything can see the file. What
    other tools have in the hub cache already is used and not fetched again. Prints the path of each model.
    """
    wanted = _Wanted(mmproj, draft, connections, dry_run, offline, quiet)
    documents: list[dict[str, Any]] = []
    first_failure: LlmrunError | None = None
    for name in names:
        try:
            document = _one(name, quant, revision, wanted)
        except LlmrunError as error:
            if len(names) == 1:
                raise
            screen.error(error)
            first_failure = first_failure or error
            document = {"name": name, "error": error.message, "exit_code": error.exit_code}
        else:
            for each in () if as_json else (document, document.get("mmproj"), document.get("draft")):
                if each is not None:
                    tables.show_pairs(_dry_run_pairs(each)) if dry_run else screen.out(each["path"] + "\n")
        documents.append(document)
    if as_json:
        screen.out_json(documents)
    if first_failure:
        raise SystemExit(first_failure.exit_code)


def _one(name: str, quant: str | None, revision: str | None, wanted: _Wanted) -> dict[str, Any]:
    tell = teller(wanted.quiet)
    named = resolve.to_pull(name, quant, revision)
    if isinstance(named, Embedded):
        tell(f"{named} is a part of llmrun: nothing to fetch")
        return {"name": named.name, "path": os.fspath(named.path)}
    if here := resolve.find_imported(named):
        tell(f"{named} is here already")
        return {"name": here.repo, "path": os.fspath(here.path)}
    resolved = fetch.resolve(named, offline=wanted.offline, quiet=wanted.quiet)
    # Whether there are such is known before anything is fetched.
    projector = _projector_of(resolved, wanted) if wanted.mmproj else None
    smaller = _smaller_than(resolved) if wanted.draft else ()
    document = _brought(str(named), resolved, wanted)
    if projector:
        document["mmproj"] = _brought(projector.name, projector, wanted)
    if smaller:
        document["draft"] = _draft_of(resolved, document["path"], smaller, wanted)
    return document


def _brought(name: str, resolved: Resolved, wanted: _Wanted) -> dict[str, Any]:
    document = {
        "name": name,
        "repo": resolved.repo,
        "commit": resolved.commit,
        "quant": resolved.quant,
        "why": resolved.why or "asked for",
        "licence": resolved.licence,
        "size": resolved.total_bytes,
        "files": [vars(file) for file in resolved.files],
    }
    if wanted.dry_run:
        return {**document, **_what_it_takes(resolved, offline=wanted.offline, quiet=wanted.quiet)}
    tell = teller(wanted.quiet)
    path, finished = fetch.pull(
        resolved, offline=wanted.offline, quiet=wanted.quiet, n_connections=wanted.n_connections
    )
    fetched, seconds = sum(event.fetched for event in finished), sum(event.seconds for event in finished)
    if fetched:
        tell(
            f"{resolved.name} is here and verified: {size(fetched)} fetched in {duration(seconds)},"
            f" {size(fetched / seconds)}/s",
        )
    else:
        tell(f"{resolved.name} is here already")
    _tell_what_it_is(resolved, open_header(path), quiet=wanted.quiet)
    return {**document, "path": os.fspath(path), "fetched_bytes": fetched, "seconds": seconds}


def _tell_what_it_is(resolved: Resolved, header: Header, *, quiet: bool) -> None:
    if kind := writes_no_text(header):
        teller(quiet)(f"{resolved.name} is {kind}: it writes no text")


# -- what goes with it ---


def _projector_of(resolved: Resolved, wanted: _Wanted) -> Resolved:
    from llmrun.models.hub.info import resolve_projector

    found = resolve_projector(resolved, offline=wanted.offline)
    teller(wanted.quiet)(
        f"{found.files[0].name} is the projector of {resolved.name}, {size(found.total_bytes)}:"
        " for other programs, llmrun reads text only"
    )
    return found


def _smaller_than(resolved: Resolved) -> Sequence[CatalogEntry]:
    from llmrun.models import catalog
    from llmrun.planning import drafts

    if found := drafts.candidates(resolved.repo, catalog.load()):
        return found
    raise NotFound(
        f"the catalog has no model that is small enough to guess for {resolved.name}",
        hint=Act("help", "run", note="--draft takes any model of the same vocabulary"),
    )


def _draft_of(resolved: Resolved, path: str | None, smaller: Sequence[CatalogEntry], wanted: _Wanted) -> dict[str, Any]:
    """The first of these that can guess for a model, as their headers have it; `path`: where the model is, if here."""
    from llmrun.models.hub import download
    from llmrun.models.hub.http import is_offline
    from llmrun.models.hub.remote import remote_header
    from llmrun.planning import drafts

    def header_of(each: Resolved) -> Header:
        if not is_offline(wanted.offline):
            return remote_header(each)
        return resolve.open_whole(download.pull(each, offline=True))[1]  # only finds it

    header = resolve.open_whole(Path(path))[1] if path else remote_header(resolved)
    problems: list[str] = []
    for entry in smaller:
        named = resolve.to_pull(entry.name)
        assert not isinstance(named, Embedded)
        found = fetch.resolve(named, offline=wanted.offline, quiet=wanted.quiet)
        if problem := drafts.problem(header, header_of(found)):
            problems.append(f"{entry.name}: {problem}")
            continue
        document = _brought(entry.name, found, wanted)
        teller(wanted.quiet)(
            f"{entry.name} can guess for {resolved.name}: llmrun run {resolved.name} --draft {entry.name}"
        )
        return document
    raise NotFound(f"no model of the catalog can guess for {resolved.name}: {'; '.join(problems)}")


# -- dry run ---


def _what_it_takes(resolved: Resolved, *, offline: bool, quiet: bool) -> dict[str, Any]:
    """Bytes on disk and in memory, and what there is of both; of a projector on disk alone."""
    from llmrun.machine.hardware import available_memory
    from llmrun.models.hub import download
    from llmrun.models.hub.http import is_offline
    from llmrun.models.hub.remote import remote_header
    from llmrun.planning.fit import estimate

    path = download.pull(resolved, offline=True) if is_offline(offline) else None  # only finds it
    missing, free = 0 if path else download.missing_bytes(resolved), fs.free_bytes(paths.hub_cache())
    on_disk = {
        "path": None if path is None else os.fspath(path),
        "missing_bytes": missing,
        "disk_free_bytes": free,
        "fits_on_disk": missing <= free,
        "memory": None,
    }
    if resolved.goes_with:
        return on_disk
    header = resolve.open_whole(path)[1] if path else remote_header(resolved)
    _tell_what_it_is(resolved, header, quiet=quiet)
    (n_ctx, need), available = estimate(header), available_memory()
    return {
        **on_disk,
        "parameters": header.n_params,
        "memory": {
            "n_ctx": n_ctx,
            "weight_bytes": need.weights,
            "kv_bytes": need.kv,
            "available_bytes": available,
            "fits": None if available is None else need.total <= available,
        },
    }


def _dry_run_pairs(document: dict[str, Any]) -> list[tuple[str, str]]:
    if "files" not in document:
        return [("name", document["name"]), ("path", document["path"])]
    missing, fits = document["missing_bytes"], {True: "fits", False: "does not fit", None: "unknown"}
    pairs = [
        ("name", document["name"]),
        ("repository", f"{document['repo']} at {document['commit'][:12]}"),
        ("level", f"{document['quant'] or '–'} ({document['why']})"),
        *(("file", f"{file['name']}, {size(file['size'])}") for file in document["files"]),
        ("to fetch", f"{size(missing)} of {size(document['size'])}" if missing else "nothing, it is here"),
        ("disk", f"{fits[document['fits_on_disk']]}: {size(document['disk_free_bytes'])} free"),
    ]
    if memory := document["memory"]:
        kv = f" + {size(memory['kv_bytes'])} KV cache of {memory['n_ctx']} tokens" if memory["kv_bytes"] else ""
        weights, available = size(memory["weight_bytes"]), size(memory["available_bytes"])
        pairs.append(("memory", f"{fits[memory['fits']]}: {weights} weights{kv}, {available} available"))
    return pairs
