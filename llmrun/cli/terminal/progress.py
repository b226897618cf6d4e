"""How far something is that goes by bytes: a bar on a terminal, lines in a log, all on stderr.

The bar has rate and time left; it appears only when the work takes longer than a blink. A log gets a line at the
beginning, one every tenth, and whatever the command says at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmrun.cli.terminal import screen
from llmrun.units import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, Task

_DELAY_S = 0.3
_LINE_EVERY_S = 0.5
_BAR_WIDTH = 16
_NUMBERS_WIDTH = _BAR_WIDTH + 52
"""What stands behind the description at its longest; on a narrow terminal the description gives way."""
_NARROWEST = 10


class Bytes:
    """Progress of `total` bytes, of which `done` were there before. `update` takes the bytes that are there now."""

    def __init__(self, what: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._first = what, total, done
        self._quiet = quiet
        self._drawn = not quiet and screen.is_terminal(sys.stderr)
        self._begin_s = self._said_s = time.monotonic()
        self._tenth = -1
        self._progress: Progress | None = None
        self._task: Any = None

    def update(self, done: int) -> None:
        if self._quiet:
            return
        if self._drawn:
            self._draw(done)
        else:
            self._log(done)

    def close(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None
        self._quiet = True

    def _draw(self, done: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._begin_s < _DELAY_S or done >= self._total:
                return
            self._progress = _rich_progress()
            what = screen.harmless(self._what)
            room = max(_NARROWEST, self._progress.console.width - _NUMBERS_WIDTH)
            what = what if len(what) <= room else what[: room - 1] + "…"
            self._task = self._progress.add_task(what, total=self._total, completed=self._first)
            self._progress.start()
        self._progress.update(self._task, completed=done)

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


def teller(quiet: bool) -> Callable[[str], None]:
    """What to say things with that are not worth a word under `--quiet`. Lines go above a bar that is drawn."""
    return (lambda _text: None) if quiet else screen.note


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
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

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=_BAR_WIDTH if console.width >= 80 else _BAR_WIDTH // 2),
        Numbers(Column(no_wrap=True)),
        console=console,
        transient=True,
    )
