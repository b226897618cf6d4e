"""Machines that are not here, from what people call them.

    RTX 4090 · 2x RTX 3090 · 3090 x2    devices by name, as people write them: rtx4090, 3090 ti, m1 7c 8gb, Strix Halo
    RTX 4090 24gb                       with so much memory
    DDR5-5600 x2 · i9-14900 32gb        a CPU by its memory: transfers, channels; or by its name
    RTX 4090 + DDR5-5600 x2 64gb        layers over both
    i9-14900 32gb + disk=3.5            GB/s at which weights that don't fit are read
    kind=cpu,bandwidth=89.6,memory=32   whatever has no name here: GB/s, GiB; tflops= (FP32), vendor=, disk=

The devices with names stand in `data/devices.csv`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal, NoReturn

from llmrun.errors import UsageError

Kind = Literal["cpu", "gpu", "igpu", "apple"]

_GIB = 1 << 30
_DATA = Path(__file__).parents[2] / "data" / "devices.csv"
MAX_PARTS = 16
LONG_FORM = "kind=gpu,bandwidth=1008,memory=24,tflops=82.6"
"""What to write for a device without a name here: kind cpu, gpu or apple; GB/s, GiB, FP32 TFLOPS."""
FIELD = "what_if"

_VENDORS = {"nvidia": "ada", "amd": "rdna3", "intel": "xe2"}
"""The family that a GPU without a name is taken for, by who makes it."""
_FAMILIES = {"cpu": "x86", "apple": "apple"}


@dataclass(frozen=True)
class Part:
    """One device with its memory.

    Attributes:
        name: as `data/devices.csv` has it, or as it was written.
        kind: "igpu" computes in main memory; so does "apple".
        family: what its speed is like: an architecture.
        memory_bytes: None where nobody said.
        bytes_per_s: of its memory, by data sheet.
        flops: FP32 operations per second without matrix units; None where not known.
        watts: board power; None where not known.
    """

    name: str
    kind: Kind
    family: str
    memory_bytes: int | None
    bytes_per_s: float
    flops: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class Machine:
    """Devices that a model's layers can be spread over, and the disk that weights are mapped from.

    Attributes:
        name: as it was asked for.
        disk_bytes_per_s: None where nobody said.
    """

    name: str
    parts: tuple[Part, ...]
    disk_bytes_per_s: float | None = None

    @property
    def title(self) -> str:
        """As it was asked for, and what that is taken for, where it reads otherwise."""
        counted = Counter(part.name for part in self.parts)
        taken = " + ".join(f"{n}x {name}" if n > 1 else name for name, n in counted.items())
        return self.name if taken.lower() in self.name.lower() else f"{self.name} ({taken})"

    @property
    def gpus(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.kind != "cpu")

    @property
    def cpu(self) -> Part | None:
        return next((part for part in self.parts if part.kind == "cpu"), None)


def parse(text: str) -> Machine:
    """The machine that `text` describes. Raises `UsageError` with the nearest names and the long form."""
    parts: list[Part] = []
    disk: float | None = None
    text = " ".join(text.split())
    if not text or not text.isprintable() or len(text) > 400:
        _refuse(text, "it names no device")
    for piece in re.split(r"(?:^|\s)\+(?=\s|$)", text):
        if not piece.strip():
            _refuse(text, "it has a + with nothing beside it")
        pairs = _pairs(text, piece)
        if pairs is not None:
            if "disk" in pairs:
                disk = _number(text, "disk", pairs.pop("disk"), 1e9)
            parts += [_long_form(text, pairs)] if pairs else []
            continue
        n, name = _counted(piece.strip())
        if not 0 < n <= MAX_PARTS:
            _refuse(text, f"{n} devices; 1 to {MAX_PARTS} can be told")
        parts += [_named(text, name)] * n
    if not parts:
        _refuse(text, "it names no device")
    if len(parts) > MAX_PARTS:
        _refuse(text, f"{len(parts)} devices; 1 to {MAX_PARTS} can be told")
    if sum(part.kind == "cpu" for part in parts) > 1:
        _refuse(text, "it names two CPUs; a machine has one main memory")
    return Machine(text, tuple(parts), disk)


def _counted(piece: str) -> tuple[int, str]:
    """How many of what: "2x RTX 3090", and "RTX 3090 x2" where the x2 is not that of channels of memory or of a bus.

    An x that is part of a name, as of an RX 580, has a letter before it or nothing but the number behind it.
    """
    if before := re.fullmatch(r"(\d{1,3})\s*[x×]\s*(\D.*|\d{3,}.*)", piece, re.IGNORECASE):
        return int(before[1]), before[2]
    behind = re.fullmatch(r"(.*\w)\s+(?:[x×](\d{1,3})|[x×]\s+(\d{1,2}))", piece, re.IGNORECASE)
    if behind and not re.search(r"ddr|dimm|pcie", piece, re.IGNORECASE):
        return int(behind[2] or behind[3]), behind[1]
    return 1, piece


# -- the long form ---


def _pairs(text: str, piece: str) -> dict[str, str] | None:
    """key=value, separated by commas; None where it is no such thing."""
    if "=" not in piece:
        return None
    pairs: dict[str, str] = {}
    for each in piece.split(","):
        key, _, value = (word.strip().lower() for word in each.partition("="))
        if key not in ("kind", "bandwidth", "memory", "tflops", "disk", "vendor", "watts") or key in pairs or not value:
            _refuse(text, f"'{each.strip()[:40]}' is not understood")
        pairs[key] = value
    return pairs


def _long_form(text: str, pairs: dict[str, str]) -> Part:
    kind = pairs.get("kind")
    if kind not in ("cpu", "gpu", "apple") or "bandwidth" not in pairs:
        wrong = f", not '{kind[:20]}'" if kind not in (None, "cpu", "gpu", "apple") else ""
        _refuse(text, f"kind (cpu, gpu or apple{wrong}) and bandwidth (GB/s) are needed")
    vendor = pairs.get("vendor", "nvidia")
    if vendor not in _VENDORS:
        _refuse(text, f"vendor is one of {', '.join(_VENDORS)}")
    found = {name: _number(text, name, pairs[name], scale) for name, scale in _SCALES.items() if name in pairs}
    memory = found.get("memory")
    return Part(
        name=",".join(f"{key}={value}" for key, value in pairs.items()),
        kind=kind,  # type: ignore[arg-type]
        family=_FAMILIES.get(kind or "", _VENDORS[vendor]),
        memory_bytes=None if memory is None else round(memory),
        bytes_per_s=found["bandwidth"],
        flops=found.get("tflops"),
        watts=found.get("watts"),
    )


_SCALES = {"bandwidth": 1e9, "memory": float(_GIB), "tflops": 1e12, "watts": 1.0}


def _number(text: str, name: str, value: str, scale: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0.001 <= number <= 1e6:
        _refuse(text, f"{name}={value[:20]} is not a number of 0.001 to 1000000")
    return number * scale


# -- names ---

_RAM = re.compile(
    r"\b(?:(?:lp)?ddr\dx?|mrdimm)[- ]?(\d{3,5})(?:\s*(?:[x×]\s*(\d{1,2})\b|(\d{1,2})\s*(?:ch\b|channels?)))?", re.I
)
_MEMORY = re.compile(r"\b(\d{1,4})\s*([gt])i?b\b", re.IGNORECASE)
_CORES = re.compile(r"\b(\d{1,3})[- ]?c(?:ores?)?\b(?:\s*gpu\b)?", re.IGNORECASE)
_NOISE = frozenset(
    "nvidia geforce amd radeon intel apple gpu graphics tesla core processor edition the with and".split()
)
# What a Mac is sold as; what computes in it is the chip.
_MAC = re.compile(r"\b(?:macbook(?: air| pro)?|mac (?:mini|studio|pro)|imac(?: pro)?)\b")
MAX_CHANNELS = 24
# A device that is called so has a name here, or none at all: it is no CPU that only its memory describes.
_CALLED_GPU = frozenset("rtx gtx rx arc quadro titan instinct".split())


@dataclass(frozen=True)
class Entry:
    """One row of `data/devices.csv`: words that a name must have, and words that it may have."""

    part: Part
    cores: int | None
    own: frozenset[str]
    free: frozenset[str]


@cache
def entries() -> tuple[Entry, ...]:
    """The devices that have names."""
    with _DATA.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return tuple(_entry(row) for row in rows)


def _entry(row: dict[str, str]) -> Entry:
    name, memory = row["name"], float(row["memory"] or 0)
    own, free = _words(name.partition(" / ")[0])
    part = Part(
        name=name,
        kind=row["kind"],  # type: ignore[arg-type]
        family=row["family"],
        memory_bytes=round(memory * _GIB) if memory else None,
        bytes_per_s=float(row["gb_s"]) * 1e9,
        flops=float(row["tflops"]) * 1e12 if row["tflops"] else None,
        watts=float(row["watts"]) if row["watts"] else None,
    )
    return Entry(part, int(row["cores"]) if row["cores"] else None, own, free | _words(row["also"])[0])


def _words(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Words and numbers of a name, and those that stand in brackets; sizes of memory and counts of cores left out."""
    text = _MAC.sub(" ", _CORES.sub(" ", _MEMORY.sub(" ", text.lower())))
    inside = " ".join(re.findall(r"\(([^)]*)\)", text))
    found = (re.findall(r"[a-z]+|\d+", part) for part in (re.sub(r"\([^)]*\)", " ", text), inside))
    outer, inner = (frozenset(words) - _NOISE for words in found)
    return outer, inner


def _named(text: str, name: str) -> Part:
    ram, memory, cores = _RAM.search(name), _MEMORY.search(name), _CORES.search(name)
    rest = _RAM.sub(" ", name).replace("/", " ").strip(" ,;")
    own, optional = _words(rest)
    words = own | optional
    memory_bytes = int(memory[1]) * _GIB * (1024 if memory[2].lower() == "t" else 1) if memory else None
    if memory_bytes == 0:
        _refuse(text, f"'{name}' has no memory")
    is_number = bool(words) and all(word.isdigit() for word in words)
    if is_number and all(len(word) < (4 if ram else 3) for word in words):
        _refuse(text, f"{rest[:20]} of what? Memory is told as '{rest[:20]}gb', a device by its name")
    if not ram and (kind := re.match(r"(?:lp)?ddr\d\w?\b", rest, re.IGNORECASE)):
        _refuse(text, f"how fast is {kind[0]}, and how many channels are filled? '{kind[0]}-5600 x2' says both")
    channels = int(ram[2] or ram[3] or 0) if ram else 0
    if channels > MAX_CHANNELS:
        _refuse(text, f"{channels} channels; 1 to {MAX_CHANNELS} can be told")
    if ram and not channels:
        _refuse(text, f"how many channels of {ram[0]} are filled? Most desktops have two: '{ram[0]} x2'")
    # Eight bytes a transfer and channel.
    bandwidth = int(ram[1]) * 1e6 * 8 * channels if ram else None
    found = _found(words, memory_bytes, cpu=ram is not None) or _found(own, memory_bytes, cpu=ram is not None)
    if len(found) > 1:
        _refuse(text, f"'{name}' may be {', '.join(entry.part.name for entry in found[:6])}")
    if found:
        if cores and found[0].part.kind == "apple" and not 0 < int(cores[1]) <= _most_cores(found[0]):
            _refuse(text, f"the GPU of {found[0].part.name} has at most {_most_cores(found[0])} cores, not {cores[1]}")
        return _with(found[0], name, memory_bytes, bandwidth, int(cores[1]) if cores else None)
    if bandwidth is None or own & _CALLED_GPU or is_number:
        two = ", and ' + ' stands between two" if re.search(r"[,;&]|\S\+\S", name) else ""
        _refuse(text, f"'{name[:60]}' is not a device that is known here{two}", _nearest(rest))
    return Part(name, "cpu", "x86", memory_bytes, bandwidth)


def _found(words: frozenset[str], memory_bytes: int | None, *, cpu: bool) -> list[Entry]:
    """Those that have all the words, and the fewest others; several where nothing tells them apart."""
    if not words:
        return []
    fits = [each for each in entries() if words <= each.own | each.free and words & (each.own | each.free)]
    if cpu:  # a memory is named beside it
        fits = [each for each in fits if each.part.kind == "cpu"]
    fewest = min((len(each.own - words) for each in fits), default=0)
    left_open = {frozenset(filter(str.isdigit, each.own - words)) for each in fits}
    if len(left_open) > 1 and frozenset() not in left_open and not any(w.isdigit() and len(w) > 2 for w in words):
        return fits  # a family ("i5", "Ryzen 9"): the one with the shortest name is no better than the others
    fits = [each for each in fits if len(each.own - words) == fewest]
    same = [each for each in fits if each.part.memory_bytes == memory_bytes]
    # Of one name with several memories or counts of cores, the first in the list.
    return same[:1] or (fits[:1] if len({each.own for each in fits}) == 1 else fits)


def _with(entry: Entry, name: str, memory: int | None, bandwidth: float | None, cores: int | None) -> Part:
    """The device, with what the name says of it: memory, bandwidth, cores of the GPU."""
    part = entry.part
    if memory is not None:
        part = replace(part, memory_bytes=memory)
    if bandwidth is not None:
        part = replace(part, name=name, bytes_per_s=bandwidth)
    if part.kind == "apple" and cores and entry.cores and cores != entry.cores:
        return _apple(part, entry, cores, memory)
    return part


def _most_cores(entry: Entry) -> int:
    """Of the GPU of a chip, the most with which it is sold; where that is not known, as many as anybody says."""
    known = [each.cores for each in entries() if each.own == entry.own and each.cores]
    return max(known, default=999)


def _apple(part: Part, entry: Entry, cores: int, memory: int | None) -> Part:
    """With fewer cores; of some chips, with less bandwidth as well: those stand in the list with their cores."""
    for each in entries():
        if each.part.kind == "apple" and each.own == entry.own and each.cores == cores:
            return replace(each.part, memory_bytes=memory or each.part.memory_bytes)
    flops = None if part.flops is None or entry.cores is None else part.flops * cores / entry.cores
    return replace(part, name=f"{part.name} {cores}c", flops=flops)


def _nearest(name: str) -> Sequence[str]:
    by_name = {" ".join(sorted(each.own)): each.part.name for each in entries()}
    close = get_close_matches(" ".join(sorted(_words(name)[0])), by_name, 3, 0.5)
    known = {each.part.name.lower(): each.part.name for each in entries()}
    closer = get_close_matches(name.lower(), known, 3, 0.6)
    return list(dict.fromkeys([*(known[each] for each in closer), *(by_name[each] for each in close)]))[:4]


def names() -> Iterator[str]:
    """Of all devices."""
    return (entry.part.name for entry in entries())


def _refuse(text: str, why: str, nearest: Sequence[str] = ()) -> NoReturn:
    near = f"; the nearest are {', '.join(nearest)}" if nearest else ""
    raise UsageError(f"{why}{near}", field=FIELD, value=text, hint=f"'{LONG_FORM}' says it in figures")
