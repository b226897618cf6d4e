"""Where `llmrun` begins: safe standard streams, the exit codes that a shell expects, and nothing heavy."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    sys.exit("error: llmrun runs on Linux and macOS\n  try: WSL 2 (wsl --install), and llmrun there")

import atexit
import fcntl
import os
import signal

from llmrun import __version__

TYPE_CHECKING = False  # without typing, which takes longer to import than the rest of this
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

# Before and after `main` catches it, Ctrl-C ends us without a word, where Python would show where it was.
_on_interrupt = signal.getsignal(signal.SIGINT)
_IS_OURS = _on_interrupt is signal.default_int_handler  # and not ignored, as it is for a job in the background
if _IS_OURS:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> NoReturn:
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        signal.signal(signal.SIGINT, _on_interrupt)
        if sys.argv[1:] == ["--version"]:  # needs none of the command line's machinery
            from llmrun.cli.terminal import screen

            code = screen.run_command(lambda: screen.out(f"llmrun {__version__}\n"))
        else:
            from llmrun.cli.app import run

            code = run()
    except KeyboardInterrupt:
        code = 130
    if _IS_OURS:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    leave(code)


def _open_closed_streams() -> None:
    """Give descriptors 0 to 2 something to be when they were closed (`>&-`), and 0 when it can't be read (`0>file`).

    Else the next file or pipe that is opened gets such a number, and whatever is written to "stderr" ends up in it.
    """
    for descriptor in (0, 1, 2):
        try:
            mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        else:
            if descriptor == 0 and mode == os.O_WRONLY:
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)


def _terminated(signum: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that every `finally` on the way out still restores what it has to.
    sys.exit(128 + signum)


def leave(code: int) -> NoReturn:
    """Exit without Python's own complaint about a stream that is gone. All data was written by `screen.out` before."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == 130:
        # An interrupt that fell into an exec() of a text, as dataclasses are made by, counts as unhandled for Python,
        # caught or not: instead of exiting with this code it would kill itself with SIGINT.
        atexit._run_exitfuncs()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
