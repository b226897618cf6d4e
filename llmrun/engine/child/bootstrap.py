"""What every child does first: its pipes moved to safety, an end when the parent ends, last words when ggml aborts."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

_LOOK_FOR_PARENT_S = 0.25


def run(module: str) -> None:
    """Run `main()` of a module of `llmrun.engine`: "child.main"."""
    with small_typing_extensions():
        child = importlib.import_module(f"llmrun.engine.{module}")
    child.main()


@contextmanager
def small_typing_extensions() -> Iterator[None]:
    """Have what is imported meanwhile do without `typing_extensions`, whose import takes as long as Python's start.

    msgspec takes from `typing` what is not there, and llama_cpp's ctypes layer asks for `TypeAlias` alone. Only while
    one thread imports: another might want the real one.
    """
    name = "typing_extensions"
    if name in sys.modules:
        yield
        return
    small = types.ModuleType(name)
    small.TypeAlias = typing.TypeAlias  # type: ignore[attr-defined]
    sys.modules[name] = small
    try:
        yield
    finally:
        del sys.modules[name]


def begin() -> tuple[BinaryIO, int]:
    """The parent's messages as a stream, and the descriptor for ours.

    They are moved away from descriptors 0 and 1 first, so that no print of a native library can fall among them.
    """
    # Ctrl-C in the terminal is for the parent, which ends us; Ctrl-Z stops both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return inbox, outbox


def _end_with(parent: int) -> None:
    """Leave when the parent is gone, even in the middle of a native call.

    stdin alone can't tell: it does not end while a fork of the parent holds it. Linux's PR_SET_PDEATHSIG tells too
    much: it is bound to the thread that started us, which may end long before its process.
    """
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_S)
    os._exit(0)


def last_words(text: str) -> None:
    """Write what ggml aborts with straight to the log: the process dies next, perhaps in a thread of its own."""
    os.write(2, f"\nllmrun-abort: {text}\n".encode(errors="replace"))
