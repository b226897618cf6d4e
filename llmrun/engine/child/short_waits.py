"""Has OpenMP's threads wait for each other asleep, and spin again, while the program runs. Child process only.

Where other processes want the cores, a thread that spins at a barrier keeps the one that it waits for from its core.
libgomp decides how long threads spin when it is loaded, with one exception: while it has more threads than there are
CPUs, they sleep almost at once (`gomp_managed_threads`, in libgomp's wait.h; 100 turns). So a thread of our own has it
make a team that does nothing and then waits, without using a CPU: that is more threads than CPUs, until it is gone.

Only for GNU's libgomp, and where nobody has set OMP_WAIT_POLICY.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading

from llmrun.machine.hardware import usable_cpus


class ShortWaits:
    """Call it with what is wanted. `there`: whether this process has a run-time that can do so."""

    def __init__(self) -> None:
        self._omp = _loaded_libgomp()
        self._end: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def there(self) -> bool:
        return self._omp is not None

    def __call__(self, wanted: bool) -> None:
        if self._omp is None or wanted == (self._thread is not None):
            return
        if wanted:
            begun, self._end = threading.Event(), threading.Event()
            self._thread = threading.Thread(
                target=self._hold, args=(begun, self._end), name="llmrun-waits", daemon=True
            )
            self._thread.start()
            begun.wait()
        else:
            assert self._end and self._thread
            self._end.set()
            self._thread.join()  # its team ends with it
            self._thread = self._end = None

    def _hold(self, begun: threading.Event, end: threading.Event) -> None:
        assert self._omp is not None
        nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL) does nothing
        self._omp.GOMP_parallel(nothing, None, len(usable_cpus()) + 1, 0)
        begun.set()
        end.wait()


def _loaded_libgomp() -> ctypes.CDLL | None:
    """The one that ggml uses; None: another one, or none."""
    if sys.platform != "linux" or "OMP_WAIT_POLICY" in os.environ:
        return None
    try:
        found = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        found.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return found
