"""`llmrun pull NAMES...`: models from the hub, verified, into the cache that all tools share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from llmrun import fs, paths
from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import fetch
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.progress import teller
from llmrun.errors import LlmrunError
from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.rules import writes_no_text
from llmrun.models import resolve
from llmrun.models.reference import Embedded
from llmrun.units import duration, size

if TYPE_CHECKING:
    from llmrun.models.hub.info import Resolved


def pull(
    names: options.ModelNames,
    quant: Annotated[str | None, Option("--quant", metavar="LEVEL", help="Quantization level, such as Q4_K_M.")] = None,
    revision: Annotated[
        str | None, Option("--revision", metavar="REVISION", help="Branch, tag or commit of the repository.")
    ] = None,
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
    documents: list[dict[str, Any]] = []
    first_failure: LlmrunError | None = None
    for name in names:
        try:
            document = _one(name, quant, revision, dry_run=dry_run, offline=offline, quiet=quiet)
        except LlmrunError as error:
            if len(names) == 1:
                raise
            screen.error(error)
            first_failure = first_failure or error
            document = {"name": name, "error": error.message, "exit_code": error.exit_code}
        else:
            if not as_json:
                tables.show_pairs(_dry_run_pairs(document)) if dry_run else screen.out(document["path"] + "\n")
        documents.append(document)
    if as_json:
        screen.out_json(documents)
    if first_failure:
        raise SystemExit(first_failure.exit_code)


def _one(
    name: str, quant: str | None, revision: str | None, *, dry_run: bool, offline: bool, quiet: bool
) -> dict[str, Any]:
    named = resolve.to_pull(name, quant, revision)
    if isinstance(named, Embedded):
        teller(quiet)(f"{named} is a part of llmrun: nothing to fetch")
        return {"name": named.name, "path": os.fspath(named.path)}
    if here := resolve.find_imported(named):
        teller(quiet)(f"{named} is here already")
        return {"name": here.repo, "path": os.fspath(here.path)}
    resolved = fetch.resolve(named, offline=offline, quiet=quiet)
    document = {
        "name": str(named),
        "repo": resolved.repo,
        "commit": resolved.commit,
        "quant": resolved.quant,
        "why": resolved.why or "asked for",
        "licence": resolved.licence,
        "size": resolved.total_bytes,
        "files": [vars(file) for file in resolved.files],
    }
    if dry_run:
        return {**document, **_what_it_takes(resolved, offline=offline, quiet=quiet)}
    path, finished = fetch.pull(resolved, offline=offline, quiet=quiet)
    fetched, seconds = sum(event.fetched for event in finished), sum(event.seconds for event in finished)
    if fetched:
        teller(quiet)(
            f"{resolved.name} is here and verified: {size(fetched)} fetched in {duration(seconds)},"
            f" {size(fetched / seconds)}/s",
        )
    else:
        teller(quiet)(f"{resolved.name} is here already")
    _tell_what_it_is(resolved, open_header(path), quiet=quiet)
    return {**document, "path": os.fspath(path), "fetched_bytes": fetched, "seconds": seconds}


def _tell_what_it_is(resolved: Resolved, header: Header, *, quiet: bool) -> None:
    if kind := writes_no_text(header):
        teller(quiet)(f"{resolved.name} is {kind}: it writes no text")


# -- dry run ---


def _what_it_takes(resolved: Resolved, *, offline: bool, quiet: bool) -> dict[str, Any]:
    """Bytes on disk and in memory, and what there is of both."""
    from llmrun.machine.hardware import available_memory
    from llmrun.models.hub import download
    from llmrun.models.hub.http import is_offline
    from llmrun.models.hub.remote import remote_header
    from llmrun.planning.fit import estimate

    if is_offline(offline):
        path = download.pull(resolved, offline=True)  # only finds it
        missing, header = 0, resolve.open_whole(path)[1]
    else:
        path, missing, header = None, download.missing_bytes(resolved), remote_header(resolved)
    _tell_what_it_is(resolved, header, quiet=quiet)
    free = fs.free_bytes(paths.hub_cache())
    (n_ctx, need), available = estimate(header), available_memory()
    return {
        "path": None if path is None else os.fspath(path),
        "parameters": header.n_params,
        "missing_bytes": missing,
        "disk_free_bytes": free,
        "fits_on_disk": missing <= free,
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
    memory, missing = document["memory"], document["missing_bytes"]
    fits = {True: "fits", False: "does not fit", None: "unknown"}
    kv = f" + {size(memory['kv_bytes'])} KV cache of {memory['n_ctx']} tokens" if memory["kv_bytes"] else ""
    return [
        ("name", document["name"]),
        ("repository", f"{document['repo']} at {document['commit'][:12]}"),
        ("level", f"{document['quant'] or '–'} ({document['why']})"),
        *(("file", f"{file['name']}, {size(file['size'])}") for file in document["files"]),
        ("to fetch", f"{size(missing)} of {size(document['size'])}" if missing else "nothing, it is here"),
        ("disk", f"{fits[document['fits_on_disk']]}: {size(document['disk_free_bytes'])} free"),
        (
            "memory",
            f"{fits[memory['fits']]}: {size(memory['weight_bytes'])} weights{kv},"
            f" {size(memory['available_bytes'])} available",
        ),
    ]
