"""What this machine's memories and processors can do, as it was measured here, kept for the next command.

    <cache>/ceilings/3f2a….json      one file per machine and build: its name is the digest of the `Key`

Kept figures are for showing and for predictions. A run is held against ceilings that are measured beside it: on a
machine that others use as well they drift by tens of percent within minutes.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from llmrun import codec, fs, paths
from llmrun.clock import age_s
from llmrun.machine.nvml import Nvml, Unavailable

SCHEMA = "llmrun.ceilings/1"
MAX_AGE_DAYS = 30.0
KINDS = ("F16", "Q8_0", "Q4_K")
"""Types of matrices that `llmrun devices --measure` multiplies."""
MIB, GIB = 1 << 20, 1 << 30
LEAST_BYTES = 256 * MIB
MOST_BYTES = 2 * GIB
MOST_GPU_BYTES = GIB
"""Four times the largest cache that a GPU has, and no larger than most drivers take for one tensor."""
LEAST_OF_A_DEVICE = 128 * MIB
"""Of drivers that take less: what Vulkan has all of them take (maxStorageBufferRange, 2^27)."""


def read_size(kind: str, free_bytes: int | None, cache_bytes: int) -> int | None:
    """Bytes of the matrix whose reading is timed, so that memory is what is timed; None: too little memory is free.

    A device of kind "cpu" takes four times the `cache_bytes` of all its last-level caches, at least 256 MiB, at most
    2 GiB; others, whose caches nobody tells, 1 GiB. Never more than a quarter of what is free. With less than 256 MiB
    or twice the caches, a part of every pass would come from the cache: then it is better not measured.
    """
    least = max(LEAST_BYTES, 2 * cache_bytes) if kind == "cpu" else LEAST_BYTES
    wanted = max(least, min(4 * cache_bytes, MOST_BYTES)) if kind == "cpu" else MOST_GPU_BYTES
    n_bytes = wanted if free_bytes is None else min(wanted, free_bytes // 4)
    return n_bytes if n_bytes >= least else None


def datasheet_bytes_per_s(nvml: Nvml, product: str) -> float | None:
    """Bandwidth that the memory of an NVIDIA GPU has on paper: 2 transfers a clock x clock x bus width / 8.

    Right for GDDR5 to GDDR6X and HBM, where NVML's clock is half of the transfer rate: H200, 3201 MHz and 6144 bits,
    4.92 TB/s. Memory that is the CPU's as well (Jetson, GB10) tells no width. No correction for ECC, which on GDDR
    takes some percent. CUDA numbers GPUs otherwise than NVML: they are found by the name of the product; None where
    two of the same name differ.
    """
    try:
        same = [gpu for gpu in range(nvml.n_gpus()) if nvml.name(gpu) == product]
        found = {2 * nvml.max_memory_mhz(gpu) * 1e6 * nvml.bus_width_bits(gpu) / 8 for gpu in same}
    except Unavailable:
        return None
    return found.pop() or None if len(found) == 1 else None


@dataclass(frozen=True)
class Spread:
    """Of one figure that was measured `n` times."""

    median: float
    lowest: float
    highest: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(statistics.median(values), min(values), max(values), len(values)) if values else None


@dataclass(frozen=True)
class Ceiling:
    """What one device can do.

    Attributes:
        device, kind, description, backend: as in `protocol.Device`.
        n_threads: that computed; None where the device has none of its own.
        measured: when; UTC, ISO 8601.
        read_bytes: how large the matrix was that was read.
        read_bytes_per_s: None where there was no room, or no way.
        flops_per_s: by the type of the matrix, two operations per multiply-add; of the faster layout where ggml has
            two. Types that the device can't multiply are left out.
        datasheet_bytes_per_s: what the memory could do on paper, where that is known.
    """

    device: str
    kind: str
    description: str
    backend: str
    n_threads: int | None
    measured: str
    read_bytes: int | None = None
    read_bytes_per_s: Spread | None = None
    flops_per_s: Mapping[str, Spread] = field(default_factory=dict)
    datasheet_bytes_per_s: float | None = None

    @property
    def datasheet_share(self) -> float | None:
        """Of the bandwidth on paper, what was measured."""
        if self.read_bytes_per_s is None or not self.datasheet_bytes_per_s:
            return None
        return self.read_bytes_per_s.median / self.datasheet_bytes_per_s

    def age_s(self, now: datetime | None = None) -> float | None:
        """Seconds since it was measured; None where that is not to be understood, or lies ahead."""
        return age_s(self.measured, now)


@dataclass(frozen=True)
class Key:
    """What the figures depend on: when any of it changes, they are measured anew.

    Attributes:
        cpu: the product's name.
        physical_cores, usable_cpus, cpu_quota, threads: what this process may use, and takes without `-t`.
        devices: [name, product, GiB of memory] of this machine's; workers come and go.
        llama_cpp: versions of what computes.
    """

    cpu: str | None
    physical_cores: int
    usable_cpus: int
    cpu_quota: float | None
    threads: int
    devices: tuple[tuple[str, str, int | None], ...]
    llama_cpp: str

    @property
    def digest(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder() -> Path:
    """Where the files lie. LLMRUN_HOME moves them, as it does the store."""
    return paths.cache() / "ceilings"


def load(
    key: Key, *, max_age_days: float | None = MAX_AGE_DAYS, now: datetime | None = None, where: Path | None = None
) -> tuple[Ceiling, ...]:
    """What is kept for this machine and not too old; nothing where the file is damaged."""
    try:
        document = codec.decode(((where or folder()) / f"{key.digest}.json").read_bytes(), dict[str, Any])
        if document["schema"] != SCHEMA:
            return ()
        kept = codec.convert(document["ceilings"], list[Ceiling])
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    most_s = math.inf if max_age_days is None else max_age_days * 86_400
    return tuple(each for each in kept if (age_s := each.age_s(now)) is not None and age_s <= most_s)


def save(key: Key, measured: Iterable[Ceiling], *, where: Path | None = None) -> None:
    """Keep these, and of the others what is kept already. Raises `DiskError`."""
    known = (*load(key, max_age_days=None, where=where), *measured)
    # A worker's device has its address for a description: the next worker gets the same name.
    made = {(each.device, each.description, each.n_threads): each for each in known}
    # The key is there for people: it says what the digest in the name stands for.
    document = {"schema": SCHEMA, "key": asdict(key), "ceilings": codec.plain(list(made.values()))}
    path = (where or folder()) / f"{key.digest}.json"
    with fs.disk_errors(f"writing {path}"):
        fs.write_atomically(path, json.dumps(document, indent=1) + "\n")
