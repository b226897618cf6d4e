"""A real terminal for tests: the command runs on a pty, what it draws is read through a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import pyte
from waiting import HANGS_S


def _without(*names: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in names}


class _Screen(pyte.Screen):
    """Answers what a terminal is asked, such as where its cursor is."""

    def __init__(self, columns: int, lines: int, descriptor: int) -> None:
        self._descriptor = descriptor
        super().__init__(columns, lines)

    def write_process_input(self, data: str) -> None:
        os.write(self._descriptor, data.encode())


class Terminal:
    """`llmrun ARGUMENTS` on a terminal of `columns` × `lines`. A context manager that leaves no process behind."""

    def __init__(
        self, *arguments: str, columns: int = 100, lines: int = 30, env: Mapping[str, str] | None = None
    ) -> None:
        self.raw = b""
        self._pty, child_side = pty.openpty()
        self._screen = _Screen(columns, lines, self._pty)
        self._stream = pyte.ByteStream(self._screen)
        fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmrun", *arguments],
            stdin=child_side,
            stdout=child_side,
            stderr=child_side,
            # Of the terminal that the tests are run from, if there is one, nothing is inherited.
            env={**_without("COLUMNS", "LINES"), "TERM": "xterm-256color", **(env or {})},
            start_new_session=True,
            # The pty becomes the controlling terminal, so that a typed Ctrl-C is a real SIGINT.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(child_side)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._pty)

    def type(self, text: str) -> None:
        data = text.encode()
        while data:  # a terminal takes 4 kB at a time, and only as fast as they are read
            ready = select.select([], [self._pty], [], 0.05)[1]
            if ready:
                data = data[os.write(self._pty, data[:1000]) :]
            self._read(0)

    def paste(self, text: str) -> None:
        """As terminals do since they mark where a paste begins and ends."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._pty, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    @property
    def rows(self) -> list[str]:
        """The screen's lines without trailing blanks, empty ones at the end left out."""
        return self.text.split("\n")

    def line(self, number: int) -> str:
        """One line of the screen, from 0."""
        return str(self._screen.display[number])

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and line, from 0."""
        return self._screen.cursor.x, self._screen.cursor.y

    def settle(self, quiet_s: float = 0.3) -> str:
        """Read until nothing has come for a while. For pace only: `wait_for` and `wait_until` tell what is there."""
        deadline = time.monotonic() + HANGS_S
        last_s, n = time.monotonic(), len(self.raw)
        while time.monotonic() - last_s < quiet_s:
            assert time.monotonic() < deadline, f"it goes on and on; the screen has:\n{self.text}"
            self._read(0.05)
            if len(self.raw) != n:
                last_s, n = time.monotonic(), len(self.raw)
        return self.text

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._pty], [], [], wait_s)[0]:
            return True
        try:
            data = os.read(self._pty, 1 << 16)
        except OSError:  # Linux's way to say that the other side is gone
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    @property
    def text(self) -> str:
        """What stands on the screen, without trailing blanks."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def wait_for(self, text: str) -> str:
        """Read until `text` stands on the screen."""
        deadline = time.monotonic() + HANGS_S
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} did not come; the screen has:\n{self.text}"
            if not self._read(0.05) and text not in self.text:
                raise AssertionError(f"the command ended without {text!r}; the screen has:\n{self.text}")
        return self.text

    def wait_until(self, happened: Callable[[], bool], what: str) -> None:
        """Read until it has happened, as far as the screen tells."""
        deadline = time.monotonic() + HANGS_S
        while not happened():
            assert time.monotonic() < deadline, f"{what} did not happen; the screen has:\n{self.text}"
            if not self._read(0.05) and not happened():
                raise AssertionError(f"the command ended before {what}; the screen has:\n{self.text}")

    def wait_for_bytes(self, data: bytes, times: int) -> None:
        """Read until `data` has come so often."""
        deadline = time.monotonic() + HANGS_S
        while self.raw.count(data) < times:
            assert time.monotonic() < deadline, f"{data!r} did not come {times} times; the screen has:\n{self.text}"
            if not self._read(0.05):
                raise AssertionError(f"the command ended before {data!r}; the screen has:\n{self.text}")

    def wait(self) -> int:
        """Read until the command ends; returns its exit status."""
        deadline = time.monotonic() + HANGS_S
        while self._read(0.05):
            assert time.monotonic() < deadline, f"still running; the screen has:\n{self.text}"
            if self.process.poll() is not None and not select.select([self._pty], [], [], 0)[0]:
                break
        return self.process.wait(timeout=max(0.1, deadline - time.monotonic()))

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)
