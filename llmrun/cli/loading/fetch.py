"""Pulls a model, and shows on stderr what is pulled and how far it is."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.cli.terminal.progress import Bytes, teller
from llmrun.models.reference import HubFile
from llmrun.units import duration, size

if TYPE_CHECKING:
    from llmrun.models.hub.events import PullEvent, PullFinished
    from llmrun.models.hub.info import Resolved


def fetched(named: HubFile, *, quiet: bool) -> Path:
    """A missing model, for `find_model`, with the words and the bar of `llmrun pull`."""
    return pull(resolve(named, offline=False, quiet=quiet), offline=False, quiet=quiet)[0]


def resolve(named: HubFile, *, offline: bool, quiet: bool) -> Resolved:
    """Asks the hub what the name means, and says which level was chosen and why."""
    from llmrun.models.hub import info

    resolved = info.resolve(named, offline=offline)
    why = f" ({resolved.why})" if resolved.why else ""
    parts = f" in {len(resolved.files)} parts" if len(resolved.files) > 1 else ""
    level = resolved.quant or resolved.files[0].name
    teller(quiet)(f"{named} is {level}{why} of {resolved.repo}, {size(resolved.total_bytes)}{parts}")
    return resolved


def pull(
    resolved: Resolved, *, offline: bool, quiet: bool, n_connections: int | None = None
) -> tuple[Path, list[PullFinished]]:
    """Pulls, and shows how far it is, in a bar per file and per kind of work on it; the path of the first file, and
    what was fetched of each."""
    from llmrun.models.hub import download, events

    tell = teller(quiet)
    finished: list[PullFinished] = []

    def on_event(event: PullEvent) -> None:
        file = event.file.rpartition("/")[2]
        match event:
            case events.PullStarted():
                bar.close()
                if event.resumed_at:
                    tell(f"{file}: {size(event.resumed_at)} are here, going on from there")
                bar.show(f"pulling {file}", event.resumed_at, event.total)
            case events.PullProgress():
                bar.show(f"pulling {file}", event.done, event.total)
            case events.PullChecking():
                bar.show(f"checking {file}", event.done, event.total)
            case events.PullWaiting():
                if bar.show(f"waiting for {file}", event.done, event.total):
                    tell(f"another process is pulling {file}; waiting for it")
            case events.PullRetrying():
                tell(
                    f"{file}: {event.reason}; trying again in {duration(event.pause_s)}"
                    f" ({event.failures} of {event.attempts})"
                )
            case events.PullRestarted():
                bar.close()
                tell(f"{file}: {event.reason}; starting over")
            case events.PullFinished():
                finished.append(event)
                bar.close()

    with closing(Bytes(quiet=quiet)) as bar:
        return download.pull(resolved, on_event, offline=offline, n_connections=n_connections), finished
