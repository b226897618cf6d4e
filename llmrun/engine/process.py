"""A process of its own for native code: how it is started, listened to and ended, and what its death says.

Whatever llama.cpp does in there (abort, segfault, eat all memory, hang) reaches the parent as the end of a pipe, a
status and the last lines of a log. `Child` turns these into one sentence.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import BinaryIO

from llmrun.machine.proc import Proc
from llmrun.text import printable

# -c and not -m: with -m Python would put the user's folder before everything, and a file named json.py there be run.
_BOOT = """
import sys
if sys.path[0] == "":
    del sys.path[0]
if {root!r} not in sys.path:  # not behind another llmrun that is installed as well
    sys.path.insert(0, {root!r})
from llmrun.engine.child import bootstrap
bootstrap.run({module!r})
"""


_SIGNALS = {each.value: each.name for each in signal.Signals}
_OF_OPENMP = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
"""What a user has set himself stays."""
SPINS = "10000"
"""Turns that a thread waits at a barrier before it sleeps: a tenth of a millisecond. libgomp takes some 300,000 by
itself, and for all of these milliseconds keeps whoever it waits for from the core. docs/tuning.md has the figures."""
SMALL_BYTES = 128 << 20

_ABORT = "llmrun-abort: "
# Where llama.cpp was built says nothing to anyone; which of its files it was, does.
_SOURCE_FOLDER = re.compile(r"(?:/[^/:\s]+)+/(?=[^/:\s]+:\d+: )")


class Gone(Exception):
    """The child's end of the pipe is closed: it is dead, or about to be."""


@dataclass(frozen=True)
class Death:
    """Why a child is no more.

    Attributes:
        reason: "was ended by SIGSEGV: the last lines of its log".
        killer: number of the signal that ended it; 0 when it left by itself.
        log: the last 20 kB of llama.cpp's log.
    """

    reason: str
    out_of_memory: bool
    killer: int
    log: str

    @property
    def last_line(self) -> str:
        """Of the log: of an exception what it is."""
        return self.log.rstrip().rpartition("\n")[2]


class Child:
    """A Python process that runs `main()` of a module of this package, with pipes for lines and a file for its log."""

    def __init__(self, module: str, *, spins: bool = False) -> None:
        """`spins`: threads that wait for each other do so at full speed for milliseconds, as OpenMP has it by itself:
        faster for small models, whose steps take less than that, and ruinous beside other processes."""
        self.spins = spins
        self._oom_kills = Proc().oom_kills() or 0
        self._received = b""
        self._lines: list[bytes] = []
        self._log = _scratch_file()
        boot = _BOOT.format(root=os.fspath(Path(__file__).resolve().parents[2]), module=module)
        environment = None if spins or _OF_OPENMP & os.environ.keys() else {**os.environ, "GOMP_SPINCOUNT": SPINS}
        self._process = Popen([sys.executable, "-c", boot], stdin=PIPE, stdout=PIPE, stderr=self._log, env=environment)
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        self._fileno, self._stdin_fileno = self._from.fileno(), self._to.fileno()
        os.set_blocking(self._to.fileno(), False)
        self.closed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def write(self, data: bytes) -> int:
        """Write to the child's stdin without waiting; returns how many bytes it took. Raises `Gone`."""
        try:
            return os.write(self._to.fileno(), data)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ValueError):  # ValueError: closed by us
            raise Gone from None

    def stdin_fileno(self) -> int:
        """Of what it is written to; also when it is closed."""
        return self._stdin_fileno

    def wait_for_room(self, timeout_s: float) -> None:
        """Until the child's stdin takes more, or the time is over."""
        _wait_for(self._to.fileno(), select.POLLOUT, timeout_s)

    @property
    def has_read(self) -> bool:
        """Whether a line is there that was read already."""
        return bool(self._lines)

    def fileno(self) -> int:
        """Of what its lines come from; also when it is closed."""
        return self._fileno

    def line(self, deadline: float) -> bytes | None:
        """The next line, or None at the deadline (on `time.monotonic`). Raises `Gone`, `ValueError` once closed."""
        while not self._lines:
            if not _wait_for(self._from.fileno(), select.POLLIN, deadline - time.monotonic()):
                return None
            data = os.read(self._from.fileno(), 1 << 16)
            if not data:
                raise Gone
            *self._lines, self._received = (self._received + data).split(b"\n")
        return self._lines.pop(0)

    def close(self) -> None:
        """End the child, whatever it is doing, and wait until it is gone. Safe to call twice."""
        self.closed = True
        if self.alive:
            self._process.kill()
        self._process.wait()
        for stream in (self._to, self._from, self._log):
            stream.close()

    def death(self) -> Death:
        """Why the child is gone, after `Gone`. Closes it."""
        try:
            code = self._process.wait(timeout=5)
        except TimeoutExpired:  # closed its pipe and lives on: none of ours does that
            self._process.kill()
            code = self._process.wait()
        log = self._log_tail()
        tail = log[-4000:]
        self.close()
        from llmrun.engine.protocol import out_of_memory  # late: a child is started before messages are needed

        no_memory = out_of_memory(tail) or (code == -signal.SIGKILL and (Proc().oom_kills() or 0) > self._oom_kills)
        lines = [line for line in tail.splitlines() if line.strip()]
        aborts = [_SOURCE_FOLDER.sub("", line[len(_ABORT) :]) for line in lines if line.startswith(_ABORT)]
        reason = aborts[-1] if aborts else " / ".join(lines[-2:]) or "it said nothing"
        # Real-time signals have no names.
        how = f"was ended by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"ended with status {code}"
        return Death(f"{how}: {printable(reason, limit=400)}", no_memory, max(0, -code), log)

    def _log_tail(self) -> str:
        """The last 20 kB of llama.cpp's log."""
        try:
            # Not by seek and read: the child writes at the same file position.
            end = os.fstat(self._log.fileno()).st_size
            return os.pread(self._log.fileno(), 20_000, max(0, end - 20_000)).decode(errors="replace")
        except (OSError, ValueError):
            return ""


def spins_for(n_bytes: int) -> bool:
    """Whether threads should spin for a model of that size (see `Child`)."""
    return n_bytes < SMALL_BYTES


def started_early(reference: str) -> closing[Child]:
    """An engine's child, importing llama.cpp while the caller imports the engine, looks for the model and reads its
    header. `reference` is what the model is called: what is known of its size so early.

    Leaving the block ends it, whether an engine took it or not.
    """
    try:
        size = Path(reference).stat().st_size
    except (OSError, ValueError):
        size = 0 if reference == "tiny" else SMALL_BYTES
    return closing(Child("child.main", spins=spins_for(size)))


def _wait_for(descriptor: int, event: int, timeout_s: float) -> bool:
    """Whether the descriptor is ready in time. By poll: select can't look at descriptors above 1023."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class IdleWatch:
    """Whether a process has used no CPU for some time; always False where the system doesn't tell."""

    def __init__(self, pid: int, idle_s: float) -> None:
        self._pid, self._idle_s = pid, idle_s
        self._first = self._used = Proc().cpu_s(pid)
        self._begin = self._since = time.monotonic()

    def is_idle(self) -> bool:
        used = Proc().cpu_s(self._pid)
        if used is None or used != self._used:
            self._used, self._since = used, time.monotonic()
        return time.monotonic() - self._since >= self._idle_s

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that the process has used since it is watched; wall time where the system doesn't tell."""
        used = Proc().cpu_s(self._pid)
        if used is None or self._first is None:
            return time.monotonic() - self._begin
        return used - self._first


def _scratch_file() -> BinaryIO:
    """A file for the child's log that needs no disk where the system can do without."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("llmrun-log"), "w+b")
    return tempfile.TemporaryFile()
