"""Writes valid GGUF models of any llama-like shape, in seconds: for measuring speed and memory without a download.

Speed is a property of the shape: weights that are random run as fast as weights that mean something. So the blocks of
each quantization are not computed from numbers but written as they are, random bytes with the scales set to something
finite. What such a model says is noise; what it costs is real.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrun.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer of the llama family.

    Attributes:
        arch: GGUF architecture: "llama", "qwen2" (biases on q, k, v), "qwen3" (norms on q and k), "qwen3moe".
        n_head_kv: fewer than `n_head` is grouped-query attention.
        n_ff: width of the feed-forward layer, of one expert in a mixture.
        tied: the output matrix is the token embedding.
        n_expert, n_expert_used: 0 is dense.
        head_dim: elements of a head; None is n_embd / n_head.
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    arch: str = "llama"
    n_ctx_train: int = 8192
    tied: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    head_dim: int | None = None
    rope_freq_base: float = 500_000.0

    @property
    def n_embd_head(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def n_params(self) -> int:
        return sum(_elements(shape) for _, shape in tensors(self))


# Published shapes (config.json of the models named).
SHAPES = {
    "llama-1.2b": Shape(16, 2048, 8192, 32, 8, 128_256, tied=True, n_ctx_train=131_072),  # Llama 3.2 1B
    "llama-3b": Shape(28, 3072, 8192, 24, 8, 128_256, tied=True, n_ctx_train=131_072),  # Llama 3.2 3B
    "llama-8b": Shape(32, 4096, 14336, 32, 8, 128_256, n_ctx_train=131_072),  # Llama 3.1 8B
    "qwen3-0.6b": Shape(
        28, 1024, 3072, 16, 8, 151_936, arch="qwen3", tied=True, head_dim=128, n_ctx_train=40_960, rope_freq_base=1e6
    ),
    "qwen3-30b-a3b": Shape(
        48, 2048, 768, 32, 4, 151_936, arch="qwen3moe", head_dim=128, n_expert=128, n_expert_used=8, rope_freq_base=1e6
    ),
    "micro": Shape(2, 256, 512, 4, 2, 512, n_ctx_train=512),  # for tests
}


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, in ggml's order of dimensions (row length first)."""
    d, head, kv = shape.n_embd, shape.n_head * shape.n_embd_head, shape.n_head_kv * shape.n_embd_head
    yield "token_embd.weight", (d, shape.n_vocab)
    for i in range(shape.n_layer):
        block = f"blk.{i}"
        yield f"{block}.attn_norm.weight", (d,)
        for name, width in (("q", head), ("k", kv), ("v", kv)):
            yield f"{block}.attn_{name}.weight", (d, width)
            if shape.arch == "qwen2":
                yield f"{block}.attn_{name}.bias", (width,)
        if shape.arch.startswith("qwen3"):
            yield f"{block}.attn_q_norm.weight", (shape.n_embd_head,)
            yield f"{block}.attn_k_norm.weight", (shape.n_embd_head,)
        yield f"{block}.attn_output.weight", (head, d)
        yield f"{block}.ffn_norm.weight", (d,)
        if shape.n_expert:
            yield f"{block}.ffn_gate_inp.weight", (d, shape.n_expert)
            yield f"{block}.ffn_gate_exps.weight", (d, shape.n_ff, shape.n_expert)
            yield f"{block}.ffn_down_exps.weight", (shape.n_ff, d, shape.n_expert)
            yield f"{block}.ffn_up_exps.weight", (d, shape.n_ff, shape.n_expert)
        else:
            yield f"{block}.ffn_gate.weight", (d, shape.n_ff)
            yield f"{block}.ffn_down.weight", (shape.n_ff, d)
            yield f"{block}.ffn_up.weight", (d, shape.n_ff)
    yield "output_norm.weight", (d,)
    if not shape.tied:
        yield "output.weight", (d, shape.n_vocab)


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for length in shape:
        n *= length
    return n


# Which type a level gives most tensors. Source of this and of `tensor_type`: llama.cpp's llama-quant.cpp.
_BASE = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "MXFP4_MOE": "Q8_0",
    "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0",
    "Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K",
    "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip
LEVELS = tuple(_BASE)


def tensor_type(level: str, name: str, layer: int, shape: Shape) -> str:
    """The ggml type that llama.cpp's quantizer gives a matrix of a dense or mixture model at `level`."""
    base = _BASE[level]
    n = shape.n_layer
    more_bits = layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
    if level in ("F32", "F16", "BF16", "Q8_0"):
        return base
    if name == "output.weight" or (name == "token_embd.weight" and shape.tied):
        return "Q6_K"
    if level == "MXFP4_MOE":
        return "MXFP4" if "_exps." in name else "Q8_0"
    if ".attn_v." in name:
        grouped = shape.n_head // shape.n_head_kv
        match level:
            case "Q2_K":
                return "Q4_K" if grouped >= 4 else "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if layer < 2 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if more_bits:
                return "Q6_K"
            case "Q4_K_S" if layer < 4:
                return "Q5_K"
            case "IQ4_NL" | "IQ4_XS" if grouped >= 4:
                return "Q5_K"
    if ".ffn_down" in name:
        match level:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                return "Q5_K" if layer < n // 16 else "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
            case "Q4_K_M" | "Q5_K_M" if more_bits:
                return "Q6_K"
            case "Q4_K_S" | "IQ4_NL" | "IQ4_XS" if layer < n // 8:
                return "Q5_K"
    if ".attn_output." in name and not shape.n_expert:
        match level:
            case "Q2_K":
                return "Q3_K"
            case "Q3_K_M":
                return "Q4_K"
            case "Q3_K_L":
                return "Q5_K"
    return base


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
}


def _blocks(type_name: str, n_bytes: int, rng: Any) -> Any:
    """`n_bytes` of valid blocks as a uint8 array: a megabyte of random ones, repeated."""
    import numpy as np

    if type_name in ("F32", "F16", "BF16"):
        values = (rng.standard_normal(1 << 18) * 0.02).astype(np.float32)
        tile = values.astype(np.float16) if type_name == "F16" else values
        raw = (tile.view(np.uint32) >> 16).astype(np.uint16) if type_name == "BF16" else tile
        return np.resize(raw.view(np.uint8), n_bytes)
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    _, type_size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    tile = rng.integers(0, 256, ((1 << 20) // type_size, type_size), dtype=np.uint8)
    if type_name == "MXFP4":
        tile[:, 0] = 121  # the block's exponent: 2^(121-127)
    for offset, value in _HALVES.get(type_name, ()):
        tile[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
    return np.resize(tile.reshape(-1), n_bytes)


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

    Raises `UsageError` for a level or a shape that can't be: rows must be whole blocks (256 elements for K-quants).
    """
    import numpy as np
    from gguf import GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

    if level not in _BASE:
        raise UsageError(f"no quantization level '{level}'; there are {', '.join(LEVELS)}")
    plan: list[tuple[str, tuple[int, ...], Any, int]] = []
    for name, dims in tensors(shape):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        matrix = len(dims) > 1 and "ffn_gate_inp" not in name
        kind = GGMLQuantizationType[tensor_type(level, name, layer, shape) if matrix else "F32"]
        block, type_size = GGML_QUANT_SIZES[kind]
        if dims[0] % block:
            raise UsageError(f"{name}: rows of {dims[0]} elements are no whole blocks of {block} ({kind.name})")
        plan.append((name, dims, kind, _elements(dims) // block * type_size))

    scratch = tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".partial", delete=False)  # noqa: SIM115
    scratch.close()
    try:
        writer = GGUFWriter(scratch.name, shape.arch)
        _write_metadata(writer, shape, LlamaFileType[_file_type_name(level)])
        _write_vocabulary(writer, vocab or vocabulary(shape.n_vocab))
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        for name, dims, kind, n_bytes in plan:
            # The writer takes numpy's order of dimensions, and for quantized types rows counted in bytes.
            block, type_size = GGML_QUANT_SIZES[kind]
            row_bytes = dims[0] // block * type_size
            if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
                dtype = np.dtype(np.float32 if kind == GGMLQuantizationType.F32 else np.float16)
                writer.add_tensor_info(name, dims[::-1], dtype, n_bytes)
            else:
                writer.add_tensor_info(name, (*dims[:0:-1], row_bytes), np.dtype(np.uint8), n_bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        rng = np.random.default_rng(seed)
        for name, _, kind, n_bytes in plan:
            if name.endswith("norm.weight"):
                writer.write_tensor_data(np.ones(n_bytes // 4, dtype=np.float32))
            else:
                writer.write_tensor_data(_blocks(kind.name, n_bytes, rng))
        writer.close()
        Path(scratch.name).replace(path)
    except BaseException:
        Path(scratch.name).unlink(missing_ok=True)
        raise


def _file_type_name(level: str) -> str:
    if level == "F32":
        return "ALL_F32"
    return f"MOSTLY_{level}"


def _write_metadata(writer: Any, shape: Shape, file_type: int) -> None:
    writer.add_name("synthetic")
    writer.add_description("random weights of a real shape: for measuring, not for reading")
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.n_embd_head)
    writer.add_value_length(shape.n_embd_head)
    writer.add_rope_dimension_count(shape.n_embd_head)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_feed_forward_length(shape.n_ff)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
        writer.add_expert_feed_forward_length(shape.n_ff)


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
