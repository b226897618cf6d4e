"""Writes valid GGUF models of any shape that `shapes.py` knows, in seconds: for measuring speed and memory without a
download.

Speed is a property of the shape: weights that are random run as fast as weights that mean something. So the blocks of
each quantization are not computed from numbers but written as they are, random bytes with the scales set to something
finite. What such a model says is noise; what it costs is real.
"""

from __future__ import annotations

import math
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrun.errors import UsageError
from llmrun.gguf.reader import DEFAULT_ALIGNMENT, Header, NumberArray, TensorInfo, Value, pad
from llmrun.gguf.shapes import SHAPES, Shape, hparams, small, tensors
from llmrun.gguf.types import FILE_TYPES, GGML_TYPES, GgmlType

__all__ = ["LEVELS", "SHAPES", "Shape", "header_of", "small", "tensor_types", "tensors", "vocabulary", "write"]

# Which type a level gives most tensors. Source of this and of `tensor_types`: llama.cpp's llama-quant.cpp.
_BASE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "MXFP4_MOE": "MXFP4",
    "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0",
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip
LEVELS = tuple(_BASE)

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
# What takes their place where a row is not a multiple of 256 elements.
_SMALLER_BLOCKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"
}  # fmt: skip


def tensor_types(shape: Shape, level: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and ggml type of all tensors: the types that llama.cpp's quantizer gives them at `level`.

    Without an importance matrix. Raises `UsageError` for an unknown level.
    """
    if level not in _BASE:
        raise UsageError(f"'{level}' is not a quantization level; there are {', '.join(LEVELS)}")
    values = [name for name, _ in tensors(shape) if _is_value(name)]
    for name, dims in tensors(shape):
        if not _is_quantized(name, dims):
            yield name, dims, "F32"
        elif level in ("F32", "F16", "BF16"):
            yield name, dims, level
        else:
            # Values are counted, not numbered by their layer: a hybrid has them in some layers only.
            nth = values.index(name) if _is_value(name) else _layer(name)
            kind = _matrix_type(level, name, dims, nth, len(values), shape)
            yield name, dims, _fitting(kind, dims[0])


def _is_value(name: str) -> bool:
    return ".attn_v.weight" in name or ".attn_qkv.weight" in name


def _is_quantized(name: str, dims: tuple[int, ...]) -> bool:
    """Matrices are, without those that are small and sensitive: routers, convolutions, the state's constants."""
    kept = ("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight", "shortconv.conv.weight")
    return len(dims) > 1 and name.endswith(".weight") and not name.endswith(kept)


def _layer(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else 0


def _fitting(kind: str, row: int) -> str:
    """The type itself, or one whose blocks fill the row."""
    if row % 256:
        kind = _SMALLER_BLOCKS.get(kind, kind)
    return "F16" if row % 32 else kind


def _more_bits(nth: int, n: int) -> bool:
    return nth < n // 8 or nth >= 7 * n // 8 or (nth - n // 8) % 3 == 2


def _matrix_type(level: str, name: str, dims: tuple[int, ...], nth: int, n_values: int, shape: Shape) -> str:
    """The type, whether it fits or not; `nth` is the matrix's place among those of its kind."""
    base = _BASE[level]
    if name == "output.weight" or (name == "token_embd.weight" and shape.tied):
        fits = dims[0] % (256 if base in _SMALLER_BLOCKS else 32) == 0
        return "Q6_K" if fits and level not in ("MXFP4_MOE", "Q8_0") else "Q8_0"
    if level == "MXFP4_MOE":
        return "MXFP4" if len(dims) > 2 else "Q8_0"
    if _is_value(name):
        return _value_type(level, nth, n_values, shape)
    if ".attn_k.weight" in name and shape.n_expert == 8:
        return "Q8_0"
    if ".ffn_down" in name:
        always = {"Q2_K": "Q3_K", "Q3_K_M": "Q5_K" if nth < shape.n_layer // 16 else "Q4_K", "Q3_K_L": "Q5_K"}
        if level in always:
            return always[level]
        if level in ("Q4_K_M", "Q5_K_M") and _more_bits(nth, shape.n_layer):
            return "Q6_K"
        if level in ("Q4_K_S", "IQ4_NL", "IQ4_XS") and nth < shape.n_layer // 8:
            return "Q5_K"
    if ".attn_output." in name:
        if shape.n_expert == 8 and level in ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS"):
            return "Q5_K"
        dense = {} if shape.n_expert == 8 else {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}
        return {"Q3_K_M": "Q4_K", **dense}.get(level, base)
    return base


def _value_type(level: str, nth: int, n: int, shape: Shape) -> str:
    """Values, and matrices that hold them beside queries and keys."""
    if shape.n_expert == 8:
        return "Q8_0"
    heads = hparams(shape)["attention.head_count_kv"]
    first = heads[0] if isinstance(heads, tuple) else int(heads)  # a hybrid's first layer has none: no group at all
    grouped = shape.n_head // first if first else 0
    always = {"Q2_K": "Q4_K" if grouped >= 4 else "Q3_K", "Q3_K_M": "Q5_K" if nth < 2 else "Q4_K", "Q3_K_L": "Q5_K"}
    kind = always.get(level, _BASE[level])
    if level in ("Q4_K_M", "Q5_K_M") and _more_bits(nth, n):
        kind = "Q6_K"
    elif (level == "Q4_K_S" and nth < 4) or (level in ("IQ4_NL", "IQ4_XS") and grouped >= 4):
        kind = "Q5_K"
    # Models of 70 B parameters are known by their 80 layers.
    is_70b = shape.n_layer == 80 and (shape.arch == "qwen2" or (shape.arch == "llama" and grouped > 1))
    return "Q5_K" if is_70b and kind in ("Q3_K", "Q4_K") else kind


# Where a block keeps its half-precision scales, and values for them that give weights of about ±0.05 with a mean of
# zero. Offsets are ggml-common.h's structs.
_HALVES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q4_0": ((0, 0.006),),
    "Q4_1": ((0, 0.006), (2, -0.045)),
    "Q5_0": ((0, 0.003),),
    "Q5_1": ((0, 0.003), (2, -0.0465)),
    "Q8_0": ((0, 0.0004),),
    "Q2_K": ((80, 0.0022), (82, 0.0033)),
    "Q3_K": ((108, 0.0004),),
    "Q4_K": ((0, 0.0001), (2, 0.00075)),
    "Q5_K": ((0, 0.00005), (2, 0.000775)),
    "Q6_K": ((208, 0.00002),),
    "IQ4_NL": ((0, 0.0004),),
    "IQ4_XS": ((0, 0.00002),),
    "MXFP4": (),
    "TQ1_0": ((52, 0.01),),
    "TQ2_0": ((64, 0.01),),
}
_AT_THE_BEGINNING = ((0, 0.0004),)


def noise(kind: GgmlType, rng: Any) -> Any:
    """About a megabyte of valid blocks as a uint8 array, to be repeated; NumPy's `rng` makes them."""
    import numpy as np

    if kind.name in ("F32", "F16", "BF16"):
        values = (rng.standard_normal(1 << 18) * 0.02).astype(np.float32)
        tile = values.astype(np.float16) if kind.name == "F16" else values
        raw = (tile.view(np.uint32) >> 16).astype(np.uint16) if kind.name == "BF16" else tile
        return raw.view(np.uint8)
    tile = rng.integers(0, 256, ((1 << 20) // kind.type_size, kind.type_size), dtype=np.uint8)
    if kind.name == "MXFP4":
        tile[:, 0] = 121  # the block's exponent: 2^(121-127)
    for offset, value in _HALVES.get(kind.name, _AT_THE_BEGINNING):
        tile[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
    return tile.reshape(-1)


Vocabulary = tuple[list[bytes], list[float], list[int]]


def vocabulary(n_vocab: int) -> Vocabulary:
    """Texts, scores and types of a SentencePiece vocabulary with byte fallback: any text can be tokenized.

    Behind the 256 bytes stand the printable ASCII characters and then words made up of letters.
    """
    if n_vocab < 512:
        raise UsageError(f"a vocabulary of {n_vocab} tokens is too small: at least 512")
    texts = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]  # unknown, control, byte; then normal
    space = "▁"
    texts += [space.encode(), *(bytes([byte]) for byte in range(33, 127))]
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    n = 0
    while len(texts) < n_vocab:
        word, rest = "", n + 26
        while rest >= 0:
            word = letters[rest % 26] + word
            rest = rest // 26 - 1
        texts.append((space + word).encode())
        n += 1
    types += [1] * (n_vocab - len(types))
    return texts[:n_vocab], [-float(i) for i in range(n_vocab)], types


def write(
    path: Path,
    shape: Shape,
    level: str = "Q4_K_M",
    *,
    seed: int = 0,
    vocab: Vocabulary | None = None,
    chat_template: str | None = None,
) -> None:
    """Write a model of `shape` at quantization `level`; the file appears whole or not at all.

    `vocab` takes the place of `vocabulary(shape.n_vocab)`, with as many tokens.

    Raises `UsageError` for an unknown level.
    """
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType, LlamaFileType

    plan = [(name, dims, _TYPES[type_name]) for name, dims, type_name in tensor_types(shape, level)]
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder) / path.name
        writer = GGUFWriter(made, shape.arch)
        _write_metadata(writer, shape, LlamaFileType["ALL_F32" if level == "F32" else f"MOSTLY_{level}"])
        _write_vocabulary(writer, vocab or vocabulary(shape.n_vocab))
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        for name, dims, kind in plan:
            # The writer takes numpy's order of dimensions, and for quantized types rows counted in bytes.
            n_bytes = _n_bytes(dims, kind)
            if kind.name in ("F32", "F16"):
                dtype = np.dtype(np.float32 if kind.name == "F32" else np.float16)
                writer.add_tensor_info(name, dims[::-1], dtype, n_bytes)
            else:
                rows, raw_dtype = (*dims[:0:-1], _n_bytes(dims[:1], kind)), GGMLQuantizationType(kind.id)
                writer.add_tensor_info(name, rows, np.dtype(np.uint8), n_bytes, raw_dtype=raw_dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        rng = np.random.default_rng(seed)
        for name, dims, kind in plan:
            n_bytes, constant = _n_bytes(dims, kind), constant_of(name)
            if constant is not None:
                writer.write_tensor_data(np.full(n_bytes // 4, constant, dtype=np.float32))
            else:
                writer.write_tensor_data(np.resize(noise(kind, rng), n_bytes))
        writer.close()
        made.replace(path)


def header_of(shape: Shape, level: str = "Q4_K_M") -> Header:
    """The header that `write` would give a model, without a file, a vocabulary or a weight.

    Raises `UsageError` for an unknown level.
    """
    metadata: dict[str, Value] = {"general.architecture": shape.arch, "general.name": "synthetic"}
    labels = {name: number for number, name in FILE_TYPES.items()}
    if level in labels:
        metadata["general.file_type"] = labels[level]
    kinds = {bool: "bool", int: "u32", float: "f32", str: "str"}
    types = {name: kinds[type(value)] for name, value in metadata.items()}
    for name, value in hparams(shape).items():
        key = f"{shape.arch}.{name}"
        if isinstance(value, tuple):
            kind, code = ("bool", "B") if isinstance(value[0], bool) else ("u32", "I")
            metadata[key], types[key] = NumberArray(kind, array(code, value)), f"arr[{kind}]"
        else:
            metadata[key], types[key] = value, kinds[type(value)]
    infos, offset = [], 0
    for name, dims, type_name in tensor_types(shape, level):
        infos.append(TensorInfo(name, dims, _TYPES[type_name], offset))
        offset += pad(infos[-1].n_bytes, DEFAULT_ALIGNMENT)
    return Header(3, DEFAULT_ALIGNMENT, metadata, types, tuple(infos), 0, None)


def _n_bytes(dims: tuple[int, ...], kind: GgmlType) -> int:
    return math.prod(dims) // kind.block_size * kind.type_size


def constant_of(name: str) -> float | None:
    """The value of a tensor that holds the same number throughout; None is random."""
    if name.endswith("norm.weight") or name.startswith("rope_factors"):
        return 1.0
    # A state decays with exp(a · dt): with a positive number it would grow without end.
    return {"ssm_a": -1.0, "ssm_d": 1.0}.get(name.rpartition(".")[2])


def _write_metadata(writer: Any, shape: Shape, file_type: int) -> None:
    writer.add_name("synthetic")
    writer.add_description("random weights of a real shape: for measuring, not for reading")
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    for name, value in hparams(shape).items():
        kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", tuple: "array"}
        getattr(writer, f"add_{kinds[type(value)]}")(f"{shape.arch}.{name}", value)


def _write_vocabulary(writer: Any, vocab: Vocabulary) -> None:
    texts, scores, types = vocab
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
