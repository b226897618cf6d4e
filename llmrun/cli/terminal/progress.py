"""How far something is: bars on a terminal, lines in a log, all on stderr.

A bar appears only when the work takes longer than a blink, and goes when it is done. Bytes have a rate and the time
left as well; in a log they get a line at the beginning, one every tenth, and whatever the command says at the end.
Rich is imported only where something is drawn, which a pipe or a quick command never needs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
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


class Bar:
    """How much of a whole is done: a bar of Rich from the first `update` that is late enough until `close`."""

    def __init__(self, make: Callable[[], Progress], what: str, total: float = 1.0, first: int = 0) -> None:
        self._make, self._what, self._total, self._first = make, what, total, first
        self._begin_s = time.monotonic()
        self.progress: Progress | None = None
        self._task: Any = None

    def open(self) -> None:
        self.progress = self._make()
        self._task = self.progress.add_task(self._what, total=self._total, completed=self._first)
        self.progress.start()

    def update(self, done: float) -> None:
        if self.progress is None:
            if done >= self._total or time.monotonic() - self._begin_s < DELAY_S:
                return
            self.open()
        self.draw(completed=done)

    def draw(self, **what: Any) -> None:
        if self.progress:
            self.progress.console.width = screen.columns(sys.stderr)  # Rich would believe the variable COLUMNS
            self.progress.update(self._task, **what)

    def close(self) -> None:
        if self.progress:
            self.progress.stop()
            self.progress = None


@contextmanager
def bar(what: str, *, shown: bool = True) -> Iterator[Bar | None]:
    """A `Bar` for a share, 0 to 1, while the block runs, or None where nobody would see it."""
    if not shown or not screen.is_terminal(sys.stderr):
        yield None
        return
    with closing(Bar(_share_bar, sanitize(what))) as drawn:
        yield drawn


class Bytes:
    """Bytes that are done of one thing, then of the next."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._draws = quiet, screen.is_terminal(sys.stderr)
        self._bar: Bar | None = None
        self._what = ""

    def show(self, what: str, done: int, total: int) -> bool:
        """So many of `total` are there now, at first those from before; whether it is another thing than just now."""
        is_new = what != self._what
        if is_new:
            self.close()
            self._what, self._first = what, done
            self._begin_s = self._said_s = time.monotonic()
            self._tenth = -1
            if self._draws and not self._quiet:
                room = max(_NARROWEST, screen.columns(sys.stderr) - _NUMBERS_WIDTH)
                self._bar = Bar(_bytes_bar, cells.clipped(sanitize(what), room), total, self._first)
        if self._bar:
            self._bar.update(done)
        elif not self._quiet:
            self._log(done, total)
        return is_new

    def close(self) -> None:
        """That was all of this thing."""
        if self._bar:
            self._bar.close()
            self._bar = None
        self._what = ""

    def _log(self, done: int, total: int) -> None:
        now_s = time.monotonic()
        tenth = 10 * done // total if total else 10
        if self._tenth < 0:
            screen.note(f"{self._what}: {size(total)}")
        elif tenth <= self._tenth or tenth >= 10 or now_s - self._said_s < _LINE_EVERY_S:
            return
        else:
            rate = (done - self._first) / max(1e-3, now_s - self._begin_s)
            left = duration((total - done) / rate) if rate > 0 else "–"
            screen.note(f"{self._what}: {10 * tenth} %, {size(done)}, {size(rate)}/s, {left} left")
        self._tenth, self._said_s = tenth, now_s


class CountBar:
    """How many of a known number are done. Drawn from `start` to `stop`, on a terminal and only where it is `shown`."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._bar = Bar(_count_bar, "", total) if shown and screen.is_terminal(sys.stderr) else None

    def start(self) -> None:
        if self._bar:
            self._bar.open()

    def advance(self, what: str) -> None:
        """One more is done; `what` stands beside the bar."""
        if self._bar:
            self._bar.draw(advance=1, description=what)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the bar away while something else is written on the terminal."""
        progress = self._bar.progress if self._bar else None
        if progress:
            progress.stop()
        try:
            yield
        finally:
            if progress and not progress.finished:
                progress.start()

    def stop(self) -> None:
        """Takes it away for good; it can be started again from the beginning."""
        if self._bar:
            self._bar.close()


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
