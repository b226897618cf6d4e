"""Python processes that go on only when a test lets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def child(code: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """A Python process; each call lets it take one step and waits until it has."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    stdin, stdout, steps = process.stdin, process.stdout, iter(range(99))

    def step() -> subprocess.Popen[str]:
        if next(steps):
            stdin.write("\n")
            stdin.flush()
        stdout.readline()
        return process

    try:
        yield step
    finally:
        process.kill()
        process.wait()
        stdin.close()
        stdout.close()
