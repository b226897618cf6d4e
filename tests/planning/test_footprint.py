"""What a model takes, from its header alone: hand-counted here, against llama.cpp itself in test_offload.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrun.gguf import synth
from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.stub import stub, stub_file
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU, Placement, footprint, memory_by_device, place_layers, repackable_types
from llmrun.planning.kv_layout import LayerMemory, layer_memories

MIB = 1 << 20


def header_of(folder: Path, shape: synth.Shape, level: str = "F16") -> Header:
    path = folder / "m.gguf"
    synth.write(path, shape, level)
    return open_header(path)


def with_keys(header: Header, **hparams: Any) -> Header:
    """More hyperparameters; "__" stands for a dot."""
    added = {f"{header.architecture}.{key.replace('__', '.')}": value for key, value in hparams.items()}
    return replace(header, metadata={**header.metadata, **added})


# -- which device ---


@pytest.mark.parametrize(
    ("n", "shares", "expected"),
    [
        (0, (1.0,), "CCCCC"),
        (2, (1.0,), "CCCAA"),  # the output counts as a layer, the last
        (5, (1.0,), "AAAAA"),
        (99, (1.0,), "AAAAA"),
        (4, (1.0, 1.0), "CAABB"),
        (4, (3.0, 1.0), "CAAAB"),
        (3, (0.0, 1.0), "CCBBB"),
        (5, (1.0, 1.0), "AAABB"),  # 2/5 is below one half, 3/5 is not
    ],
)
def test_layers_are_spread_as_llama_cpp_does(n: int, shares: tuple[float, ...], expected: str) -> None:
    """The last n of the layers and the output, each device a contiguous part."""
    names = {"C": CPU, "A": "A", "B": "B"}
    assert place_layers(4, n, ("A", "B")[: len(shares)], shares) == tuple(names[letter] for letter in expected)


def test_no_device_is_ram() -> None:
    assert place_layers(3, 99, (), ()) == (CPU,) * 4


# -- weights ---

LAYER = (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512) * 2 + 2 * 256 * 4
EMBEDDING = 256 * 512 * 2
OUTPUT = EMBEDDING + 256 * 4  # and its norm


def test_weights_by_device(tmp_path: Path) -> None:
    """The embedding stays in RAM, a layer lies on its device, the norm of the output with the output."""
    header = header_of(tmp_path, synth.Shape(4, 256, 512, 4, 2, 512))
    found = footprint(header, Placement((CPU, "A", "A", "A", "B")), 256).by_device
    assert {name: need.weights for name, need in found.items()} == {
        CPU: EMBEDDING + LAYER,
        "A": 3 * LAYER,
        "B": OUTPUT,
    }
    assert sum(need.weights for need in found.values()) == header.weight_bytes


def test_a_tied_output_is_copied(tmp_path: Path) -> None:
    """The same matrix is looked up in RAM and multiplied on the device: it lies in both."""
    header = header_of(tmp_path, synth.Shape(2, 256, 512, 4, 2, 512, tied=True))
    found = footprint(header, Placement((CPU, CPU, "A")), 256).by_device
    assert found["A"].weights == OUTPUT
    assert found[CPU].weights == header.weight_bytes - 256 * 4
    assert footprint(header, Placement((CPU,) * 3), 256).by_device[CPU].weights == header.weight_bytes


def test_overrides_come_first(tmp_path: Path) -> None:
    """The first pattern that is found in a tensor's name decides; the memory stays with the layer."""
    header = header_of(tmp_path, synth.Shape(2, 256, 512, 4, 2, 512))
    placement = Placement(("A",) * 3, overrides=(("blk.0.ffn_up", "B"), ("ffn", CPU)))
    found = footprint(header, placement, 256).by_device
    ffn = 256 * 512 * 2
    norms = 2 * 256 * 4  # ffn_norm matches as well
    assert found["B"].weights == ffn
    assert found[CPU].weights == EMBEDDING + 5 * ffn + norms
    assert found[CPU].kv == 0 and found["A"].kv == 2 * 256 * 512


def test_repacked_weights_are_counted_apart(tmp_path: Path) -> None:
    """Matrices of a type that this CPU rearranges leave the mapped file; the embedding is looked up and stays."""
    header = header_of(tmp_path, synth.Shape(2, 256, 512, 4, 2, 512, tied=True), "Q4_0")
    plain = footprint(header, Placement((CPU,) * 3), 256)
    found = footprint(header, Placement((CPU,) * 3, repacked=frozenset({"Q4_0"})), 256)
    matrices = 2 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512) * 18 // 32
    assert plain.repacked_bytes == 0 and found.repacked_bytes == matrices
    assert found.by_device[CPU].weights == plain.by_device[CPU].weights  # the output is Q6_K, which is not rearranged
    assert footprint(header, Placement((CPU,) * 3, repacked=frozenset({"Q6_K"})), 256).by_device[CPU].weights > (
        plain.by_device[CPU].weights
    )


@pytest.mark.parametrize(
    ("system_info", "types"),
    [
        ("CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 1 | REPACK = 1 | ", {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q2_K"}),
        ("CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | ", {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
        ("CPU : NEON = 1 | DOTPROD = 1 | ", {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"}),
        ("CPU : SSE3 = 1 | ", set()),
    ],
)
def test_repackable_types(system_info: str, types: set[str]) -> None:
    assert repackable_types(system_info) == types


# -- memory ---


def test_kv_follows_its_layer(tmp_path: Path) -> None:
    """Two heads of 64 and 64 at 2 bytes: 512 a token and layer; cells come in steps of 256."""
    header = header_of(tmp_path, synth.Shape(4, 256, 512, 4, 2, 512))
    layers = (CPU, "A", "A", "B", "B")
    assert memory_by_device(header, Placement(layers), 257) == {CPU: 512 * 512, "A": 2 * 512 * 512, "B": 512 * 512}
    assert memory_by_device(header, Placement(layers, kv=False), 256) == {CPU: 4 * 256 * 512}
    quantized = memory_by_device(header, Placement(layers), 256, LoadConfig(type_k="q8_0", type_v="q4_0"))
    assert quantized is not None and quantized["B"] == 256 * 128 * (34 + 18) // 32


def test_windows_have_the_cells_they_need(tmp_path: Path) -> None:
    """Gemma 3: five layers of six have a window of 512, and room for it and one micro-batch."""
    header = header_of(tmp_path, synth.small(synth.SHAPES["gemma3-1b"]))
    memories = layer_memories(header)
    assert memories is not None
    assert [memory.window for memory in memories] == [512] * 5 + [None, 512]
    per_token = (memories[0].n_k + memories[0].n_v) * 2
    found = memory_by_device(header, Placement((CPU,) * 8), 8192)
    assert found == {CPU: per_token * (6 * 1024 + 8192)}
    short = memory_by_device(header, Placement((CPU,) * 8), 256)
    assert short == {CPU: per_token * 7 * 256}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # heads × (key + value); latent attention keeps its compressed vector and the rotated part, once
        ("deepseek-v2-lite", LayerMemory(n_k=512 + 64)),
        ("mamba2-2.7b", LayerMemory(n_state=3 * (512 + 2 * 128) + 128 * 512)),
    ],
)
def test_memory_of_other_kinds(tmp_path: Path, name: str, expected: LayerMemory) -> None:
    memories = layer_memories(header_of(tmp_path, synth.small(synth.SHAPES[name])))
    assert memories is not None and memories[-1] == expected


def test_hybrids_have_both(tmp_path: Path) -> None:
    """A layer of Granite 4 H has either keys and values or a state."""
    memories = layer_memories(header_of(tmp_path, synth.small(synth.SHAPES["granite-4-h-tiny"])))
    assert memories is not None
    kinds = {(memory.n_k > 0, memory.n_state > 0) for memory in memories}
    assert kinds == {(True, False), (False, True)}


def test_unknown_memory_is_unknown(tmp_path: Path) -> None:
    """An architecture with a cache of its own: None, not a guess; the weights are known all the same."""
    header = header_of(tmp_path, synth.Shape(2, 256, 512, 4, 2, 512))
    other = replace(header, metadata={**header.metadata, "general.architecture": "deepseek4"})
    renamed = {key.replace("llama.", "deepseek4.", 1): value for key, value in other.metadata.items()}
    other = replace(other, metadata=renamed)
    assert layer_memories(other) is None
    need = footprint(other, Placement((CPU,) * 3), 256).by_device[CPU]
    assert need.kv is None and need.weights == header.weight_bytes


def test_layers_that_predict_ahead_are_left_out(tmp_path: Path) -> None:
    """nextn_predict_layers are in the file; llama.cpp does not load them."""
    header = header_of(tmp_path, synth.Shape(3, 256, 512, 4, 2, 512))
    ahead = with_keys(header, nextn_predict_layers=1)
    found = footprint(ahead, Placement((CPU,) * 4), 256).by_device[CPU]
    assert found.weights == header.weight_bytes - LAYER and found.kv == 2 * 256 * 512


# -- the stub ---


def test_stub_is_a_model_without_weights(tmp_path: Path) -> None:
    """Every tensor is there with its type and shape, and no vocabulary; the file is as long as it says."""
    header = header_of(tmp_path, synth.small(synth.SHAPES["gpt-oss-20b"]), "MXFP4_MOE")
    begin, length = stub(header)
    assert len(begin) < 100_000
    with stub_file(header) as path:
        again = open_header(path)
        assert Path(path).stat().st_size == length
    assert [(t.name, t.shape, t.type) for t in again.tensors] == [(t.name, t.shape, t.type) for t in header.tensors]
    assert again.n_vocab == header.n_vocab and "tokenizer.ggml.tokens" not in again.metadata
    assert again.hparam("attention.sliding_window") == header.hparam("attention.sliding_window")
