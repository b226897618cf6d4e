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
from collections.abc import Mapping
from types import TracebackType

import pyte


class Terminal:
    """`llmrun ARGUMENTS` on a terminal of `columns` × `lines`. A context manager that leaves no process behind."""

    def __init__(
        self, *arguments: str, columns: int = 100, lines: int = 30, env: Mapping[str, str] | None = None
    ) -> None:
        self.raw = b""
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._pty, child_side = pty.openpty()
        fcntl.ioctl(child_side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmrun", *arguments],
            stdin=child_side,
            stdout=child_side,
            stderr=child_side,
            env={**os.environ, "TERM": "xterm-256color", **(env or {})},
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
        os.write(self._pty, text.encode())

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

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """Read until `text` stands on the screen."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < deadline, f"{text!r} did not come; the screen has:\n{self.text}"
            if not self._read(0.05) and text not in self.text:
                raise AssertionError(f"the command ended without {text!r}; the screen has:\n{self.text}")
        return self.text

    def wait(self, timeout_s: float = 60) -> int:
        """Read until the command ends; returns its exit status."""
        deadline = time.monotonic() + timeout_s
        while self._read(0.05):
            assert time.monotonic() < deadline, f"still running; the screen has:\n{self.text}"
            if self.process.poll() is not None and not select.select([self._pty], [], [], 0)[0]:
                break
        return self.process.wait(timeout=max(0.1, deadline - time.monotonic()))

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)
