"""The header reader and the gate behind it: what they read, what they refuse, and with which sentence."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from waiting import little_work

from llmrun import text
from llmrun.errors import BadModel, NotFound
from llmrun.gguf import reader
from llmrun.gguf.reader import Header, NumberArray, StringArray, open_header, read_header
from llmrun.gguf.rules import check_runnable, open_runnable, writes_no_text
from llmrun.gguf.types import FILE_TYPES, GGML_TYPES

# -- a writer, small enough to be seen through -------------------------------------------------------------------

FORMATS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i")}
FORMATS |= {"f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
TYPE_ID = {t.name: t.id for t in GGML_TYPES.values()}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def packed(type_: str, value: object) -> bytes:
    """A key's value with its type, as it stands in the file. `type_` is "u32", "str", "arr[i32]" ... or "raw"."""
    if type_ == "raw":
        assert isinstance(value, bytes)
        return value
    if type_.startswith("arr["):
        assert isinstance(value, list)
        element = type_[4:-1]
        element_id = 8 if element == "str" else FORMATS[element][0]
        return struct.pack("<IIQ", 9, element_id, len(value)) + b"".join(packed(element, v)[4:] for v in value)
    if type_ == "str":
        assert isinstance(value, str | bytes)
        return struct.pack("<I", 8) + string(value)
    id_, fmt = FORMATS[type_]
    return struct.pack("<I" + fmt, id_, value)


@dataclass
class File:
    """A GGUF file to be written. A tensor's offset follows from those before it unless `offsets` says otherwise."""

    keys: dict[str, tuple[str, object]] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    version: int = 3
    alignment: int = 32

    def set(self, key: str, type_: str, value: object) -> None:
        self.keys[key] = (type_, value)

    def header(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        for key, (type_, value) in self.keys.items():
            head += string(key) + packed(type_, value)
        offset = 0
        for name, (shape, type_name) in self.tensors.items():
            head += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            head += struct.pack("<IQ", TYPE_ID[type_name], self.offsets.get(name, offset))
            offset += -(-n_bytes(shape, type_name) // self.alignment) * self.alignment
        return head + bytes(-len(head) % self.alignment)

    def bytes(self) -> bytes:
        sizes = [-(-n_bytes(*tensor) // self.alignment) * self.alignment for tensor in self.tensors.values()]
        return self.header() + bytes(sum(sizes))


def n_bytes(shape: tuple[int, ...], type_name: str) -> int:
    type_, n = GGML_TYPES[TYPE_ID[type_name]], 1
    for dim in shape:
        n *= dim
    return n // type_.block_size * type_.type_size


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, "▁a", "▁b"]
N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_LAYER = 64, 96, 4, 2, 2


def tiny() -> File:
    """A llama that would run: two layers, four heads sharing two key-value heads, a SentencePiece vocabulary."""
    file = File()
    file.set("general.architecture", "str", "llama")
    file.set("general.name", "str", "Tiny")
    file.set("general.file_type", "u32", 15)
    for name, value in (
        ("context_length", 128),
        ("embedding_length", N_EMBD),
        ("block_count", N_LAYER),
        ("feed_forward_length", N_FF),
        ("attention.head_count", N_HEAD),
        ("attention.head_count_kv", N_HEAD_KV),
        ("rope.dimension_count", N_EMBD // N_HEAD),
    ):
        file.set(f"llama.{name}", "u32", value)
    file.set("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5)
    file.set("tokenizer.ggml.model", "str", "llama")
    file.set("tokenizer.ggml.tokens", "arr[str]", list(TOKENS))
    file.set("tokenizer.ggml.scores", "arr[f32]", [0.0] * len(TOKENS))
    file.set("tokenizer.ggml.token_type", "arr[i32]", [2, 3, 3, *[6] * 256, 1, 1])
    file.set("tokenizer.ggml.eos_token_id", "u32", 2)
    file.set("tokenizer.ggml.padding_token_id", "u32", 2**32 - 1)
    file.set("tokenizer.chat_template", "str", "{{ messages }}")
    head = N_EMBD // N_HEAD
    file.tensors["token_embd.weight"] = ((N_EMBD, len(TOKENS)), "Q8_0")
    for layer in range(N_LAYER):
        for name, shape, type_ in (
            ("attn_norm", (N_EMBD,), "F32"),
            ("attn_q", (N_EMBD, head * N_HEAD), "Q8_0"),
            ("attn_k", (N_EMBD, head * N_HEAD_KV), "Q8_0"),
            ("attn_v", (N_EMBD, head * N_HEAD_KV), "Q8_0"),
            ("attn_output", (head * N_HEAD, N_EMBD), "Q8_0"),
            ("ffn_norm", (N_EMBD,), "F32"),
            ("ffn_gate", (N_EMBD, N_FF), "Q4_0"),
            ("ffn_up", (N_EMBD, N_FF), "Q4_0"),
            ("ffn_down", (N_FF, N_EMBD), "Q4_0"),
        ):
            file.tensors[f"blk.{layer}.{name}.weight"] = (shape, type_)
    file.tensors["output_norm.weight"] = ((N_EMBD,), "F32")
    return file


class Bytes:
    """A source that hands out at most `step` bytes at a time and perhaps does not know its size, as a network may."""

    def __init__(self, raw: bytes, step: int = 1 << 20, *, knows_size: bool = True) -> None:
        self._raw, self._step, self._at = raw, step, 0
        self.size = len(raw) if knows_size else None

    def read(self, n: int, /) -> bytes:
        chunk = self._raw[self._at : self._at + min(n, self._step)]
        self._at += len(chunk)
        return chunk


def read(raw: bytes) -> Header:
    return read_header(Bytes(raw))


def complaint(raw: bytes) -> str:
    """What the reader and then the gate say about these bytes."""
    with pytest.raises(BadModel) as caught:
        check_runnable(read(raw))
    assert caught.value.exit_code == 8
    return caught.value.message


# -- what a good file says -----------------------------------------------------------------------------------------


def test_a_good_model_passes() -> None:
    """The file that every test below breaks is one that can be run."""
    check_runnable(read(tiny().bytes()))


def test_hyperparameters() -> None:
    """The header gives the hyperparameters by llama.cpp's names."""
    header = read(tiny().bytes())
    assert (header.architecture, header.name, header.version) == ("llama", "Tiny", 3)
    assert (header.n_layer, header.n_embd, header.n_ctx_train, header.n_vocab) == (2, 64, 128, len(TOKENS))
    assert (header.n_head, header.n_head_kv, header.n_ff) == ((4, 4), (2, 2), (96, 96))
    assert (header.n_embd_head_k, header.n_embd_head_v) == (16, 16)
    assert (header.n_expert, header.n_expert_used) == (0, 0)
    assert header.hparam("block_count") == 2
    assert header.types["llama.block_count"] == "u32"


def test_values_per_layer() -> None:
    """What differs between layers comes as one value for each; a layer without attention has 0 heads."""
    file = tiny()
    file.set("llama.attention.head_count_kv", "arr[i32]", [0, 2])
    assert read(file.bytes()).n_head_kv == (0, 2)


def test_sizes() -> None:
    """Bytes and parameters add up from the tensors: 64 Q8_0 weights take 2 blocks of 34 bytes."""
    header = read(tiny().bytes())
    embedding = header.tensor("token_embd.weight")
    assert embedding is not None
    assert embedding.shape == (64, len(TOKENS))
    assert embedding.n_bytes == 2 * 34 * len(TOKENS)
    assert embedding.n_elements == 64 * len(TOKENS)
    assert header.weight_bytes == sum(n_bytes(*tensor) for tensor in tiny().tensors.values())
    assert header.n_params == 64 * len(TOKENS) + 2 * (64 * (64 + 32 + 32 + 64 + 3 * 96) + 2 * 64) + 64


def test_data_begins_aligned() -> None:
    """The data section begins at the first multiple of the alignment after the header, and ends with the file."""
    file = tiny()
    file.alignment = 64
    file.set("general.alignment", "u32", 64)
    header = read(file.bytes())
    assert header.alignment == 64
    assert header.data_offset == len(file.header())
    assert header.data_offset % 64 == 0
    assert all(tensor.offset % 64 == 0 for tensor in header.tensors)


def test_layer_of() -> None:
    """blk.N. in a tensor's name is its layer; the embedding belongs to none."""
    header = read(tiny().bytes())
    assert {reader.layer_of(t) for t in header.tensors} == {None, 0, 1}
    assert [t.name for t in header.tensors if reader.layer_of(t) is None] == ["token_embd.weight", "output_norm.weight"]


def test_quantization_label() -> None:
    """The file's own word for its quantization; without it, the type that most bytes have."""
    file = tiny()
    assert read(file.bytes()).quantization_label == "Q4_K_M"
    file.set("general.file_type", "u32", 1024 + 2)
    assert read(file.bytes()).quantization_label == "Q4_0"
    del file.keys["general.file_type"]
    assert read(file.bytes()).quantization_label == "Q8_0"
    assert read(File().bytes()).quantization_label is None


def test_chat_templates() -> None:
    """A model may bring several chat templates; the unnamed one is the default."""
    file = tiny()
    file.set("tokenizer.chat_template.tool_use", "str", "{{ tools }}")
    header = read(file.bytes())
    assert header.chat_template == "{{ messages }}"
    assert header.chat_templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("llama", None),
        ("bert", "an embedding model"),
        ("llama-embed", "an embedding model"),
        ("dream", "a diffusion model"),
        ("llada", "a diffusion model"),
        ("eagle3", "a draft head, which only helps another model"),
        ("wavtokenizer-dec", "a speech model"),
    ],
)
def test_what_writes_no_text(architecture: str, kind: str | None) -> None:
    """By its architecture; by its keys where that writes as a rule."""
    file = tiny()
    file.set("general.architecture", "str", architecture)
    assert writes_no_text(read(file.bytes())) == kind
    for key_, type_, value in (("attention.causal", "bool", False), ("pooling_type", "u32", 3)):
        file = tiny()
        file.set(f"llama.{key_}", type_, value)
        assert writes_no_text(read(file.bytes())) == "an embedding model"


def test_split_model() -> None:
    """A split model says how many files it has and which this is."""
    file = tiny()
    header = read(file.bytes())
    assert (header.split_count, header.split_no, header.split_tensors_count) == (1, 0, None)
    file.set("split.no", "u16", 0)
    file.set("split.count", "u16", 3)
    file.set("split.tensors.count", "i32", 99)
    del file.tensors["output_norm.weight"]  # it lies in another part
    header = read(file.bytes())
    assert (header.split_count, header.split_no, header.split_tensors_count) == (3, 0, 99)
    check_runnable(header)


def test_unknown_is_none() -> None:
    """An empty file has no hyperparameters, and none are made up."""
    header = read(File().bytes())
    names = ("architecture", "name", "n_layer", "n_embd", "n_vocab", "n_embd_head_k", "chat_template", "file_type")
    assert [getattr(header, name) for name in names] == [None] * len(names)
    assert header.n_head == header.n_head_kv == ()
    assert (header.n_params, header.weight_bytes) == (0, 0)


def test_wrong_types_are_unknown() -> None:
    """A hyperparameter of the wrong type is no number to compute with."""
    file = tiny()
    file.set("llama.embedding_length", "str", "64")
    file.set("llama.block_count", "u32", 4_000_000_000)
    header = read(file.bytes())
    assert header.n_embd is None
    assert header.n_head == ()


@pytest.mark.parametrize("type_", FORMATS)
def test_every_scalar_and_array(type_: str) -> None:
    """All of GGUF's number types come back as they were written, alone and in arrays."""
    file = File()
    file.set("a", type_, 1)
    file.set("b", f"arr[{type_}]", [0, 1, 1])
    header = read(file.bytes())
    assert header.metadata["a"] == 1
    assert list(header.metadata["b"]) == [0, 1, 1]  # type: ignore[arg-type]
    assert isinstance(header.metadata["a"], bool) == (type_ == "bool")
    assert header.types == {"a": type_, "b": f"arr[{type_}]"}


def test_arrays_are_sequences() -> None:
    """Arrays behave as sequences: index, slice, iterate, compare; strings give their bytes too."""
    file = File()
    file.set("s", "arr[str]", ["one", b"\xff", "three", ""])
    file.set("n", "arr[i32]", [1, -2, 3])
    metadata = read(file.bytes()).metadata
    strings, numbers = metadata["s"], metadata["n"]
    assert isinstance(strings, StringArray)
    assert isinstance(numbers, NumberArray)
    assert strings[0] == "one"
    assert strings[-2:] == ["three", ""]
    assert list(strings) == ["one", "\ufffd", "three", ""]
    assert strings.raw(1) == b"\xff"
    assert list(strings.iter_raw()) == [b"one", b"\xff", b"three", b""]
    assert strings == ["one", "\ufffd", "three", ""]
    assert numbers[-1] == 3
    assert list(numbers[1:]) == [-2, 3]
    with pytest.raises(IndexError):
        strings.raw(4)


def test_types_agree_with_the_gguf_package() -> None:
    """Block and type sizes, and the names of file types, are those of llama.cpp's own package."""
    from gguf.constants import GGML_QUANT_SIZES, LlamaFileType

    # Q8_1 is 36 bytes in ggml since 2023; some versions of the package still say 40. No file has it.
    theirs = {t.name: sizes for t, sizes in GGML_QUANT_SIZES.items() if t.name != "Q8_1"}
    ours = {t.name: (t.block_size, t.type_size) for t in GGML_TYPES.values()}
    assert theirs.items() <= ours.items()
    for file_type in LlamaFileType:
        if "Q4_1_SOME_F16" not in file_type.name and file_type.value < 1024:
            expected = file_type.name.removeprefix("ALL_").removeprefix("MOSTLY_")
            assert FILE_TYPES[file_type.value] == expected


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    """A file from the official writer is read back to the byte."""
    import numpy as np
    from gguf import GGUFWriter

    path = tmp_path / "official.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("x.weight", np.zeros((3, 8), dtype=np.float32))
    writer.add_tensor("y.weight", np.zeros((5,), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = open_header(path)
    assert (header.architecture, header.n_layer, header.n_vocab) == ("llama", 3, 2)
    assert [(t.name, t.shape, t.type.name) for t in header.tensors] == [
        ("x.weight", (8, 3), "F32"),
        ("y.weight", (5,), "F16"),
    ]
    assert header.file_size == path.stat().st_size


# -- sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_a_slow_source_gives_the_same_header(step: int) -> None:
    """A source may hand out as little as it likes, and may not know its size."""
    raw = tiny().bytes()
    whole = read(raw)
    pieces = read_header(Bytes(raw, step, knows_size=False))
    assert pieces.metadata == whole.metadata
    assert pieces.tensors == whole.tensors
    assert pieces.data_offset == whole.data_offset
    assert pieces.file_size is None


def test_only_the_header_is_needed() -> None:
    """Without the file's size, as from a pipe, the data after the header need not be there."""
    assert len(read_header(Bytes(tiny().header(), knows_size=False)).tensors) == 2 + 9 * N_LAYER


def test_every_truncation_is_told() -> None:
    """Cut anywhere in the header, the message says that it is cut short, and how many bytes there are and should be."""
    raw = tiny().bytes()
    head = len(tiny().header())
    for end in range(len(b"GGUF"), head - 32, 13):  # the last bytes may be padding, which is not read
        for knows_size in (True, False):
            with pytest.raises(BadModel, match="cut short") as caught:
                read_header(Bytes(raw[:end], knows_size=knows_size))
            assert f"it has {end:,} bytes" in caught.value.message


def test_missing_data_is_told() -> None:
    """A download that stopped in the data has a whole header: the message gives both sizes."""
    raw = tiny().bytes()
    cut = raw[:-1000]
    assert complaint(cut) == f"the file is cut short: it has {len(cut):,} bytes, its tensors need {len(raw):,}"


def test_a_vocabulary_of_256_k_tokens_is_quick_and_small() -> None:
    """262,144 tokens and as many merges take a moment and less than 100 MB at most."""
    file = File()
    file.set("tokenizer.ggml.tokens", "raw", many_strings(262_144, b"token%d"))
    file.set("tokenizer.ggml.merges", "raw", many_strings(262_144, b"left%d right"))
    file.set("tokenizer.ggml.scores", "raw", struct.pack("<IIQ", 9, 6, 262_144) + bytes(4 * 262_144))
    raw = file.bytes()
    with little_work():
        read(raw)
    tracemalloc.start()
    header = read(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert header.n_vocab == 262_144


def many_strings(n: int, pattern: bytes) -> bytes:
    return struct.pack("<IIQ", 9, 8, n) + b"".join(string(pattern % i) for i in range(n))


def test_import_is_light() -> None:
    """The reader is imported by every command, so it pulls in nothing from outside the standard library."""
    script = (
        "import sys; before = set(sys.modules); import llmrun.gguf.rules\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(reader.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['llmrun']"


# -- files that are something else ---------------------------------------------------------------------------------

TAR = b"name".ljust(257, b"\0") + b"ustar\0" + bytes(300)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "an empty file"),
        (bytes(5000), "zeros only"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n  <html lang='en'>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>", "an XML file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "a git-LFS pointer"),
        (b"PK\x03\x04rest", "a zip archive"),
        (struct.pack("<Q", 40) + b'{"__metadata__":{}}', "a safetensors file"),
        (b"\x80\x02}q\x00.", "a Python pickle"),
        (b"\x1f\x8b\x08\x00", "gzip data"),
        (TAR, "a tar archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x7fELF\x02", "a program"),
        (b"lmgg\x01", "an old format (ggml"),
        (b"tjgg\x03", "an old format (ggjt"),
        (b"fmgg\x01", "an old format (ggmf"),
        (b"algg\x01", "a LoRA adapter in an old format"),
        (b'{"error": "not found"}', "JSON text"),
        ("Entry not found, très désolé".encode(), "text that begins with 'Entry not found"),
        (b"\x01\x02\x03\xff\xfe", "something else, beginning with the bytes 01 02 03 ff fe"),
        (b"GGU", "text that begins with 'GGU'"),
    ],
)
def test_says_what_else_it_is(raw: bytes, expected: str) -> None:
    """What is not a GGUF file is named for what it is."""
    message = complaint(raw)
    assert message.startswith("not a GGUF file but ")
    assert expected in message


def test_other_versions_are_named() -> None:
    """Big-endian files and versions other than 2 and 3 are refused by name."""
    assert "big-endian" in complaint(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    for version in (0, 1, 4, 77):
        raw = b"GGUF" + struct.pack("<IQQ", version, 0, 0)
        assert ("big-endian" if version == 0 else f"version {version}") in complaint(raw)


def test_folder_device_and_fifo(tmp_path: Path) -> None:
    """A folder, a device, a socket and a FIFO are told apart, and a FIFO without a writer is not waited for."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        # Relative to the folder: a socket's path has room for about 100 bytes only.
        here = Path.cwd()
        os.chdir(tmp_path)
        unix.bind("socket")
        os.chdir(here)
        for path, kind in (
            (tmp_path, "a folder"),
            (tmp_path / "fifo", "a FIFO"),
            (tmp_path / "socket", "a socket"),
            (Path(os.devnull), "a character device"),
        ):
            with pytest.raises(BadModel, match=kind):
                open_header(path)


def test_missing_file() -> None:
    """A path that leads nowhere is not found (4), which is another thing than a bad model (8)."""
    with pytest.raises(NotFound, match=r"no such file: /nowhere/model\.gguf"):
        open_header("/nowhere/model.gguf")
    with pytest.raises(BadModel, match="null (byte|character)"):
        open_header("a\0b")


def test_the_file_is_named(tmp_path: Path) -> None:
    """From a path, every complaint begins with the file's name, without control characters."""
    bad = tmp_path / "evil\x1b[31m\u202e.gguf"
    bad.write_bytes(b"%PDF")
    with pytest.raises(BadModel, match=r"^evil\\x1b\[31m\\x202e\.gguf: not a GGUF file but a PDF document$"):
        open_header(bad)
    file = tiny()
    file.set("llama.block_count", "u32", 0)
    (tmp_path / "tiny.gguf").write_bytes(file.bytes())
    with pytest.raises(BadModel, match=r"^tiny\.gguf: key llama\.block_count is 0"):
        open_runnable(tmp_path / "tiny.gguf")
    (tmp_path / "tiny.gguf").write_bytes(tiny().bytes())
    assert open_runnable(tmp_path / "tiny.gguf").architecture == "llama"


# -- files that break the format -----------------------------------------------------------------------------------

HUGE = 2**40
Edit = Callable[[File], object]


def key(name: str, type_: str, value: object) -> Edit:
    return lambda file: file.set(name, type_, value)


def tensor(name: str, shape: tuple[int, ...], type_: str) -> Edit:
    return lambda file: file.tensors.update({name: (shape, type_)})


def without_key(name: str) -> Edit:
    return lambda file: file.keys.pop(name)


def without_tensor(name: str) -> Edit:
    return lambda file: file.tensors.pop(name)


def token(index: int, text: str | bytes) -> Edit:
    def edit(file: File) -> None:
        file.set("tokenizer.ggml.tokens", "arr[str]", [*TOKENS[:index], text, *TOKENS[index + 1 :]])

    return edit


FORMAT_RULES: list[tuple[Edit, str]] = [
    (key("x", "raw", struct.pack("<II", 99, 0)), "the value of key x has type 99, which GGUF does not know"),
    (key("x", "raw", struct.pack("<IIQ", 9, 99, 0)), "the value of key x is an array of type 99"),
    (key("x", "raw", struct.pack("<IIQ", 9, 9, 1)), "the value of key x is an array of arrays"),
    (key("x", "raw", struct.pack("<IQ", 8, HUGE)), f"the value of key x is a string of {HUGE:,} bytes"),
    (key("x", "raw", struct.pack("<IIQ", 9, 4, HUGE)), f"the value of key x is an array of {HUGE:,} items"),
    (key("x", "raw", struct.pack("<IIQ", 9, 8, HUGE)), f"the value of key x is an array of {HUGE:,} items"),
    (key("x", "raw", struct.pack("<IIQ", 9, 8, 10**7)), "the file is cut short at the value of key x"),
    (key("x", "raw", struct.pack("<IIQ", 9, 10, 10**7)), "the file is cut short at the value of key x"),
    (key("x", "raw", struct.pack("<IIQQ", 9, 8, 1, HUGE)), f"the value of key x holds a string of {HUGE:,} bytes"),
    (key("x", "raw", struct.pack("<IB", 7, 2)), "the value of key x is a bool of 2"),
    (key("x", "raw", struct.pack("<IIQBB", 9, 7, 2, 1, 3)), "the value of key x holds a bool that is neither 0 nor 1"),
    (key("", "u32", 1), "is empty or has a zero byte"),
    (key("a\0b", "u32", 1), "is empty or has a zero byte"),
    (key("k" * 70_000, "u32", 1), "is a string of 70,000 bytes; at most 65,535 are accepted"),
    (key("general.alignment", "u32", 0), "key general.alignment is 0, it must be a power of two"),
    (key("general.alignment", "u32", 1), "key general.alignment is 1, it must be a power of two and at least 8"),
    (key("general.alignment", "u32", 48), "key general.alignment is 48, it must be a power of two"),
    (key("general.alignment", "u64", 32), "key general.alignment has type u64, it must be u32"),
    (tensor("n" * 64, (32,), "F32"), "is a string of 64 bytes; at most 63 are accepted"),
    (tensor("", (32,), "F32"), "is empty or has a zero byte"),
    (tensor("x", (), "F32"), "tensor x has 0 dimensions, it must be 1 to 4"),
    (tensor("x", (1, 1, 1, 1, 1), "F32"), "tensor x has 5 dimensions, it must be 1 to 4"),
    (tensor("x", (32, 0), "F32"), "tensor x has a dimension of 0: 32 × 0"),
    (tensor("x", (33, 2), "Q8_0"), "tensor x has rows of 33 elements, not a multiple of Q8_0's block of 32"),
    (lambda f: f.offsets.update({"output_norm.weight": 32}), "tensor output_norm.weight has offset 32, it must be"),
    (lambda f: f.offsets.update({"token_embd.weight": 8}), "tensor token_embd.weight has offset 8, it must be 0"),
]


@pytest.mark.parametrize(("edit", "expected"), FORMAT_RULES, ids=[expected[:60] for _, expected in FORMAT_RULES])
def test_format(edit: Edit, expected: str) -> None:
    """A file that breaks the format is refused with the place and the numbers."""
    file = tiny()
    edit(file)
    assert expected in complaint(file.bytes())


def test_counts_are_checked() -> None:
    """Numbers of keys and tensors beyond any model are refused before anything is read."""
    assert "announces 1,099,511,627,776 tensors" in complaint(b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0))
    assert "announces 1,099,511,627,776 keys" in complaint(b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE))


def test_duplicates_are_refused() -> None:
    """No key and no tensor is there twice."""
    one_key = string("x") + packed("u32", 1)
    assert complaint(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * one_key) == "key x is there twice"
    one = string("t") + struct.pack("<IQIQ", 1, 8, 0, 0)
    raw = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + 2 * one + bytes(1000)
    assert complaint(raw) == "tensor t is there twice"


@pytest.mark.parametrize(
    ("type_id", "expected"),
    [(31, "has type Q4_0_4_4, which llama.cpp has removed"), (4, "Q4_2"), (99, "type 99, which ggml does not know")],
)
def test_unknown_tensor_types(type_id: int, expected: str) -> None:
    """Types that were removed are named; others are numbers."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + string("t") + struct.pack("<IQIQ", 1, 32, type_id, 0) + bytes(500)
    assert expected in complaint(raw)


def test_a_tensor_too_large() -> None:
    """Dimensions whose product would overflow 64 bits are refused."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + string("t") + struct.pack("<I4QIQ", 4, *[2**32] * 4, 0, 0)
    assert "tensor t is too large" in complaint(raw + bytes(500))


def test_not_utf8() -> None:
    """Names of keys and tensors are text."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string(b"k\xff") + packed("u32", 1)
    assert "key 1 of 1 is not valid UTF-8" in complaint(raw)


@pytest.mark.parametrize("count", [2**24, 2**20])
def test_a_promised_count_allocates_nothing(count: int) -> None:
    """A header that promises millions of strings which are not there costs no memory, known size or not."""
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("x") + struct.pack("<IIQ", 9, 8, count)
    for knows_size in (True, False):
        tracemalloc.start()
        with pytest.raises(BadModel):
            read_header(Bytes(raw, knows_size=knows_size))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1e6


class Endless:
    """A source that never ends: after the start of a file come arrays of 8 MiB of zeros, one key after the other."""

    size = None

    def __init__(self) -> None:
        self._next = self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        yield b"GGUF" + struct.pack("<IQQ", 3, 0, 60_000)
        for i in range(60_000):
            yield string(f"k{i}") + struct.pack("<IIQ", 9, 0, 2**23)
            for _ in range(2**23 // 2**16):
                yield bytes(2**16)

    def read(self, n: int, /) -> bytes:
        assert n >= 2**16
        return next(self._next)


def test_an_endless_source_is_left() -> None:
    """All values together are bounded: a source that never ends is left at 128 MiB."""
    with pytest.raises(BadModel, match=r"the header is larger than 128 MiB at the value of key k15"):
        read_header(Endless())


# -- files that llama.cpp could not run ----------------------------------------------------------------------------

Q = "blk.1.attn_q.weight"
RUN_RULES: list[tuple[Edit, str]] = [
    # what kills it
    (key("llama.block_count", "u32", 0), "key llama.block_count is 0, it must be 1 to 512"),
    (key("llama.block_count", "u32", 513), "key llama.block_count is 513, it must be 1 to 512"),
    (token(260, "▁a"), "token 260 ('▁a') is there twice"),
    (token(259, "▁b\0tail"), "token 260 ('▁b') is there twice"),
    (token(259, "[EMPTY_260]"), ""),
    (token(10, "<0xZZ>"), "token 10 ('<0xZZ>') is a byte, its text must be like <0x0A>"),
    (token(10, "<0xaB>"), "1 of 256 byte tokens are missing, <0x07> first"),
    (key("llama.expert_count", "u32", 4), "the model has 4 experts and uses 0 of them"),
    (key("llama.expert_count", "u32", 5000), "key llama.expert_count is 5000, it must be 0 to 1024"),
    (key("llama.expert_used_count", "u32", 2), "the model has 0 experts and uses 2 of them"),
    (key("llama.expert_group_count", "u32", 2), "the model has 0 experts in 2 groups"),
    (key("llama.expert_gating_func", "u32", 9), "key llama.expert_gating_func is 9, it must be 0 to 4"),
    (
        key("llama.rope.scaling.type", "str", "warp\x1b"),
        "is 'warp\\x1b', it must be one of none, linear, yarn, longrope",
    ),
    (key("llama.rope.dimension_count", "u32", 18), "dimension count is 18, a head's key has only 16 elements"),
    (key("llama.attention.sliding_window_pattern", "arr[bool]", []), "attention.sliding_window_pattern has 0 items"),
    (key("llama.rope.dimension_count", "u32", 14), "the rope dimension count is 14, for llama it must be the length"),
    (key("llama.attention.value_length", "u32", 8), "a head's key has 16 elements and its value 8, llama has as many"),
    (
        key("llama.attention.layer_norm_rms_epsilon", "f32", -1e-5),
        "layer_norm_rms_epsilon is -1e-05, it must be 0 to 1",
    ),
    (key("llama.attention.layer_norm_rms_epsilon", "f32", float("nan")), "holds a value that is not a number (NaN)"),
    (key("llama.attention.layer_norm_rms_epsilon", "f32", float("inf")), "is inf, it must be 0 to 1"),
    (key("llama.attention.layer_norm_rms_epsilon", "f64", 1e-5), "has type f64, it must be f32"),
    (key("llama.rope.freq_base", "f32", float("inf")), "key llama.rope.freq_base is inf"),
    (key("llama.rope.scaling.factor", "f32", -4.0), "key llama.rope.scaling.factor is -4, it must be 0 to 1e+30"),
    (key("llama.xielu", "arr[f32]", [0.0, float("nan")]), "key llama.xielu holds a value that is not a number"),
    (key("llama.pooling_type", "u32", 7), "key llama.pooling_type is 7, it must be 0 to 4"),
    (key("llama.attention.head_count_kv", "u32", 3), "layer 0 has 4 attention heads, not a multiple of its 3"),
    (key("llama.attention.head_count", "u32", 2**31), "head_count is 2147483648, it must be 0 to 65536"),
    (key("llama.attention.head_count", "u32", 0), "key llama.attention.head_count or head_count_kv is missing or 0"),
    (key("llama.attention.head_count", "u32", 6), "an embedding of 64 elements can't be shared among 6 heads"),
    (without_key("llama.attention.head_count"), "key llama.attention.head_count or head_count_kv is missing or 0"),
    (
        key("llama.attention.key_length_mla", "u32", 16),
        "dimension count is 16, it must be less than a key's length (16)",
    ),
    (
        key("llama.rope.dimension_sections", "arr[i32]", [8, -1, 8, 0]),
        "rope.dimension_sections is 8, -1, 8, 0; a head's",
    ),
    (key("llama.rope.dimension_sections", "arr[i32]", [8, 8, 8, 0]), "rope.dimension_sections is 8, 8, 8, 0; a head's"),
    (key("llama.ssm.inner_size", "u32", 2**32 - 1), "key llama.ssm.inner_size is 4294967295, it must be 0 to"),
    (key("llama.nextn_predict_layers", "u32", 3), "key llama.nextn_predict_layers is 3, it must be 0 to 2"),
    (tensor("output_norm.weight", (64,), "Q8_0"), "tensor output_norm.weight has type Q8_0, it must be F32"),
    (tensor("output_norm.weight", (64,), "F16"), "tensor output_norm.weight has type F16, it must be F32"),
    (
        tensor("blk.0.attn_q_norm.weight", (16, 4), "F16"),
        "tensor blk.0.attn_q_norm.weight has type F16, it must be F32",
    ),
    (tensor("blk.0.attn_q.bias", (64,), "F16"), "tensor blk.0.attn_q.bias has type F16, it must be F32"),
    (tensor("blk.0.ssm_conv1d.weight", (4, 64), "F16"), "tensor blk.0.ssm_conv1d.weight has type F16, it must be F32"),
    (tensor(Q, (64, 64), "I32"), f"tensor {Q} has type I32, with which llama.cpp can't compute"),
    (tensor(Q, (64, 64), "Q8_1"), f"tensor {Q} has type Q8_1, with which llama.cpp can't compute"),
    # what it refuses itself
    (without_key("general.architecture"), "key general.architecture is missing"),
    (key("general.architecture", "str", "llamb"), "architecture 'llamb' is not known to this llama.cpp"),
    (key("general.architecture", "u32", 1), "key general.architecture has type u32, it must be str"),
    (key("general.architecture", "str", "clip"), "this is the image or audio part of a model (mmproj)"),
    (key("general.type", "str", "adapter"), "this is a LoRA adapter"),
    (key("general.type", "str", "imatrix"), "this is an importance matrix"),
    (key("split.no", "u16", 2), "this is part 3 of 1 of a split model: give the first part"),
    (without_key("llama.context_length"), "key llama.context_length is missing"),
    (key("llama.context_length", "u32", 0), "key llama.context_length is 0, it must be 1 to"),
    (key("llama.context_length", "i32", 128), "key llama.context_length has type i32, it must be u32"),
    (without_key("llama.embedding_length"), "key llama.embedding_length is missing"),
    (key("llama.feed_forward_length", "arr[i32]", [96]), "feed_forward_length has 1 items for 2 layers"),
    (key("llama.feed_forward_length", "arr[i32]", [96, -1]), "feed_forward_length is -1 for layer 1"),
    (key("llama.feed_forward_length", "arr[f32]", [96.0, 96.0]), "has type arr[f32], it must be u32 or an array of"),
    (without_key("tokenizer.ggml.model"), "key tokenizer.ggml.model is missing"),
    (key("tokenizer.ggml.model", "str", "bpe"), "tokenizer 'bpe' is not known to this llama.cpp"),
    (key("tokenizer.ggml.model", "str", "bert"), "token 3 is a byte, which a bert tokenizer can't have"),
    (key("tokenizer.ggml.model", "str", "gpt2"), "key tokenizer.ggml.merges is missing"),
    (without_key("tokenizer.ggml.tokens"), "key tokenizer.ggml.tokens is missing or holds no tokens"),
    (key("tokenizer.ggml.tokens", "arr[str]", []), "key tokenizer.ggml.tokens is missing or holds no tokens"),
    (key("tokenizer.ggml.scores", "arr[f32]", [0.0]), "key tokenizer.ggml.scores has 1 items for 261 tokens"),
    (key("tokenizer.ggml.scores", "arr[f64]", [0.0]), "scores has type arr[f64], it must be an array of f32 or i32"),
    (key("tokenizer.ggml.token_type", "arr[i32]", [1, 1]), "key tokenizer.ggml.token_type has 2 items for 261 tokens"),
    (key("tokenizer.ggml.token_type", "arr[u8]", [1]), "token_type has type arr[u8], it must be an array of i32"),
    (key("tokenizer.ggml.eos_token_id", "u32", 261), "eos_token_id is 261, but there are 261 tokens"),
    (key("tokenizer.ggml.bos_token_id", "str", "<s>"), "key tokenizer.ggml.bos_token_id has type str, it must be u32"),
    (without_tensor("blk.1.ffn_up.weight"), "tensor blk.1.ffn_up.weight is missing"),
    (without_tensor("output_norm.weight"), "tensor output_norm.weight is missing"),
    (lambda f: f.tensors.clear(), "the file has no tensors: a vocabulary, not a model"),
    (tensor("token_embd.weight", (64, 99), "F16"), "token_embd.weight has shape 64 × 99, it must be 64 × 261"),
    (tensor("blk.0.ffn_down.weight", (64, 96), "F16"), "blk.0.ffn_down.weight has shape 64 × 96, it must be 96 × 64"),
    (tensor(Q, (64, 64, 2), "F16"), f"tensor {Q} has shape 64 × 64 × 2, it must be 64 × 64"),
    (tensor("blk.2.attn_q.weight", (64, 64), "F16"), "tensor blk.2.attn_q.weight belongs to layer 2, there are 2"),
]


@pytest.mark.parametrize(("edit", "expected"), RUN_RULES, ids=[expected[:60] for _, expected in RUN_RULES])
def test_runnable(edit: Edit, expected: str) -> None:
    """What would kill llama.cpp, or what it would refuse, is refused before with the key or tensor and the numbers."""
    file = tiny()
    edit(file)
    if expected:
        assert expected in complaint(file.bytes())
    else:
        check_runnable(read(file.bytes()))


def test_experts() -> None:
    """A mixture of experts needs its experts' tensors, and groups that divide them."""
    file = tiny()
    file.set("llama.expert_count", "u32", 4)
    file.set("llama.expert_used_count", "u32", 2)
    assert complaint(file.bytes()) == "tensor blk.0.ffn_gate_inp.weight is missing"
    for layer in range(N_LAYER):
        for part in ("gate", "up", "down"):
            del file.tensors[f"blk.{layer}.ffn_{part}.weight"]
        file.tensors[f"blk.{layer}.ffn_gate_inp.weight"] = ((64, 4), "F32")
        file.tensors[f"blk.{layer}.ffn_gate_exps.weight"] = ((64, 96, 4), "F16")
        file.tensors[f"blk.{layer}.ffn_up_exps.weight"] = ((64, 96, 4), "F16")
        file.tensors[f"blk.{layer}.ffn_down_exps.weight"] = ((96, 64, 4), "F16")
    header = read(file.bytes())
    check_runnable(header)
    assert (header.n_expert, header.n_expert_used) == (4, 2)
    file.set("llama.expert_group_count", "u32", 3)
    assert "4 experts in 3 groups and uses 0 groups" in complaint(file.bytes())
    file.set("llama.expert_group_count", "u32", 4)
    assert "4 experts in 4 groups" in complaint(file.bytes())
    file.set("llama.expert_used_count", "u32", 5)
    assert "4 experts and uses 5" in complaint(file.bytes())


def bpe(pre: str = "qwen2") -> File:
    """The tiny model with a byte-pair vocabulary of the same size."""
    file = tiny()
    file.set("tokenizer.ggml.model", "str", "gpt2")
    file.set("tokenizer.ggml.pre", "str", pre)
    file.set("tokenizer.ggml.token_type", "arr[i32]", [1] * len(TOKENS))
    file.set("tokenizer.ggml.merges", "arr[str]", ["Ġ a", "a b"])
    return file


def test_byte_pair_vocabulary() -> None:
    """A byte-pair tokenizer needs merges of two pieces, and a pre-tokenizer that llama.cpp knows."""
    check_runnable(read(bpe().bytes()))
    assert complaint(bpe("qwen99").bytes()) == "pre-tokenizer 'qwen99' is not known to this llama.cpp"
    for merges, expected in ((["Ġ a", "ab"], "merge 1 ('ab') is not two pieces"), ([" b"], "merge 0 (' b')")):
        file = bpe()
        file.set("tokenizer.ggml.merges", "arr[str]", merges)
        assert expected in complaint(file.bytes())
    file = bpe("kimi-k2")
    del file.keys["tokenizer.ggml.merges"]
    check_runnable(read(file.bytes()))


def test_unigram_vocabulary() -> None:
    """The table in a unigram tokenizer's character map ends before the map does."""
    file = tiny()
    file.set("tokenizer.ggml.model", "str", "t5")
    check_runnable(read(file.bytes()))
    charsmap = "tokenizer.ggml.precompiled_charsmap"
    file.set(charsmap, "arr[u8]", [4, 0, 0, 0, 1, 2, 3, 4, 0])
    check_runnable(read(file.bytes()))
    file.set(charsmap, "arr[u8]", [5, 0, 0, 0, 1, 2, 3, 4, 0])
    assert "precompiled_charsmap has 9 bytes, its table alone 5" in complaint(file.bytes())
    file.set(charsmap, "arr[u8]", [4, 0])
    assert "fewer than 4" in complaint(file.bytes())


def test_a_vocabulary_without_byte_tokens_passes() -> None:
    """Not every SentencePiece model falls back to bytes: only a set with holes is refused."""
    file = tiny()
    file.set("tokenizer.ggml.tokens", "arr[str]", [f"t{i}" for i in range(len(TOKENS))])
    file.set("tokenizer.ggml.token_type", "arr[i32]", [1] * len(TOKENS))
    check_runnable(read(file.bytes()))


def test_a_vocabulary_file_passes_without_its_tensors() -> None:
    """A file with a vocabulary and no tensors is right as far as it goes."""
    file = tiny()
    file.tensors.clear()
    check_runnable(read(file.bytes()), with_tensors=False)


def test_no_vocabulary() -> None:
    """A model without a tokenizer has no tokens to check."""
    file = tiny()
    file.set("tokenizer.ggml.model", "str", "none")
    del file.keys["tokenizer.ggml.tokens"]
    file.set("llama.vocab_size", "u32", len(TOKENS))
    check_runnable(read(file.bytes()))


@pytest.mark.parametrize(
    "edit",
    [
        key("tokenizer.ggml.padding_token_id", "u32", 999_999),
        key("tokenizer.ggml.eos_token_id", "u32", 2**32 - 1),
        key("llama.attention.head_count_kv", "arr[u32]", [2, 2]),
        key("llama.attention.head_count_kv", "arr[i32]", [2, 2]),
        key("llama.rope.scaling.type", "str", "yarn"),
        key("llama.pooling_type", "u32", 2**32 - 1),
        key("something.else", "f32", float("nan")),
        without_key("llama.rope.dimension_count"),
        without_key("tokenizer.ggml.scores"),
        tensor("output.weight", (64, len(TOKENS)), "Q6_K" if N_EMBD % 256 == 0 else "F16"),
        tensor("rope_freqs.weight", (8,), "F32"),
        tensor("blk.0.attn_q.scale", (1,), "F32"),
    ],
)
def test_what_llama_cpp_takes_passes(edit: Edit) -> None:
    """What llama.cpp runs, be it with a warning, is no error here."""
    file = tiny()
    edit(file)
    check_runnable(read(file.bytes()))


@pytest.mark.parametrize("architecture", ["mamba", "gemma4", "mimo2", "deepseek4", "kimi-linear"])
def test_other_architectures_are_not_measured_by_llama(architecture: str) -> None:
    """Shapes and required tensors are known for plain decoders only: anything else may look as it likes."""
    file = File()
    file.set("general.architecture", "str", architecture)
    file.set("tokenizer.ggml.model", "str", "none")
    for name, value in (("context_length", 512), ("embedding_length", 64), ("block_count", 3)):
        file.set(f"{architecture}.{name}", "u32", value)
    file.set(f"{architecture}.attention.head_count", "arr[u32]", [4, 0, 4])
    file.set(f"{architecture}.attention.head_count_kv", "arr[u32]", [1, 0, 2])
    file.set(f"{architecture}.attention.key_length", "u32", 24)
    file.set(f"{architecture}.attention.value_length", "u32", 16)
    file.set(f"{architecture}.rope.dimension_count", "u32", 6)
    file.tensors["token_embd.weight"] = ((64, 77), "Q8_0")
    file.tensors["blk.7.ssm_conv1d.weight"] = ((4, 64), "F32")
    file.tensors["blk.0.ffn_gate_tid2eid.weight"] = ((6, 77), "I32")
    check_runnable(read(file.bytes()))


@pytest.mark.parametrize(
    ("architecture", "inner", "rank", "expected"),
    [
        ("mamba2", 128, 3, "inner_size is 128, it must be a multiple of ssm.time_step_rank, 3"),
        ("mamba2", 128, 0, "inner_size is 128, it must be a multiple of ssm.time_step_rank, 0"),
        ("jamba", 100, 4, "inner_size is 100, it must be twice the embedding's length"),
    ],
)
def test_recurrent_layers(architecture: str, inner: int, rank: int, expected: str) -> None:
    """The sizes of a recurrent layer fit each other."""
    file = File()
    file.set("general.architecture", "str", architecture)
    for name, value in (("context_length", 512), ("embedding_length", 64), ("block_count", 1)):
        file.set(f"{architecture}.{name}", "u32", value)
    file.set(f"{architecture}.ssm.inner_size", "u32", inner)
    file.set(f"{architecture}.ssm.time_step_rank", "u32", rank)
    assert expected in complaint(file.bytes())


# -- hostile text --------------------------------------------------------------------------------------------------

EVIL = "\x1b]0;pwned\x07\x9b31m\u202e\r\n\u2066" * 9


@pytest.mark.parametrize(
    "edit",
    [
        key(EVIL, "raw", struct.pack("<I", 99)),
        key("general.architecture", "str", EVIL),
        key("tokenizer.ggml.model", "str", EVIL),
        key("llama." + EVIL, "f32", float("nan")),
        key("llama.rope.scaling.type", "str", EVIL),
        tensor("\x1b[2J\u202e\x07.weight", (64, 0), "F32"),
        tensor("\x1b[2J\u202e\x07.weight", (64, 64), "I32"),
        token(10, EVIL),
    ],
)
def test_messages_are_safe_to_print(edit: Edit) -> None:
    """No control, bidi or endless text from a file gets into a message."""
    file = tiny()
    edit(file)
    message = complaint(file.bytes())
    assert message.isprintable()
    assert len(message) < 250


def test_printable() -> None:
    """Escapes are visible, length is bounded, bytes need not be text."""
    assert text.printable("a\x1bb\u202e") == "a\\x1bb\\x202e"
    assert text.printable("é 日本") == "é 日本"
    assert text.printable(b"\xff\x00") == "\ufffd\\x00"
    assert len(text.printable("x" * 10**6)) == 60


# -- chance --------------------------------------------------------------------------------------------------------


def mutants(raw: bytes, head: int, n: int) -> Iterator[bytes]:
    rng = random.Random(20_240)
    for _ in range(n):
        mutant = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(head)
            action = rng.randrange(5)
            if action == 0:
                mutant[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                mutant[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            elif action == 2:
                value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(2**64)))
                mutant[at : at + 8] = struct.pack("<Q", value)
            elif action == 3:
                del mutant[at : at + rng.randrange(1, 9)]
            else:
                mutant[at:at] = rng.randbytes(rng.randrange(1, 9))
        yield bytes(mutant[: rng.randrange(head)] if rng.random() < 0.05 else mutant)


def test_no_mutation_surprises_the_reader() -> None:
    """Five hundred broken headers: each is read or refused, in a moment, and every message is one printable line."""
    refused = 0
    for mutant in mutants(tiny().bytes(), len(tiny().header()), 500):
        with little_work():
            try:
                header = read(mutant)
                assert header.n_params >= 0
                assert header.quantization_label
                assert all(
                    getattr(header, name) is not ... for name in ("n_head", "n_ff", "n_expert_used", "chat_templates")
                )
                check_runnable(header)
            except BadModel as error:
                refused += 1
                assert error.message.isprintable()
                assert len(error.message) < 300
    assert 350 < refused < 500
