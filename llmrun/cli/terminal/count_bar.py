"""How many of a known number are done: a bar on stderr that makes room for what is written meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmrun.cli.terminal import screen

if TYPE_CHECKING:
    from rich.progress import Progress


class CountBar:
    """From `start` to `stop`; without a terminal, or unless it is `shown`, it draws nothing."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._total, self._shown = total, shown
        self._drawn: Progress | None = None
        self._task: Any = None

    def advance(self, what: str) -> None:
        """One more is done; `what` stands beside the bar."""
        if self._drawn:
            self._drawn.update(self._task, advance=1, description=what)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Takes the bar away while something else is written on the terminal."""
        if self._drawn:
            self._drawn.stop()
        try:
            yield
        finally:
            if self._drawn and not self._drawn.finished:
                self._drawn.start()

    def start(self) -> None:
        if self._shown and screen.is_terminal(sys.stderr):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._drawn = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._drawn.add_task("", total=self._total)
            self._drawn.start()

    def stop(self) -> None:
        """Takes it away for good; it can be started again from the beginning."""
        if self._drawn:
            self._drawn.stop()
            self._drawn = None
