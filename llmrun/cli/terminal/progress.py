"""How far something is: bars on a terminal, lines in a log, all on stderr.

A bar appears only when the work takes longer than a blink, and goes when it is done. Bytes have a rate and the time
left as well; in a log they get a line at the beginning, one every tenth, and whatever the command says at the end.
Rich is imported only where something is drawn, which a pipe or a quick command never needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmrun.cli.terminal import cells, screen
from llmrun.text import sanitize
from llmrun.units import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, Task

DELAY_S = 0.3
"""What takes no longer than this gets no bar."""
_LINE_EVERY_S = 0.5
_BAR_WIDTH = 16
_NUMBERS_WIDTH = _BAR_WIDTH + 52
"""What stands behind the description at its longest; on a narrow terminal the description gives way."""
_NARROWEST = 10


class _Drawn:
    """A bar of Rich, from `open` to `close`."""

    def __init__(self) -> None:
        self._begin_s = time.monotonic()
        self.progress: Progress | None = None
        self._task: Any = None

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._begin_s >= DELAY_S

    def open(self, make: Callable[[], Progress], what: str, total: float, completed: int = 0) -> None:
        self.progress = make()
        self._task = self.progress.add_task(what, total=total, completed=completed)
        self.progress.start()

    def update(self, **what: Any) -> None:
        if self.progress:
            self.progress.console.width = screen.columns(sys.stderr)  # Rich would believe the variable COLUMNS
            self.progress.update(self._task, **what)

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


class Bar:
    """How much of something is done, as a share of it; nothing but a bar."""

    def __init__(self, what: str) -> None:
        self._what, self._drawn = what, _Drawn()

    def update(self, fraction: float) -> None:
        if self._drawn.progress is None:
            if fraction >= 1 or not self._drawn.is_due:
                return
            self._drawn.open(_share_bar, sanitize(self._what), 1.0)
        self._drawn.update(completed=fraction)

    def close(self) -> None:
        self._drawn.close()


@contextmanager
def bar(what: str, *, shown: bool = True) -> Iterator[Bar | None]:
    """A `Bar` while the block runs, or None where nobody would see it."""
    if not shown or not screen.is_terminal(sys.stderr):
        yield None
        return
    drawn = Bar(what)
    try:
        yield drawn
    finally:
        drawn.close()


class Bytes:
    """Progress of `total` bytes, of which `done` were there before. `update` takes the bytes that are there now."""

    def __init__(self, what: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._first = what, total, done
        self._quiet = quiet
        self._drawn = None if quiet or not screen.is_terminal(sys.stderr) else _Drawn()
        self._begin_s = self._said_s = time.monotonic()
        self._tenth = -1

    def update(self, done: int) -> None:
        if self._quiet:
            return
        if self._drawn:
            self._draw(self._drawn, done)
        else:
            self._log(done)

    def close(self) -> None:
        if self._drawn:
            self._drawn.close()
        self._quiet = True

    def _draw(self, drawn: _Drawn, done: int) -> None:
        if drawn.progress is None:
            if done >= self._total or not drawn.is_due:
                return
            room = max(_NARROWEST, screen.columns(sys.stderr) - _NUMBERS_WIDTH)
            drawn.open(_bytes_bar, cells.clipped(sanitize(self._what), room), self._total, self._first)
        drawn.update(completed=done)

    def _log(self, done: int) -> None:
        now_s = time.monotonic()
        tenth = 10 * done // self._total if self._total else 10
        if self._tenth < 0:
            screen.note(f"{self._what}: {size(self._total)}")
        elif tenth <= self._tenth or tenth >= 10 or now_s - self._said_s < _LINE_EVERY_S:
            return
        else:
            rate = (done - self._first) / max(1e-3, now_s - self._begin_s)
            left = duration((self._total - done) / rate) if rate > 0 else "–"
            screen.note(f"{self._what}: {10 * tenth} %, {size(done)}, {size(rate)}/s, {left} left")
        self._tenth, self._said_s = tenth, now_s


@contextmanager
def of_bytes(what: str, total: int, *, done: int = 0, quiet: bool = False) -> Iterator[Bytes]:
    shown = Bytes(what, total, done=done, quiet=quiet)
    try:
        yield shown
    finally:
        shown.close()


class CountBar:
    """How many of a known number are done. Drawn from `start` to `stop`, on a terminal and only where it is `shown`."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._total = total
        self._drawn = _Drawn() if shown and screen.is_terminal(sys.stderr) else None

    def start(self) -> None:
        if self._drawn:
            self._drawn.open(_count_bar, "", self._total)

    def advance(self, what: str) -> None:
        """One more is done; `what` stands beside the bar."""
        if self._drawn:
            self._drawn.update(advance=1, description=what)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the bar away while something else is written on the terminal."""
        progress = self._drawn.progress if self._drawn else None
        if progress:
            progress.stop()
        try:
            yield
        finally:
            if progress and not progress.finished:
                progress.start()

    def stop(self) -> None:
        """Takes it away for good; it can be started again from the beginning."""
        if self._drawn:
            self._drawn.close()


def teller(quiet: bool) -> Callable[[str], None]:
    """What to say things with that are not worth a word under `--quiet`. Lines go above a bar that is drawn."""
    return (lambda _text: None) if quiet else screen.note


# -- what they look like ----------------------------------------------------------------------------------------------


def _progress(*columns: Any) -> Progress:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, width=screen.columns(sys.stderr))
    return Progress(*columns, console=console, transient=True)


def _share_bar() -> Progress:
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn

    return _progress(TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())


def _count_bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    description = TextColumn("{task.description}", markup=False)
    return _progress(description, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _bytes_bar() -> Progress:
    from rich.progress import BarColumn, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Numbers(ProgressColumn):
        """1.20 GiB of 2.33 GiB · 11.9 MiB/s · 1 min 35 s left"""

        def render(self, task: Task) -> Text:
            parts = [f"{size(task.completed)} of {size(task.total)}"]
            if task.speed:
                parts.append(f"{size(task.speed)}/s")
            if task.time_remaining:
                parts.append(f"{duration(task.time_remaining)} left")
            return Text(" · ".join(parts), no_wrap=True, overflow="ellipsis")

    bar_width = _BAR_WIDTH if screen.columns(sys.stderr) >= 80 else _BAR_WIDTH // 2
    return _progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=bar_width), Numbers(Column(no_wrap=True))
    )
