"""Joules: what the machine's own counters saw while something ran, and what a million tokens cost.

    whole machine (psys) ⊃ CPU package ⊃ CPU cores        RAPL: counters of the CPU, in /sys/class/powercap
                         ⊃ RAM, on servers beside the package
    GPU 0, GPU 1, …                                        NVML: a counter of each, or its power over time

Boundaries overlap, and none of them has the power supply's loss in it but, on some laptops, psys: nothing here is ever
added up over boundaries. What the machine takes at rest is measured by itself before, so that both are known: what a
run took, and what it took more.

RAPL counts in steps of about a millisecond, NVML of 20 to 100: a window of a second is about that exact. Since 2020
Linux lets only root read RAPL (CVE-2020-8694); virtual machines have none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llmrun.machine.nvml import Nvml, Unavailable

POWERCAP = Path("/sys/class/powercap")
LOOK_S = 20.0
"""A counter of RAPL may wrap after a minute on a large machine: it is looked at more often than that."""
POWER_LOOK_S = 0.1
"""Where there is only power to be added up."""

# RAPL's names, the widest first. The number of the package is left out: several sockets are one boundary.
_BOUNDARIES = {
    "psys": "whole machine",
    "package": "CPU package",
    "dram": "RAM",
    "core": "CPU cores",
    "uncore": "CPU's graphics",
}


@dataclass(frozen=True)
class Energy:
    """Joules that one counter saw while the samples of a row ran; warm-ups and pauses are not in it.

    Attributes:
        boundary: what is in it, in words: "GPU 0", "CPU package", "CPU cores", "RAM", "whole machine".
        joules: of all samples of the row together, what the machine takes at rest included.
        method: where it was read: "NVML" (a counter), "NVML power" (added up over time), "RAPL".
        idle_w: watts of the same counter before the samples, with the model loaded and nothing to do.
        seconds: that the joules were counted over.
    """

    boundary: str
    joules: float
    method: str
    idle_w: float | None = None
    seconds: float | None = None

    @property
    def above_idle_j(self) -> float | None:
        """Joules that the samples took more than the machine at rest; below 0 where less than the rest wavers."""
        return None if self.idle_w is None or self.seconds is None else self.joules - self.idle_w * self.seconds


class RaplCounter:
    """One zone of RAPL: microjoules that wrap at `max_energy_range_uj`.

    Raises `Unavailable`. Right as long as it is asked at least once per wrap.
    """

    method = "RAPL"
    look_s = LOOK_S

    def __init__(self, zone: Path, read: Callable[[Path], str] = Path.read_text) -> None:
        self._path, self._read = zone / "energy_uj", read
        try:
            self._range_uj = int(read(zone / "max_energy_range_uj"))
        except (OSError, ValueError):
            self._range_uj = 0
        self._last_uj = self._read_uj()
        self._total_uj = 0

    def joules(self) -> float:
        now_uj = self._read_uj()
        step = now_uj - self._last_uj
        if step < 0:
            if not self._range_uj:
                raise Unavailable("RAPL: a counter went back, and does not tell where it wraps")
            step += self._range_uj
        self._last_uj = now_uj
        self._total_uj += step
        return self._total_uj / 1e6

    def _read_uj(self) -> int:
        try:
            return int(self._read(self._path))
        except PermissionError:
            all_of_them = self._path.parents[1] / "*" / self._path.name
            raise Unavailable(f"RAPL: only root may read the counters: sudo chmod a+r {all_of_them}") from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"RAPL: {error}") from None


class NvmlCounter:
    """A GPU's own counter, which begins when the driver is loaded. Raises `Unavailable` where it has none."""

    method = "NVML"
    look_s = LOOK_S

    def __init__(self, nvml: Nvml, gpu: int) -> None:
        self._nvml, self._gpu = nvml, gpu
        self._first_j = nvml.energy_j(gpu)

    def joules(self) -> float:
        return max(0.0, self._nvml.energy_j(self._gpu) - self._first_j)


class NvmlPower:
    """For GPUs without a counter: power times time between two looks, by the trapezoidal rule. Raises `Unavailable`."""

    method = "NVML power"
    look_s = POWER_LOOK_S

    def __init__(self, nvml: Nvml, gpu: int, clock: Callable[[], float]) -> None:
        self._nvml, self._gpu, self._clock = nvml, gpu, clock
        self._last_w, self._last_s = nvml.power_w(gpu), clock()
        self._total_j = 0.0

    def joules(self) -> float:
        now_w, now_s = self._nvml.power_w(self._gpu), self._clock()
        self._total_j += (self._last_w + now_w) / 2 * (now_s - self._last_s)
        self._last_w, self._last_s = now_w, now_s
        return self._total_j


Counter = RaplCounter | NvmlCounter | NvmlPower
"""Something that can be asked for the joules since it was opened. May raise `Unavailable`, with the reason."""


@dataclass
class Joules:
    """All counters of the machine that can be read.

    Attributes:
        counters: by boundary, the widest first; several of one boundary (sockets) are added up.
        unknown: why the others can't be: by boundary, or by "RAPL" and "NVML" as a whole.
    """

    counters: dict[str, list[Counter]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        nvml: Nvml,
        *,
        powercap: Path = POWERCAP,
        read: Callable[[Path], str] = Path.read_text,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Joules:
        """`read` reads a file of `powercap`."""
        made = cls()
        made._open_rapl(powercap, read)
        made._open_nvml(nvml, clock)
        return made

    def _open_rapl(self, powercap: Path, read: Callable[[Path], str]) -> None:
        # Of intel-rapl-mmio:0 the package is the same once more.
        zones: dict[str, list[Path]] = {}
        for zone in sorted(powercap.glob("intel-rapl:*")):
            with suppress(OSError):
                zones.setdefault(read(zone / "name").strip().partition("-")[0], []).append(zone)
        if not zones:
            self.unknown["RAPL"] = "RAPL: this machine shows no counters"
        for name, boundary in _BOUNDARIES.items():
            try:
                counters: list[Counter] = [RaplCounter(zone, read) for zone in zones.get(name, [])]
            except Unavailable as error:  # one of two sockets would be half of the truth
                self.unknown[boundary] = str(error)
                continue
            if counters:
                self.counters[boundary] = counters

    def _open_nvml(self, nvml: Nvml, clock: Callable[[], float]) -> None:
        try:
            n_gpus = nvml.n_gpus()
        except Unavailable as error:
            self.unknown["NVML"] = str(error)
            return
        for gpu in range(n_gpus):
            try:
                self.counters[f"GPU {gpu}"] = [_gpu_counter(nvml, gpu, clock)]
            except Unavailable as error:
                self.unknown[f"GPU {gpu}"] = str(error)

    @property
    def why_not(self) -> str:
        """Why nothing can be read, in one line; each reason once."""
        return "; ".join(dict.fromkeys(self.unknown.values())) or "there are no counters"

    @property
    def look_s(self) -> float:
        """How often it has to be read at least, in seconds."""
        return min((each.look_s for found in self.counters.values() for each in found), default=LOOK_S)

    def method(self, boundary: str) -> str:
        return self.counters[boundary][0].method

    def read(self) -> dict[str, float]:
        """Joules since this was opened, by boundary. A counter that fails is left out from then on."""
        found: dict[str, float] = {}
        for boundary, counters in list(self.counters.items()):
            try:
                found[boundary] = sum(counter.joules() for counter in counters)
            except Unavailable as error:
                del self.counters[boundary]
                self.unknown[boundary] = str(error)
        return found


def _gpu_counter(nvml: Nvml, gpu: int, clock: Callable[[], float]) -> Counter:
    try:
        return NvmlCounter(nvml, gpu)
    except Unavailable:
        return NvmlPower(nvml, gpu, clock)


class EnergyMeter:
    """Joules of everything that runs inside it, of all such windows together.

        meter = EnergyMeter(joules, measure_idle(joules))
        for sample in samples:
            with meter:
                ...
        meter.result()  # (Energy(...), ...), or why there are none

    A thread looks at the counters between, as seldom as they allow: power must be added up, and RAPL's wrap.

    Attributes:
        seconds: of all windows together.
        joules: by boundary; of those that could be read all the time.
    """

    def __init__(
        self,
        joules: Joules,
        idle_w: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._counters, self._idle_w, self._clock = joules, dict(idle_w or {}), clock
        self._lock = threading.Lock()  # the counters add up what they see: one look at a time
        self._stop = threading.Event()
        self._n_windows = 0
        self.joules: dict[str, float] = {}
        self.seconds = 0.0

    def __enter__(self) -> EnergyMeter:
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="llmrun-energy", daemon=True)
        with self._lock:
            self._first, self._first_s = self._counters.read(), self._clock()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            last, last_s = self._counters.read(), self._clock()
        self._stop.set()
        self._thread.join(timeout=2)  # a driver that hangs must not keep us; the thread is a daemon
        before = self.joules if self._n_windows else dict.fromkeys(last, 0.0)
        in_both = last.keys() & before.keys() & self._first.keys()
        self.joules = {name: before[name] + n - self._first[name] for name, n in last.items() if name in in_both}
        self.seconds += last_s - self._first_s
        self._n_windows += 1

    def result(self) -> tuple[Energy, ...] | str:
        """What was seen, the widest boundary first; or why nothing was."""
        if not self._n_windows:
            return "nothing was measured"
        counters, seconds = self._counters, self.seconds
        found = tuple(
            Energy(name, joules, counters.method(name), idle_w=self._idle_w.get(name), seconds=seconds)
            for name, joules in self.joules.items()
            if name in counters.counters
        )
        return found or self._counters.why_not

    def _watch(self) -> None:
        while not self._stop.wait(self._counters.look_s):
            with self._lock:
                self._counters.read()


def measure_idle(
    joules: Joules,
    seconds: float = 1.5,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Watts by boundary while nothing of ours runs; empty where nothing can be read.

    With the model loaded and the engine waiting: then what is left after subtracting it is the computation's alone.
    """
    if not joules.counters:
        return {}
    meter = EnergyMeter(joules, clock=clock)
    with meter:
        sleep(seconds)
    return {boundary: n / meter.seconds for boundary, n in meter.joules.items()} if meter.seconds > 0 else {}


def cost_per_million_tokens(
    joules_per_token: float | None, tps: float | None, price_kwh: float | None, price_hour: float | None
) -> float | None:
    """Money for a million tokens, in the currency of the prices: energy at `price_kwh`, time at `price_hour`.

    10⁶ J/token ÷ 3.6·10⁶ J/kWh · price + 10⁶ tokens ÷ tokens per hour · price. A price that is None costs nothing, and
    None is returned where neither is given or what it is to be multiplied with is unknown.
    """
    kwh = None if joules_per_token is None else joules_per_token / 3.6
    hours = 1e6 / tps / 3600 if tps else None
    wanted = [(price, n) for price, n in ((price_kwh, kwh), (price_hour, hours)) if price is not None]
    known = [price * n for price, n in wanted if n is not None]
    return sum(known) if wanted and len(known) == len(wanted) else None
