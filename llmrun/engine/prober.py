"""Measures ceilings in a process of its own, so that what it takes is not counted as the engine's."""

from __future__ import annotations

import time
from types import TracebackType

from llmrun.engine import devices
from llmrun.engine.child import Child, Gone, IdleWatch
from llmrun.engine.protocol import Probe, Probed, decode, encode
from llmrun.errors import EngineCrashed
from llmrun.hardware import last_level_cache_bytes

_WAIT_S = 120.0
_LEAST_BYTES, _MOST_BYTES = 256 << 20, 2 << 30


class Prober:
    """A child that reads and multiplies on this machine's devices. Its matrices stay where they are until it ends."""

    def __init__(self) -> None:
        self._child = Child("worker")
        self._watch = IdleWatch(self._child.pid, _WAIT_S)
        self._free: dict[str, int | None] | None = None

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._child.close()

    @property
    def cpu_s(self) -> float:
        """CPU time that it has used."""
        return self._watch.cpu_s

    def probe(self, device: str, kind: str, n_threads: int, seconds: float) -> Probed:
        """Both ceilings of a device, `kind` being the type of the matrix that is multiplied. Raises `EngineCrashed`."""
        if self._free is None:
            self._free = {found.name: found.free_bytes for found in devices.start(self._child).devices}
        n_bytes = n_bytes_to_read(self._free.get(device))
        self._child.send(encode(Probe(device, n_bytes, kind, n_threads, seconds)))
        try:
            line = self._child.line(time.monotonic() + _WAIT_S)
            answer = None if line is None else decode(line)
        except (Gone, ValueError) as error:
            raise EngineCrashed(f"measuring what {device} can do failed: {error}") from None
        if not isinstance(answer, Probed):
            raise EngineCrashed(f"measuring what {device} can do failed: {answer}")
        return answer


def n_bytes_to_read(free_bytes: int | None) -> int:
    """Of the matrix: far more than the caches hold, and no more than a quarter of what is free."""
    wanted = max(_LEAST_BYTES, 4 * last_level_cache_bytes())
    return min(wanted, _MOST_BYTES, wanted if free_bytes is None else max(1 << 20, free_bytes // 4))
