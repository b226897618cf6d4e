"""A model's header as a file of its own: every tensor with its name, type and shape, no weights, no vocabulary.

llmrun has llama.cpp lay out such a file without taking any memory (`no_alloc`) to learn how large its compute buffers
would be. Without the vocabulary that takes milliseconds, also for a model that is still on the hub.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate

from llmrun import fs
from llmrun.gguf.reader import DEFAULT_ALIGNMENT, SCALARS, Header, NumberArray, StringArray, Value, pad

_TYPE_IDS = {"str": (8, ""), **{name: (id_, code) for id_, (name, code) in SCALARS.items()}}
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
    tensors = []
    *offsets, end = data_offsets(header)
    for tensor, offset in zip(header.tensors, offsets, strict=True):
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        tensors.append(_string(tensor.name) + dims + struct.pack("<IQ", tensor.type.id, offset))
    begin = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    begin += bytes(pad(len(begin), DEFAULT_ALIGNMENT) - len(begin))
    return begin, len(begin) + end


def data_offsets(header: Header) -> list[int]:
    """Where each tensor's weights begin behind the file's beginning, and where the last ones end."""
    return [0, *accumulate(pad(tensor.n_bytes, DEFAULT_ALIGNMENT) for tensor in header.tensors)]


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
    with fs.shared_file("llmrun-stub.gguf") as (descriptor, path):
        os.write(descriptor, begin)
        os.ftruncate(descriptor, length)
        yield path
