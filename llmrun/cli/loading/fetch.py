"""Pulls a model, and shows on stderr what is pulled and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.cli.terminal.progress import Bytes, teller
from llmrun.models.reference import HubFile
from llmrun.units import duration, size

if TYPE_CHECKING:
    from llmrun.models.hub.events import PullEvent, PullFinished
    from llmrun.models.hub.info import Resolved


def fetch_with_progress(quiet: bool) -> Callable[[HubFile], Path]:
    """What gets a missing model for `find_model`, with the words and the bar of `llmrun pull`."""

    def fetch(named: HubFile) -> Path:
        path, _ = pull(resolve(named, offline=False, quiet=quiet), offline=False, quiet=quiet)
        return path

    return fetch


def resolve(named: HubFile, *, offline: bool, quiet: bool) -> Resolved:
    """Asks the hub what the name means, and says which level was chosen and why."""
    from llmrun.models.hub import info

    resolved = info.resolve(named, offline=offline)
    why = f" ({resolved.why})" if resolved.why else ""
    parts = f" in {len(resolved.files)} parts" if len(resolved.files) > 1 else ""
    level = resolved.quant or resolved.files[0].name
    teller(quiet)(f"{named} is {level}{why} of {resolved.repo}, {size(resolved.total_bytes)}{parts}")
    return resolved


def pull(resolved: Resolved, *, offline: bool, quiet: bool) -> tuple[Path, list[PullFinished]]:
    """Pulls, and shows how far it is; the path of the first file, and what was fetched of each."""
    from llmrun.models.hub import download

    shown = _PullProgress(quiet)
    try:
        path = download.pull(resolved, shown, offline=offline)
    finally:
        shown.close()
    return path, shown.finished


class _PullProgress:
    """Turns the events of a pull into bars and lines: one bar per file and per kind of work on it."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._tell = teller(quiet)
        self._bar: Bytes | None = None
        self._doing = ""
        self._resumed_at = 0
        self.finished: list[PullFinished] = []

    def __call__(self, event: PullEvent) -> None:
        from llmrun.models.hub import events

        file = event.file.rpartition("/")[2]
        match event:
            case events.PullStarted():
                self._resumed_at = event.resumed_at
                self.close()
                if event.resumed_at:
                    self._tell(f"{file}: {size(event.resumed_at)} are here, going on from there")
                self._show(f"pulling {file}", event.resumed_at, event.total)
            case events.PullProgress():
                self._show(f"pulling {file}", event.done, event.total)
            case events.PullChecking():
                self._show(f"checking {file}", event.done, event.total)
            case events.PullWaiting():
                if self._show(f"waiting for {file}", event.done, event.total):
                    self._tell(f"another process is pulling {file}; waiting for it")
            case events.PullRetrying():
                self._tell(
                    f"{file}: {event.reason}; trying again in {duration(event.pause_s)}"
                    f" ({event.failures} of {event.attempts})"
                )
            case events.PullRestarted():
                self.close()
                self._resumed_at = 0
                self._tell(f"{file}: {event.reason}; starting over")
            case events.PullFinished():
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
