"""Has ggml's CPU code compute in memory that begins at a cache line. Child process only.

What a product needs beside its matrices, above all the activations in blocks, lies in one piece of memory that ggml
takes by `new uint8_t[…]` (`ggml_backend_cpu_graph_compute`). That is as malloc gives it: 16 bytes behind a page's begin
where it is large. A vector of 64 bytes then lies in two cache lines, each time it is read, and prompts take longer, by
6 % (docs/performance.md). There is no setting for it. But C's own `valloc` has the signature of that operator, what it
gives begins at a page, and `delete[]` frees it like any other memory: so it takes the operator's place among the
functions that this one library imports.

Only where all is as expected: Linux, ELF, and nobody else's operator there. LLMRUN_ALIGN=off is without it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_OPERATOR = b"_Znam"  # operator new[](unsigned long)
_RELOCATIONS = frozenset({6, 7, 1025, 1026})  # GLOB_DAT and JUMP_SLOT of x86-64 and of AArch64
_SHT_RELA = 4


def align_work_memory() -> int:
    """In every library of ggml's CPU backend that is loaded; returns how many imports were changed."""
    if sys.platform != "linux" or struct.calcsize("P") != 8 or os.environ.get("LLMRUN_ALIGN") == "off":
        return 0
    changed = 0
    with suppress(OSError, AttributeError, struct.error, ValueError, IndexError):
        usual = _address(ctypes.CDLL("libstdc++.so.6"), _OPERATOR.decode())
        aligned = _address(ctypes.CDLL(None), "valloc")
        for path, base in _loaded("ggml-cpu"):
            for offset in imports(path.read_bytes(), _OPERATOR):
                slot = ctypes.c_void_p.from_address(base + offset)
                if slot.value == usual and _is_writable(base + offset):
                    slot.value = aligned
                    changed += 1
    return changed


def _address(library: ctypes.CDLL, name: str) -> int | None:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value


class _Mapping(NamedTuple):
    begin: int
    end: int
    writable: bool
    offset: int
    path: str


def _mappings() -> Iterator[_Mapping]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        begin, _, end = words[0].partition("-")
        yield _Mapping(int(begin, 16), int(end, 16), "w" in words[1], int(words[2], 16), words[5] if words[5:] else "")


def _loaded(name: str) -> Iterator[tuple[Path, int]]:
    """Libraries with that name, and where they begin in memory."""
    for each in _mappings():
        if not each.offset and name in Path(each.path).name:
            yield Path(each.path), each.begin


def _is_writable(address: int) -> bool:
    return any(each.begin <= address < each.end and each.writable for each in _mappings())


class _Section(NamedTuple):
    """Of an ELF file's table of sections (`Elf64_Shdr`)."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def imports(elf: bytes, symbol: bytes) -> list[int]:
    """Where, from its begin in memory on, a library has the address of a function that it imports.

    Raises `struct.error` and `IndexError` for what is no 64-bit ELF file, little end first.
    """
    if elf[:6] != b"\x7fELF\x02\x01":
        return []
    (table,), (size, n) = struct.unpack_from("<Q", elf, 0x28), struct.unpack_from("<HH", elf, 0x3A)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", elf, table + i * size)) for i in range(n)]
    found = []
    for section in sections:
        if section.kind != _SHT_RELA:
            continue
        symbols = sections[section.link]
        names = sections[symbols.link]
        for place, info, _ in struct.iter_unpack("<QQq", elf[section.offset : section.offset + section.size]):
            if info & 0xFFFFFFFF in _RELOCATIONS:
                (name,) = struct.unpack_from("<I", elf, symbols.offset + (info >> 32) * 24)
                if elf.startswith(symbol + b"\0", names.offset + name):
                    found.append(place)
    return found
