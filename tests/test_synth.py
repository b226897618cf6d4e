"""Synthetic models are real ones to llama.cpp and to our own strict reader."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmrun import synth
from llmrun.config import SamplingConfig
from llmrun.engine.client import Engine
from llmrun.errors import UsageError
from llmrun.gguf import open_header
from llmrun.gguf_rules import check_runnable
from llmrun.planner import should_repack

MICRO = synth.SHAPES["micro"]


@pytest.mark.parametrize("level", synth.LEVELS)
def test_every_level_runs(tmp_path: Path, level: str) -> None:
    """Each quantization level is written, passes the gate, loads and gives finite logits: it can be sampled from."""
    path = tmp_path / "m.gguf"
    shape = replace(MICRO, n_expert=4, n_expert_used=2, arch="qwen3moe") if level == "MXFP4_MOE" else MICRO
    synth.write(path, shape, level)
    header = open_header(path)
    check_runnable(header)
    assert header.n_params == shape.n_params
    assert header.quantization_label in (level, "MXFP4")
    with Engine(path, header) as engine:
        generation = engine.generate("a b", SamplingConfig(temperature=1, max_tokens=8, seed=1))
        assert len("".join(generation)) > 0
        assert len(set(generation.token_ids)) > 1  # NaN logits would give one token for ever


@pytest.mark.parametrize(
    "shape",
    [
        replace(MICRO, arch="qwen2"),
        replace(MICRO, arch="qwen3", head_dim=128),
        replace(MICRO, tied=True),
        replace(MICRO, n_expert=4, n_expert_used=2),
        replace(MICRO, n_head_kv=4),
    ],
    ids=["qwen2", "qwen3", "tied", "mixture", "no-gqa"],
)
def test_every_family_runs(tmp_path: Path, shape: synth.Shape) -> None:
    path = tmp_path / "m.gguf"
    synth.write(path, shape, "Q8_0")
    header = open_header(path)
    check_runnable(header)
    assert header.n_params == shape.n_params
    with Engine(path, header) as engine:
        assert "".join(engine.generate("a", SamplingConfig(temperature=0, max_tokens=3)))


@pytest.mark.parametrize("level", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "Q8_0"])
@pytest.mark.parametrize("grouped", [1, 4])
def test_types_are_the_quantizers(tmp_path: Path, level: str, grouped: int) -> None:
    """Tensor for tensor the types that llama.cpp's own quantizer gives a model of 16 layers."""
    shape = synth.Shape(16, 256, 256, 4, 4 // grouped, 512, head_dim=256)
    source, quantized = tmp_path / "f16.gguf", tmp_path / "q.gguf"
    synth.write(source, shape, "F16")
    code = (
        "import sys, ctypes; from llmrun.engine.native import llama\n"
        "p = llama.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3]); p.nthread = 1\n"
        "sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))"
    )
    from gguf.constants import LlamaFileType

    file_type = str(int(LlamaFileType[f"MOSTLY_{level}"]))
    subprocess.run([sys.executable, "-c", code, source, quantized, file_type], check=True, capture_output=True)
    theirs = {tensor.name: tensor.type.name for tensor in open_header(quantized).tensors}
    ours = tmp_path / "ours.gguf"
    synth.write(ours, shape, level)
    assert {tensor.name: tensor.type.name for tensor in open_header(ours).tensors} == theirs


def test_a_level_has_its_size(tmp_path: Path) -> None:
    """The 1.2 B shape counts as many parameters as the model it is taken from, and Q4_K_M 4.9 to 5.2 bits for each."""
    shape = synth.SHAPES["llama-1.2b"]
    assert shape.n_params == 1_235_814_400
    n_bits = 0.0
    bits = {"Q4_K": 4.5, "Q6_K": 6.5625, "F32": 32.0}
    for name, dims in synth.tensors(shape):
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        kind = synth.tensor_type("Q4_K_M", name, layer, shape) if len(dims) > 1 else "F32"
        n_bits += bits[kind] * math.prod(dims)
    assert 4.9 < n_bits / shape.n_params < 5.25


def test_rows_must_be_whole_blocks(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rows of 320 elements are no whole blocks of 256"):
        synth.write(tmp_path / "m.gguf", replace(MICRO, n_embd=320), "Q4_K_M")
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written(tmp_path: Path) -> None:
    """An unknown level or a folder that is gone leaves no file behind."""
    with pytest.raises(UsageError, match="no quantization level 'Q9'"):
        synth.write(tmp_path / "m.gguf", MICRO, "Q9")
    assert list(tmp_path.iterdir()) == []


def test_repack_is_chosen_by_type(tmp_path: Path) -> None:
    """Q4_0 and IQ4_NL gain from repacking, K-quants lose."""
    for level, expected in (("Q4_0", True), ("IQ4_NL", True), ("Q4_K_M", False), ("Q8_0", False), ("F16", False)):
        synth.write(tmp_path / "m.gguf", MICRO, level)
        assert should_repack(open_header(tmp_path / "m.gguf")) is expected, level
    shutil.rmtree(tmp_path)
