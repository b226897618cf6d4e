"""Measures ceilings in a process of its own, so that what it takes is not counted as the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from llmrun.clock import utc
from llmrun.engine import devices
from llmrun.engine.channel import Channel, Died
from llmrun.engine.devices import Found
from llmrun.engine.limits import Limits
from llmrun.engine.process import Child, IdleWatch
from llmrun.engine.protocol import OpTimes, Probe, Probed, TimeAttention, TimeLayers, TimeProducts, TimeTransfers
from llmrun.errors import EngineCrashed
from llmrun.machine import hardware, peaks
from llmrun.machine.device import Device
from llmrun.machine.peaks import Ceiling, Key, Spread

M = TypeVar("M")
Operations = TimeProducts | TimeAttention | TimeTransfers | TimeLayers

_WAIT_S = 120.0


class Prober:
    """A child that reads and multiplies on this machine's devices. Its matrices stay where they are until it ends."""

    def __init__(self, rpc: Sequence[str] = (), *, spins: bool = True) -> None:
        """`rpc`: workers at "host:port", whose devices are then known as well. `spins`: as `Child` has it; a model of
        real size does not."""
        self._rpc = rpc
        self._channel = Channel(Child("child.main", spins=spins), limits=Limits(idle_s=_WAIT_S))
        self._watch = IdleWatch(self._channel.child.pid, _WAIT_S)
        self._most: dict[str, int] = {}  # bytes that a device takes for one matrix, where it refused more

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    @property
    def alive(self) -> bool:
        return self._channel.child.alive

    @property
    def cpu_s(self) -> float:
        """CPU time that it has used."""
        return self._watch.cpu_s

    @cached_property
    def found(self) -> Found:
        """What llama.cpp sees. Waits, the first time, until the child is there; raises as `find_devices` does."""
        return devices.ask(self._channel, self._rpc)

    def read_size(self, device: str) -> int | None:
        """Bytes of the matrix that is read on a device (`peaks.read_size`); None: too little is free."""
        known = self._known(device)
        if known is None:
            return None
        wanted = peaks.read_size(known.kind, known.free_bytes, hardware.last_level_cache_bytes())
        return None if wanted is None else min(wanted, self._most.get(device, wanted))

    def probe(
        self,
        device: str,
        kind: str,
        n_threads: int,
        seconds: float,
        *,
        repack: bool = False,
        n_bytes: int | None = None,
    ) -> Probed:
        """Both ceilings of a device, `seconds` for each. Raises `EngineCrashed`.

        `kind`: type of the matrix that is multiplied; "": none is. `repack`: it lies in RAM as llama.cpp rearranges
        weights there. `n_bytes`: of the matrix that is read, if not `read_size`, or less where a device refuses that;
        0: none is.
        """
        size = (self.read_size(device) or 0) if n_bytes is None else n_bytes
        probed = self._asked(Probe(device, size, kind, n_threads, seconds, repack), Probed, _WAIT_S + 2 * seconds)
        known = self._known(device)
        least = size if n_bytes is not None or known is None or known.kind == "cpu" else peaks.LEAST_OF_A_DEVICE
        while not probed.read_bytes_per_s and (size := size // 2) >= least > 0:
            read = self._asked(Probe(device, size, "", n_threads, seconds, False), Probed, _WAIT_S + seconds)
            probed = Probed(read.read_bytes_per_s, probed.flops_per_s)
            self._most[device] = size
        return probed

    def _known(self, device: str) -> Device | None:
        return next((each for each in self.found.devices if each.name == device), None)

    def seconds_of(self, question: Operations) -> list[float]:
        """Of single operations on a device, as `OpTimes` has them. Raises `EngineCrashed`."""
        return self._asked(question, OpTimes, _WAIT_S).seconds

    def _asked(self, question: Probe | Operations, kind: type[M], wait_s: float) -> M:
        device = question.device
        if device not in {each.name for each in self.found.devices}:
            raise EngineCrashed(f"there is no device {device}")
        try:
            answer = self._channel.answer_within(self._channel.request(question), wait_s)
        except Died as error:
            raise EngineCrashed(f"measuring what {device} can do failed: the engine {error}") from None
        if not isinstance(answer, kind):
            raise EngineCrashed(f"measuring what {device} can do failed: {answer or 'no answer'}")
        return answer

    def ceiling(
        self, device: Device, n_threads: int | None, seconds: float, *, datasheet_bytes_per_s: float | None = None
    ) -> Ceiling:
        """All that `llmrun devices --measure` tells of a device: `seconds` for each figure. Raises `EngineCrashed`."""
        threads = n_threads or hardware.default_threads()
        read = self.probe(device.name, "", threads, seconds).read_bytes_per_s
        flops: dict[str, Spread] = {}
        for kind in peaks.KINDS:
            layouts = (False, True) if device.kind == "cpu" else (False,)
            probed = (self.probe(device.name, kind, threads, seconds, repack=each, n_bytes=0) for each in layouts)
            known = [spread for each in probed if (spread := Spread.of(each.flops_per_s)) is not None]
            if known:
                flops[kind] = max(known, key=lambda each: each.median)
        return Ceiling(
            device=device.name,
            kind=device.kind,
            description=device.description,
            backend=device.backend,
            n_threads=n_threads,
            measured=utc(),
            read_bytes=self.read_size(device.name) if read else None,
            read_bytes_per_s=Spread.of(read),
            flops_per_s=flops,
            datasheet_bytes_per_s=datasheet_bytes_per_s,
        )


def key_of(found: Found) -> Key:
    """What the ceilings of this machine depend on."""
    local = [device for device in found.devices if not device.backend.startswith("RPC")]
    cpus = hardware.usable_cpus()
    return Key(
        cpu=next((device.description for device in local if device.kind == "cpu"), None),
        physical_cores=hardware.physical_cores(cpus),
        usable_cpus=len(cpus),
        cpu_quota=hardware.cpu_quota(),
        threads=hardware.default_threads(),
        devices=tuple(
            (each.name, each.description, None if each.total_bytes is None else round(each.total_bytes / peaks.GIB))
            for each in local
        ),
        llama_cpp=" ".join(value for _, value in sorted(found.versions.items())),
    )
