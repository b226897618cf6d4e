"""A few layers of a model as a model of their own: the same shapes and types, weights of noise.

What a model costs is a property of its shapes and types, and its layers repeat themselves. So a slice of two or three
layers, run in llama.cpp's own graph with the real settings, tells what all of them cost, of a model that is still on
the hub or that is larger than this machine's memory as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from llmrun import fs
from llmrun.gguf.reader import Header, NumberArray, TensorInfo, Value, layer_of
from llmrun.gguf.stub import data_offsets, stub
from llmrun.gguf.synth import constant_of, noise
from llmrun.gguf.types import GGML_TYPES

_TILE = 1 << 20
# Hyperparameters that count layers, beside `block_count`: none of them may be more than there are.
_COUNTS_OF_LAYERS = ("leading_dense_block_count", "attention.shared_kv_layers")
_NOT_BY_LAYER = "rope.dimension_sections"  # a list of four, in a model of four layers as well
# Layers behind the last one that predict further tokens (MTP): a slice has none.
_EXTRA_LAYERS = "nextn_predict_layers"
# Of the embedding a row is looked up for each token: what its type costs is nothing, but a slice has all of it.
_LOOKED_UP_AS = next(each for each in GGML_TYPES.values() if each.name == "Q2_K")

_F32 = next(each for each in GGML_TYPES.values() if each.name == "F32")
# llama.cpp knows the small DeepSeek V2, which does not compress its queries, by its number of layers alone: in a slice
# it wants a rank of them. A multiple of the longest blocks.
_RANKED, _RANK, _RANK_STEP = "deepseek2", "attention.q_lora_rank", 256


def layer_contents(header: Header) -> list[tuple[tuple[str, tuple[int, ...], str], ...]]:
    """For each layer what it is made of: names, shapes and types of its tensors."""
    found: list[list[tuple[str, tuple[int, ...], str]]] = [[] for _ in range(header.n_layer or 0)]
    for tensor in header.tensors:
        layer = layer_of(tensor)
        if layer is not None and layer < len(found):
            found[layer].append((tensor.name.split(".", 2)[2], tensor.shape, tensor.type.name))
    return [tuple(sorted(each)) for each in found]


def slice_of(header: Header, layers: Sequence[int]) -> Header:
    """The header of a model that has these layers of another one, in this order, and all that is not in a layer; an
    embedding that is not the output as well in the smallest type.

    What a layer is to llama.cpp may follow from its number (windows, attention among recurrent layers): the layers of
    a model with such a pattern are to be its first ones.
    """
    n_layer, arch = header.n_layer or 0, header.architecture
    place = {layer: i for i, layer in enumerate(layers)}
    is_tied = header.tensor("output.weight") is None
    tensors = []
    for tensor in header.tensors:
        layer = layer_of(tensor)
        if layer is None:
            tensors.append(_narrow(tensor) if tensor.name == "token_embd.weight" and not is_tied else tensor)
        elif layer in place:
            tensors.append(replace(tensor, name=tensor.name.replace(f"blk.{layer}.", f"blk.{place[layer]}.", 1)))
    metadata: dict[str, Value] = {}
    for key, value in header.metadata.items():
        name = key.removeprefix(f"{arch}.")
        if name in (key, _NOT_BY_LAYER):
            metadata[key] = value
        elif name == "block_count":
            metadata[key] = len(layers)
        elif name == _EXTRA_LAYERS:
            metadata[key] = 0
        elif name in _COUNTS_OF_LAYERS and isinstance(value, int):
            metadata[key] = min(value, len(layers))
        elif isinstance(value, NumberArray) and len(value) >= n_layer > 0 and len(value) - n_layer <= 4:
            metadata[key] = value.picked(layers)
        else:
            metadata[key] = value
    types, rank = header.types, f"{arch}.{_RANK}"
    if arch == _RANKED and rank not in metadata:
        metadata[rank], tensors = _with_rank(tensors)
        types = {**types, rank: "u32"}
    return replace(header, metadata=metadata, types=types, tensors=tuple(tensors))


def _with_rank(tensors: Sequence[TensorInfo]) -> tuple[int, list[TensorInfo]]:
    """The queries' matrices as two each, as large together, and the rank between them."""
    rank, made = _RANK_STEP, list[TensorInfo]()
    for tensor in tensors:
        if not tensor.name.endswith(".attn_q.weight"):
            made.append(tensor)
            continue
        (width, n_queries), stem = tensor.shape, tensor.name.removesuffix(".weight")
        rank = max(1, round(width * n_queries / (width + n_queries) / _RANK_STEP)) * _RANK_STEP
        made += [
            replace(tensor, name=f"{stem}_a.weight", shape=(width, rank)),
            replace(tensor, name=f"{stem}_a_norm.weight", shape=(rank,), type=_F32),
            replace(tensor, name=f"{stem}_b.weight", shape=(rank, n_queries)),
        ]
    return rank, made


def _narrow(embedding: TensorInfo) -> TensorInfo:
    """In fewer bytes, where its rows allow it."""
    kind = _LOOKED_UP_AS
    fits = embedding.shape[0] % kind.block_size == 0 and kind.bits_per_weight < embedding.type.bits_per_weight
    return replace(embedding, type=kind) if fits else embedding


@contextmanager
def noise_file(header: Header) -> Iterator[str]:
    """A model with this header and weights of noise, without a vocabulary, at a path that other processes of this user
    can open while the block runs. In memory where the system can do that. Raises `OSError`."""
    begin, length = stub(header)
    with fs.shared_file("llmrun-slice.gguf") as (descriptor, path):
        _write(descriptor, header, begin, length)
        yield path


def _write(descriptor: int, header: Header, begin: bytes, length: int) -> None:
    import numpy as np

    os.ftruncate(descriptor, length)
    os.pwrite(descriptor, begin, 0)
    rng = np.random.default_rng(0)
    tiles: dict[str, bytes] = {}
    for tensor, offset in zip(header.tensors, data_offsets(header), strict=False):
        constant = constant_of(tensor.name)
        if constant is not None and tensor.type.name == "F32":
            tile = np.full(_TILE // 4, constant, dtype=np.float32).tobytes()
        else:
            tile = tiles.get(tensor.type.name) or tiles.setdefault(tensor.type.name, noise(tensor.type, rng).tobytes())
        _repeat(descriptor, memoryview(tile), len(begin) + offset, tensor.n_bytes)


def _repeat(descriptor: int, tile: memoryview, offset: int, n_bytes: int) -> None:
    """The tile again and again, so many bytes of it."""
    for done in range(0, n_bytes, len(tile)):
        part = tile[: n_bytes - done]
        while part:
            n = os.pwrite(descriptor, part, offset)
            part, offset = part[n:], offset + n
