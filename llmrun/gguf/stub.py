"""A model's header as a file of its own: every tensor with its name, type and shape, no weights, no vocabulary.

llmrun has llama.cpp lay out such a file without taking any memory (`no_alloc`) to learn how large its compute buffers
would be. Without the vocabulary that takes milliseconds, also for a model that is still on the hub.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from llmrun.gguf.reader import Header, NumberArray, StringArray, Value

_ALIGNMENT = 32
_TYPE_IDS = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
    "f32": (6, "f"), "bool": (7, "?"), "str": (8, ""), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d"),
}  # fmt: skip
_LEFT_OUT = ("tokenizer.", "split.", "general.alignment")


def stub(header: Header) -> tuple[bytes, int]:
    """The file's beginning, and how long the whole file would be with its weights."""
    arch = header.architecture
    keys = [
        _key(name, header.types[name], value)
        for name, value in header.metadata.items()
        if not name.startswith(_LEFT_OUT) and name != f"{arch}.vocab_size" and not isinstance(value, StringArray)
    ]
    keys.append(_key("tokenizer.ggml.model", "str", "none"))
    keys.append(_key(f"{arch}.vocab_size", "u32", header.n_vocab or 0))
    tensors, offset = [], 0
    for tensor in header.tensors:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        tensors.append(_string(tensor.name) + dims + struct.pack("<IQ", tensor.type.id, offset))
        offset += _padded(tensor.n_bytes)
    begin = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    begin += bytes(_padded(len(begin)) - len(begin))
    return begin, len(begin) + offset


def _padded(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode(errors="replace")
    return struct.pack("<Q", len(data)) + data


def _key(name: str, kind: str, value: Value) -> bytes:
    if isinstance(value, NumberArray):
        code, letter = _TYPE_IDS[value.type]
        items = struct.pack(f"<{len(value)}{letter}", *value)
        return _string(name) + struct.pack("<IIQ", 9, code, len(value)) + items
    code, letter = _TYPE_IDS[kind]
    packed = _string(value) if isinstance(value, str) else struct.pack(f"<{letter}", value)
    return _string(name) + struct.pack("<I", code) + packed


@contextmanager
def stub_file(header: Header) -> Iterator[str]:
    """A path that other processes of this user can open while the block runs. Raises `OSError`.

    As long as the model, but sparse: it takes the space of the header. In memory where the system can do that.
    """
    begin, length = stub(header)
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("llmrun-stub")
        try:
            os.write(descriptor, begin)
            os.ftruncate(descriptor, length)
            yield f"/proc/{os.getpid()}/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            file.write(begin)
            file.flush()
            os.ftruncate(file.fileno(), length)
            yield file.name
