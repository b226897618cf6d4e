"""Where `llmrun` begins: safe standard streams, the exit codes that a shell expects, and nothing heavy."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from llmrun import __version__


def main() -> NoReturn:
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if sys.argv[1:] == ["--version"]:  # needs none of the command line's machinery
            from llmrun.cli.terminal import screen

            code = screen.run_command(lambda: screen.out(f"llmrun {__version__}\n"))
        else:
            from llmrun.cli.app import run

            code = run()
    except KeyboardInterrupt:
        code = 130
    _leave(code)


def _open_closed_streams() -> None:
    """Give descriptors 0 to 2 something to be when they were closed (`>&-`).

    Else the next file or pipe that is opened gets such a number, and whatever is written to "stderr" ends up in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _terminated(signum: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that every `finally` on the way out still restores what it has to.
    sys.exit(128 + signum)


def _leave(code: int) -> NoReturn:
    """Exit without Python's own complaint about a stream that is gone. All data was written by `screen.out` before."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
