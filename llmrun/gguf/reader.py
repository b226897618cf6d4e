"""Reads the header of a GGUF file: strictly, in one pass, and never trusting a number that the file itself brings.

A GGUF file is, all little-endian:

    "GGUF" · u32 version · u64 number of tensors · u64 number of keys
    keys:     string key · u32 type · value                 (an array: u32 element type · u64 count · elements)
    tensors:  string name · u32 n_dims · u64 dims[n_dims] · u32 ggml type · u64 offset
    padding to `general.alignment`, then the tensors' data

    string = u64 length · bytes

The header of a model with 256 k tokens is about 10 MB of strings, so nothing is decoded before somebody asks: an array
stays the bytes that lie in the file (`StringArray`, `NumberArray`). Memory grows with the bytes that really arrive, not
with the counts that a header promises: a count is compared with its bound and with the size of the file first.

What is read here is the *format*. Whether llama.cpp can run what the header describes is `gguf_rules.check_runnable`.
Every complaint is a `BadModel`: one sentence with the key or tensor and the numbers, safe to print on a terminal.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Protocol, overload

from llmrun.errors import BadModel, NotFound
from llmrun.gguf.types import FILE_TYPE_GUESSED, FILE_TYPES, GGML_TYPES, REMOVED_GGML_TYPES, GgmlType
from llmrun.text import printable

MAX_HEADER_BYTES = 128 << 20
"""The largest headers seen (262 k tokens, 514 k merges) are 16 MB."""
MAX_STRING_BYTES = 16 << 20
MAX_KEY_BYTES = 65_535
"""As the GGUF specification has it."""
MAX_KEYS = 65_536
MAX_TENSORS = 262_144
MAX_ARRAY_COUNT = 1 << 24
MAX_TENSOR_NAME_BYTES = 63
"""llama.cpp's GGML_MAX_NAME less the final zero."""
MAX_DIMS = 4
MAX_LAYERS = 512
"""llama.cpp's LLAMA_MAX_LAYERS: more than this and it aborts."""
DEFAULT_ALIGNMENT = 32
_CHUNK_BYTES = 1 << 18


# GGUF value types: name as llama.cpp prints it, and the typecode of `array` for a fixed-size one.
_STRING, _ARRAY, _BOOL = 8, 9, 7
SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"), 6: ("f32", "f"),
    _BOOL: ("bool", "B"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d"),
}  # fmt: skip
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class NumberArray(Sequence[int | float | bool]):
    """An array of numbers, kept as packed as in the file. `type` is the element's GGUF type, such as "u32"."""

    __slots__ = ("_items", "type")

    def __init__(self, type: str, items: array[int] | array[float]) -> None:
        self.type = type
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> int | float | bool: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int | float | bool]: ...
    def __getitem__(self, index: int | slice) -> int | float | bool | Sequence[int | float | bool]:
        if isinstance(index, slice):
            return NumberArray(self.type, self._items[index])
        item = self._items[index]
        return bool(item) if self.type == "bool" else item

    def __iter__(self) -> Iterator[int | float | bool]:
        return map(bool, self._items) if self.type == "bool" else iter(self._items)

    def picked(self, places: Iterable[int]) -> NumberArray:
        """One with the numbers at these places."""
        return NumberArray(self.type, array(self._items.typecode, [self._items[i] for i in places]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} × {self.type}>"


class StringArray(Sequence[str]):
    """An array of strings, kept as the bytes of the file and decoded one by one when asked for.

    `raw(i)` and `iter_raw()` give the bytes, for tokens that are not valid UTF-8; as text, what is invalid is U+FFFD.
    """

    __slots__ = ("_blob", "_ends")
    type = "str"

    def __init__(self, blob: bytes, ends: array[int]) -> None:
        self._blob = blob  # u64 length and bytes of every string, one behind the other
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def raw(self, index: int) -> bytes:
        if index < 0:
            index += len(self._ends)
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return self._blob[start + 8 : self._ends[index]]

    def iter_raw(self) -> Iterator[bytes]:
        blob, start = self._blob, 0
        for end in self._ends:
            yield blob[start + 8 : end]
            start = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (raw.decode("utf-8", "replace") for raw in self.iter_raw())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} × str>"


Value = int | float | bool | str | NumberArray | StringArray


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` in ggml's order (ne0, the length of a row, first); `offset` in bytes from `data_offset`."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements // self.type.block_size * self.type.type_size


_LAYER = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,9})\.")


def layer_of(tensor: TensorInfo) -> int | None:
    """The layer that a tensor belongs to, from "blk.N." in its name; None for the embedding, the output and so on."""
    found = _LAYER.match(tensor.name)
    return int(found[1]) if found else None


@dataclass(frozen=True, eq=False)
class Header:
    """All that a GGUF file says before its data. Sizes in bytes; `file_size` None when the source does not know it.

    `metadata` holds Python values, `types` the GGUF type of each ("u32", "str", "arr[f32]"). The properties give the
    hyperparameters by their llama.cpp names, and None where the file does not say or says it in the wrong type.
    """

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    types: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    file_size: int | None

    def hparam(self, name: str) -> Value | None:
        """A hyperparameter of the model's own architecture: `hparam("block_count")` is "llama.block_count"."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def tensor(self, name: str) -> TensorInfo | None:
        return self._tensors_by_name.get(name)

    @cached_property
    def _tensors_by_name(self) -> dict[str, TensorInfo]:
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def architecture(self) -> str | None:
        return self._text("general.architecture")

    @property
    def name(self) -> str | None:
        return self._text("general.name")

    @property
    def n_layer(self) -> int | None:
        return self._int("block_count")

    @property
    def n_embd(self) -> int | None:
        return self._int("embedding_length")

    @property
    def n_ctx_train(self) -> int | None:
        """The context length that the model was trained for, in tokens."""
        return self._int("context_length")

    @property
    def n_head(self) -> tuple[int, ...]:
        """Attention heads of every layer; empty where there are none or the number of layers is unknown."""
        return self._per_layer("attention.head_count")

    @property
    def n_head_kv(self) -> tuple[int, ...]:
        """Key-value heads of every layer (0 in a layer without attention); as many as heads where not said."""
        return self._per_layer("attention.head_count_kv") or self.n_head

    @property
    def n_ff(self) -> tuple[int, ...]:
        """Width of the feed-forward block of every layer."""
        return self._per_layer("feed_forward_length")

    @property
    def n_embd_head_k(self) -> int | None:
        """Length of one head's key, in elements."""
        return self._int("attention.key_length") or self._n_embd_per_head

    @property
    def n_embd_head_v(self) -> int | None:
        """Length of one head's value, in elements."""
        return self._int("attention.value_length") or self._n_embd_per_head

    @property
    def n_vocab(self) -> int | None:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, StringArray) else self._int("vocab_size")

    @property
    def n_expert(self) -> int:
        """Experts in a mixture-of-experts layer; 0 in a dense model."""
        return self._int("expert_count") or 0

    @property
    def n_expert_used(self) -> int:
        """Experts that one token runs through (the most of any layer); 0 in a dense model."""
        return max(self._per_layer("expert_used_count"), default=0)

    @property
    def n_params(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors in this file, without the padding between them."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def chat_template(self) -> str | None:
        """The one without a name. A blank one is none: it would leave every question out."""
        text = self._text("tokenizer.chat_template")
        return text if text and text.strip() else None

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All chat templates by name; the one without a name is "default"."""
        prefix = "tokenizer.chat_template."
        texts = {k.removeprefix(prefix): v for k, v in self.metadata.items() if k.startswith(prefix)}
        named = {name: text for name, text in texts.items() if type(text) is str and text.strip()}
        default = self.chat_template
        return named if default is None else {"default": default, **named}

    @property
    def file_type(self) -> str | None:
        """The recipe that the file was quantized with, such as "Q4_K_M", as the file itself says."""
        value = self.metadata.get("general.file_type")
        return FILE_TYPES.get(value & ~FILE_TYPE_GUESSED) if type(value) is int else None

    @property
    def quantization_label(self) -> str | None:
        """`file_type`, or the type that holds most bytes; None without tensors."""
        return self.file_type or next(iter(self.bytes_by_type), None)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of all tensors by ggml's type, the most first."""
        found: Counter[str] = Counter()
        for tensor in self.tensors:
            found[tensor.type.name] += tensor.n_bytes
        return dict(found.most_common())

    @property
    def split_count(self) -> int:
        """Files that the model consists of; 1 for an ordinary model."""
        value = self.metadata.get("split.count")
        return max(1, value) if type(value) is int else 1

    @property
    def split_no(self) -> int:
        """Which of the files this is, counted from 0."""
        value = self.metadata.get("split.no")
        return value if type(value) is int else 0

    @property
    def split_tensors_count(self) -> int | None:
        """Tensors in all files of a split model together."""
        value = self.metadata.get("split.tensors.count")
        return value if type(value) is int else None

    def _text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        return value if type(value) is str else None

    def _int(self, name: str) -> int | None:
        value = self.hparam(name)
        return value if type(value) is int else None

    @property
    def _n_embd_per_head(self) -> int | None:
        n_head = self.n_head[0] if self.n_head else 0
        return self.n_embd // n_head if n_head and self.n_embd is not None else None

    def _per_layer(self, name: str) -> tuple[int, ...]:
        """llama.cpp reads these either as one number for all layers or as one number for each."""
        n_layer, value = self.n_layer or 0, self.hparam(name)
        if not 0 < n_layer <= MAX_LAYERS:
            return ()
        if type(value) is int:
            return (value,) * n_layer
        if isinstance(value, NumberArray) and len(value) >= n_layer:
            return tuple(int(v) for v in value[:n_layer])
        return ()


class Source(Protocol):
    """Where the bytes come from: a file, or anything that can give the next bytes (a remote file by range requests).

    `read(n)` returns at most n bytes, and none only at the end; `size` is the size of all in bytes, None if unknown.
    The reader asks for a few hundred KiB at a time and may read a little past the header's end.
    """

    @property
    def size(self) -> int | None: ...
    def read(self, n: int, /) -> bytes: ...


def open_header(path: str | os.PathLike[str]) -> Header:
    """The header of a file on disk. Raises NotFound, or BadModel saying what the file is instead."""
    name = shown_name(path)
    try:
        if kind := _special_file(os.stat(path).st_mode):  # noqa: PTH116  # the standard library's pathlib is not needed here
            raise BadModel(f"{name} is {kind}, not a GGUF file")
        # O_NONBLOCK: should the file have become a FIFO since, open must not wait for a writer.
        with open(path, "rb", buffering=0, opener=lambda p, flags: os.open(p, flags | _NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if kind := _special_file(status.st_mode):
                raise BadModel(f"{name} is {kind}, not a GGUF file")
            with naming(name):
                return read_header(_FileSource(file.read, status.st_size))
    except FileNotFoundError:
        raise NotFound(f"no such file: {printable(os.fsdecode(os.fspath(path)), 200)}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadModel(f"{name} cannot be read: {reason}") from None


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Inside, a `BadModel` says of what: "x.gguf: …"."""
    try:
        yield
    except BadModel as error:
        raise BadModel(f"{what}: {error.message}", remedies=error.remedies) from None


def shown_name(path: str | os.PathLike[str]) -> str:
    """A file's name without its folder, safe to show."""
    whole = os.fsdecode(os.fspath(path))
    return printable(whole.rstrip(os.sep).rpartition(os.sep)[2] or whole)


def read_header(source: Source) -> Header:
    """Reads the header from `source`, which stands at its first byte. Raises BadModel."""
    stream = _Stream(source)
    version, n_tensors, n_keys = _read_preamble(stream)
    metadata: dict[str, Value] = {}
    types: dict[str, str] = {}
    for i in range(n_keys):
        stream.doing = f"key {i + 1} of {n_keys}"
        key = _identifier(stream.string(MAX_KEY_BYTES), stream.doing)
        if key in metadata:
            raise BadModel(f"key {printable(key)} is there twice")
        stream.doing = f"the value of key {printable(key)}"
        types[key], metadata[key] = _read_value(stream)

    alignment = _alignment(metadata, types)
    tensors = _read_tensors(stream, n_tensors, alignment)
    data_offset = pad(stream.position, alignment) if tensors else stream.position
    if tensors and source.size is not None:
        end = data_offset + tensors[-1].offset + tensors[-1].n_bytes
        if end > source.size:
            raise BadModel(f"the file is cut short: it has {source.size:,} bytes, its tensors need {end:,}")
    return Header(
        version=version,
        alignment=alignment,
        metadata=MappingProxyType(metadata),
        types=MappingProxyType(types),
        tensors=tensors,
        data_offset=data_offset,
        file_size=source.size,
    )


_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)


def _special_file(mode: int) -> str | None:
    for test, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO (named pipe)"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    ):
        if test(mode):
            return kind
    return None if stat.S_ISREG(mode) else "not a regular file"


class _FileSource:
    def __init__(self, read: Callable[[int], bytes | None], size: int) -> None:
        self._read = read
        self.size = size

    def read(self, n: int, /) -> bytes:
        return self._read(n) or b""


class _Stream:
    """Numbers, strings and arrays from a source, one after the other. `doing` says what, for the error message."""

    def __init__(self, source: Source) -> None:
        self.doing = "the magic"
        self._source = source
        self._buffer = bytearray()
        self._at = 0  # of the next unread byte, in the buffer
        self._before = 0  # bytes that have already left the buffer

    @property
    def position(self) -> int:
        return self._before + self._at

    def peek(self, n: int) -> bytes:
        """The next n bytes, or as many as there are, left unread."""
        self._fill(n)
        return bytes(self._buffer[self._at : self._at + n])

    def take(self, n: int) -> bytes:
        self._need(n)
        start, self._at = self._at, self._at + n
        return bytes(self._buffer[start : self._at])

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def string(self, limit: int) -> bytes:
        n = self.u64()
        if n > limit:
            raise BadModel(f"{self.doing} is a string of {n:,} bytes; at most {limit:,} are accepted")
        return self.take(n)

    def scalar(self, typecode: str) -> int | float:
        value: int | float = struct.unpack("<" + typecode, self.take(array(typecode).itemsize))[0]
        return value

    def number_array(self, type_name: str, typecode: str, count: int) -> NumberArray:
        items: array[int] | array[float] = array(typecode)
        raw = self.take(self._checked(count, items.itemsize))
        if type_name == "bool" and raw.strip(b"\0\1"):
            raise BadModel(f"{self.doing} holds a bool that is neither 0 nor 1")
        items.frombytes(raw)
        if sys.byteorder == "big":
            items.byteswap()
        return NumberArray(type_name, items)

    def string_array(self, count: int) -> StringArray:
        self._checked(count, 8)
        ends = array("Q")
        end, unpack, buffer, base = 0, _U64.unpack_from, self._buffer, self._at
        available = len(buffer) - base
        for _ in range(count):
            if end + 8 > available:
                self._need(end + 8)
                base, available = self._at, len(buffer) - self._at
            n = unpack(buffer, base + end)[0]
            if n > MAX_STRING_BYTES:
                raise BadModel(f"{self.doing} holds a string of {n:,} bytes; at most {MAX_STRING_BYTES:,} are accepted")
            end += 8 + n
            ends.append(end)
        return StringArray(self.take(end), ends)

    def _checked(self, count: int, item_bytes: int) -> int:
        """The least bytes that `count` items take, after comparing it with all bounds, so before any allocation."""
        if count > MAX_ARRAY_COUNT:
            raise BadModel(f"{self.doing} is an array of {count:,} items; at most {MAX_ARRAY_COUNT:,} are accepted")
        self._bounded(count * item_bytes)
        return count * item_bytes

    def _bounded(self, n: int) -> None:
        end, size = self.position + n, self._source.size
        if size is not None and end > size:
            raise self._cut_short(size, end)
        if end > MAX_HEADER_BYTES:
            raise BadModel(f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB at {self.doing}")

    def _need(self, n: int) -> None:
        """Makes the next n bytes available at `_at`."""
        if len(self._buffer) - self._at >= n:
            return
        self._bounded(n)
        self._fill(n)
        have = len(self._buffer) - self._at
        if have < n:
            raise self._cut_short(self.position + have, self.position + n)

    def _cut_short(self, has: int, needs: int) -> BadModel:
        return BadModel(f"the file is cut short at {self.doing}: it has {has:,} bytes, at least {needs:,} are needed")

    def _fill(self, n: int) -> None:
        missing = n - (len(self._buffer) - self._at)
        if missing > 0:
            del self._buffer[: self._at]
            self._before, self._at = self._before + self._at, 0
        while missing > 0:
            # A string array is read in strides, so that its growth costs a few large steps, not many small ones.
            chunk = self._source.read(min(max(_CHUNK_BYTES, missing), 16 * _CHUNK_BYTES))
            if not chunk:
                return
            self._buffer += chunk
            missing -= len(chunk)


def _read_preamble(stream: _Stream) -> tuple[int, int, int]:
    start = stream.peek(512)
    if start[:4] != b"GGUF":
        raise BadModel(f"not a GGUF file but {_what_is(start)}")
    stream.take(4)
    stream.doing = "the version"
    version = stream.u32()
    if version & 0xFFFF == 0:
        raise BadModel("a big-endian GGUF file (for another kind of machine), only little-endian ones run here")
    if version not in (2, 3):
        raise BadModel(f"GGUF version {version}; versions 2 and 3 are supported")
    stream.doing = "the number of tensors"
    n_tensors = stream.u64()
    if n_tensors > MAX_TENSORS:
        raise BadModel(f"the header announces {n_tensors:,} tensors; at most {MAX_TENSORS:,} are accepted")
    stream.doing = "the number of keys"
    n_keys = stream.u64()
    if n_keys > MAX_KEYS:
        raise BadModel(f"the header announces {n_keys:,} keys; at most {MAX_KEYS:,} are accepted")
    return version, n_tensors, n_keys


def _read_value(stream: _Stream) -> tuple[str, Value]:
    kind = stream.u32()
    if kind == _STRING:
        return "str", stream.string(MAX_STRING_BYTES).decode("utf-8", "replace")
    if kind != _ARRAY:
        if kind not in SCALARS:
            raise BadModel(f"{stream.doing} has type {kind}, which GGUF does not know")
        type_name, typecode = SCALARS[kind]
        value: int | float | bool = stream.scalar(typecode)
        if kind == _BOOL:
            if value not in (0, 1):
                raise BadModel(f"{stream.doing} is a bool of {value}, neither 0 nor 1")
            value = bool(value)
        return type_name, value
    kind, count = stream.u32(), stream.u64()
    if kind == _ARRAY:
        raise BadModel(f"{stream.doing} is an array of arrays, which llama.cpp does not read")
    if kind == _STRING:
        return "arr[str]", stream.string_array(count)
    if kind not in SCALARS:
        raise BadModel(f"{stream.doing} is an array of type {kind}, which GGUF does not know")
    type_name, typecode = SCALARS[kind]
    return f"arr[{type_name}]", stream.number_array(type_name, typecode, count)


def _alignment(metadata: Mapping[str, Value], types: Mapping[str, str]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", "u32") != "u32" or not isinstance(value, int):
        raise BadModel(f"key general.alignment has type {types['general.alignment']}, it must be u32")
    # llama.cpp takes any power of two, then asserts on data that is not aligned as the CPU kernels want it.
    if value < 8 or value & (value - 1):
        raise BadModel(f"key general.alignment is {value}, it must be a power of two and at least 8")
    return value


def _read_tensors(stream: _Stream, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    expected_offset = 0
    for i in range(n_tensors):
        stream.doing = f"the name of tensor {i + 1} of {n_tensors}"
        name = _identifier(stream.string(MAX_TENSOR_NAME_BYTES), stream.doing)
        shown = printable(name)
        if name in names:
            raise BadModel(f"tensor {shown} is there twice")
        names.add(name)
        stream.doing = f"tensor {shown}"
        n_dims = stream.u32()
        if not 1 <= n_dims <= MAX_DIMS:
            raise BadModel(f"tensor {shown} has {n_dims} dimensions, it must be 1 to {MAX_DIMS}")
        shape = tuple(stream.u64() for _ in range(n_dims))
        type_id, offset = stream.u32(), stream.u64()
        tensor = TensorInfo(name, shape, _tensor_type(shown, shape, type_id), offset)
        # As llama.cpp has it: one tensor's data begins where the padding of the one before ends.
        if offset != expected_offset:
            raise BadModel(f"tensor {shown} has offset {offset:,}, it must be {expected_offset:,}")
        expected_offset = pad(offset + tensor.n_bytes, alignment)
        tensors.append(tensor)
    return tuple(tensors)


def _tensor_type(shown: str, shape: tuple[int, ...], type_id: int) -> GgmlType:
    """The tensor's type, once its shape is one that it can have."""
    if type_id not in GGML_TYPES:
        if removed := REMOVED_GGML_TYPES.get(type_id):
            raise BadModel(f"tensor {shown} has type {removed}, which llama.cpp has removed")
        raise BadModel(f"tensor {shown} has type {type_id}, which ggml does not know")
    tensor_type = GGML_TYPES[type_id]
    if 0 in shape:
        raise BadModel(f"tensor {shown} has a dimension of 0: {_shape(shape)}")
    # An element takes at most 8 bytes, so no product or byte count of this size overflows in 64 bits.
    if math.prod(shape) >= 1 << 59:
        raise BadModel(f"tensor {shown} is too large: {_shape(shape)}")
    if shape[0] % tensor_type.block_size:
        block = f"{tensor_type.name}'s block of {tensor_type.block_size}"
        raise BadModel(f"tensor {shown} has rows of {shape[0]:,} elements, not a multiple of {block}")
    return tensor_type


def _identifier(raw: bytes, doing: str) -> str:
    """The name of a key or tensor: some text, and text that llama.cpp reads as the same (no zero byte)."""
    if not raw or b"\0" in raw:
        raise BadModel(f"{doing} is empty or has a zero byte: '{printable(raw)}'")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadModel(f"{doing} is not valid UTF-8: '{printable(raw)}'") from None


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(f"{dim:,}" for dim in shape)


def pad(n: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return (n + alignment - 1) // alignment * alignment


_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"FUGG", "a GGUF file with its bytes reversed"),
    (b"tjgg", "a model in an old format (ggjt, before GGUF): convert it again from the original"),
    (b"lmgg", "a model in an old format (ggml, before GGUF): convert it again from the original"),
    (b"fmgg", "a model in an old format (ggmf, before GGUF): convert it again from the original"),
    (b"algg", "a LoRA adapter in an old format (ggla, before GGUF)"),
    (b"version https://git-lfs.github.com/spec/", "a git-LFS pointer: the text that stands for a file not downloaded"),
    (b"PK\x03\x04", "a zip archive (PyTorch saves its models as one)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"\xfd7zXZ\0", "xz data: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program (ELF)"),
    (b"MZ", "a program (Windows)"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
)


def _what_is(start: bytes) -> str:
    """What a file is that does not begin with "GGUF", from its first 512 bytes."""
    if not start:
        return "an empty file"
    if not start.strip(b"\0"):
        return "zeros only (a download that never finished?)"
    for magic, what in _MAGICS:
        if start.startswith(magic):
            return what
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in text:
        return "an HTML page (an error or login page saved under the model's name?)"
    if text.startswith(b"<?xml"):
        return "an XML file (an error message saved under the model's name?)"
    # safetensors: u64 length of a JSON object, then the object.
    if len(start) > 9 and start[8:9] == b"{" and 2 <= _U64.unpack(start[:8])[0] < 1 << 30:
        return "a safetensors file: convert it to GGUF first"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    # Pickle protocols 2 to 5 begin with PROTO and the number.
    if start[0] == 0x80 and len(start) > 1 and 2 <= start[1] <= 5:
        return "a Python pickle (a PyTorch checkpoint?): convert it to GGUF first"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    if _looks_like_text(start):
        return f"text that begins with '{printable(start, 40)}'"
    return f"something else, beginning with the bytes {start[:8].hex(' ')}"


def _looks_like_text(start: bytes) -> bool:
    try:
        text = start[: len(start) - 4 if len(start) > 8 else None].decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut in two at the end is still text.
        if error.start < len(start) - 8:
            return False
        text = start[: error.start].decode("utf-8")
    return bool(text) and all(c.isprintable() or c in "\t\r\n\f" for c in text)
