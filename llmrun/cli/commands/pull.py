"""`llmrun pull NAMES...`: models from the hub, verified, into the cache that all tools share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun import paths
from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import lookup
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.progress import Bytes, teller
from llmrun.errors import LlmrunError
from llmrun.models.catalog import Embedded, HubFile
from llmrun.units import duration, size

if TYPE_CHECKING:
    from llmrun.models import hub
    from llmrun.models.store import StoredModel

_N_CTX = 4096
"""Tokens of context that "fits in memory" is about."""


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
    named = lookup.from_hub(name, quant, revision)
    if isinstance(named, Embedded):
        teller(quiet)(f"{named} is a part of llmrun: nothing to fetch")
        return {"name": named.name, "path": os.fspath(named.path)}
    if here := _imported(named):
        teller(quiet)(f"{named} is here already")
        return {"name": here.repo, "path": os.fspath(here.path)}
    resolved = _resolve(named, offline=offline, quiet=quiet)
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
        return {**document, **_what_it_takes(resolved, offline=offline)}
    path, finished = _pull(resolved, offline=offline, quiet=quiet)
    fetched, seconds = sum(event.fetched for event in finished), sum(event.seconds for event in finished)
    if fetched:
        teller(quiet)(
            f"{resolved.name} is here and verified: {size(fetched)} fetched in {duration(seconds)},"
            f" {size(fetched / seconds)}/s",
        )
    else:
        teller(quiet)(f"{resolved.name} is here already")
    return {**document, "path": os.fspath(path), "fetched_bytes": fetched, "seconds": seconds}


def _imported(named: HubFile) -> StoredModel | None:
    """A model that `llmrun import` or `llmrun quantize` made, of which no hub knows."""
    from llmrun.models import store

    return store.find(named) if named.repo.lower().startswith(store.LOCAL) else None


def fetch_with_progress(quiet: bool) -> Callable[[HubFile], Path]:
    """Gets what is missing, for `find_model`: the same words and the same bar as `llmrun pull`."""

    def fetch(named: HubFile) -> Path:
        path, _ = _pull(_resolve(named, offline=False, quiet=quiet), offline=False, quiet=quiet)
        return path

    return fetch


def _resolve(named: HubFile, *, offline: bool, quiet: bool) -> hub.Resolved:
    """Asks the hub what the name means, and says which level was chosen and why."""
    from llmrun.models import hub

    resolved = hub.resolve(named, offline=offline)
    why = f" ({resolved.why})" if resolved.why else ""
    parts = f" in {len(resolved.files)} parts" if len(resolved.files) > 1 else ""
    level = resolved.quant or resolved.files[0].name
    teller(quiet)(f"{named} is {level}{why} of {resolved.repo}, {size(resolved.total_bytes)}{parts}")
    return resolved


def _pull(resolved: hub.Resolved, *, offline: bool, quiet: bool) -> tuple[Path, list[hub.Finished]]:
    from llmrun.models import hub

    shown = _Shown(quiet)
    try:
        path = hub.pull(resolved, shown, offline=offline)
    finally:
        shown.close()
    return path, shown.finished


class _Shown:
    """Turns the events of a pull into bars and lines: one bar per file and per kind of work on it."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._tell = teller(quiet)
        self._bar: Bytes | None = None
        self._doing = ""
        self._resumed_at = 0
        self.finished: list[hub.Finished] = []

    def __call__(self, event: hub.Event) -> None:
        from llmrun.models import hub

        file = event.file.rpartition("/")[2]
        match event:
            case hub.Started():
                self._resumed_at = event.resumed_at
                self.close()
                if event.resumed_at:
                    self._tell(f"{file}: {size(event.resumed_at)} are here, going on from there")
                self._show(f"pulling {file}", event.resumed_at, event.total)
            case hub.Progress():
                self._show(f"pulling {file}", event.done, event.total)
            case hub.Checking():
                self._show(f"checking {file}", event.done, event.total)
            case hub.Waiting():
                if self._show(f"waiting for {file}", event.done, event.total):
                    self._tell(f"another process is pulling {file}; waiting for it")
            case hub.Retrying():
                self._tell(
                    f"{file}: {event.reason}; trying again in {duration(event.pause_s)}"
                    f" ({event.failures} of {event.attempts})"
                )
            case hub.StartedOver():
                self.close()
                self._resumed_at = 0
                self._tell(f"{file}: {event.reason}; starting over")
            case hub.Finished():
                self.finished.append(event)
                self.close()

    def _show(self, doing: str, done: int, total: int) -> bool:
        """Whether this is a new kind of work."""
        is_new = self._bar is None or self._doing != doing
        if is_new:
            self.close()
            self._doing = doing
            self._bar = Bytes(doing, total, done=self._resumed_at or done, quiet=self._quiet)
        assert self._bar
        self._bar.update(done)
        return is_new

    def close(self) -> None:
        if self._bar:
            self._bar.close()
            self._bar = None


# -- dry run ---


def _what_it_takes(resolved: hub.Resolved, *, offline: bool) -> dict[str, Any]:
    """Bytes on disk and in memory against what there is. Memory: weights and the KV cache of 4,096 tokens in f16."""
    from llmrun.machine.hardware import available_memory
    from llmrun.models import hub
    from llmrun.models.resolve import open_whole
    from llmrun.planning.footprint import kv_bytes_per_token

    if hub.is_offline(offline):
        path = hub.pull(resolved, offline=True)  # only finds it
        missing, header = 0, open_whole(path)[1]
    else:
        path, missing, header = None, hub.missing_bytes(resolved), lookup.remote_header(resolved)
    folder = paths.hub_cache()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    n_ctx = min(_N_CTX, header.n_ctx_train or _N_CTX)
    per_token = kv_bytes_per_token(header)
    kv = None if per_token is None else per_token * n_ctx
    needed, available = header.weight_bytes + (kv or 0), available_memory()
    return {
        "path": None if path is None else os.fspath(path),
        "parameters": header.n_params,
        "missing_bytes": missing,
        "disk_free_bytes": free,
        "fits_on_disk": missing <= free,
        "memory": {
            "n_ctx": n_ctx,
            "weight_bytes": header.weight_bytes,
            "kv_bytes": kv,
            "available_bytes": available,
            "fits": None if available is None else needed <= available,
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
