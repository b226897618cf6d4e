"""Synthetic models are real ones to llama.cpp and to our own strict reader."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmrun.engine.engine import ChildEngine
from llmrun.errors import UsageError
from llmrun.gguf import shapes, synth
from llmrun.gguf.reader import NumberArray, open_header
from llmrun.gguf.rules import check_runnable, open_runnable
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.load_plan import wants_repack

MICRO = synth.SHAPES["micro"]
MIB = 1 << 20


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
    with ChildEngine(path, header) as engine:
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
    with ChildEngine(path, header) as engine:
        assert "".join(engine.generate("a", SamplingConfig(temperature=0, max_tokens=3)))


def kv_elements(shape: synth.Shape) -> int:
    """Elements of keys and values that a token takes in all layers."""
    a_layer = shape.mla.kv_lora_rank + shape.mla.n_rot if shape.mla else 2 * shape.n_head_kv * shape.n_embd_head
    return a_layer * sum(shape.attends(i) for i in range(shape.n_layer))


@pytest.mark.parametrize("name", [name for name in synth.SHAPES if name != "micro"])
def test_every_shape_runs(tmp_path: Path, name: str) -> None:
    """Each published shape, made small: it passes the gate, says what it is, runs, and takes the memory it should."""
    path, shape = tmp_path / "m.gguf", synth.small(synth.SHAPES[name])
    synth.write(path, shape, "MXFP4_MOE" if shape.arch == "gpt-oss" else "Q8_0")
    assert path.stat().st_size < 16 * MIB
    header = open_runnable(path)
    assert header.n_params == shape.n_params
    for key, value in shapes.hparams(shape).items():
        found = header.hparam(key)
        if isinstance(found, NumberArray):
            assert tuple(found) == value, key
        else:
            assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    with ChildEngine(path, header, LoadConfig(n_ctx=512)) as engine:
        generation = engine.generate("some text", SamplingConfig(temperature=0, max_tokens=4))
        assert "".join(generation)
    held = {kind: sum(b.n_bytes for b in generation.buffers if b.kind == kind) for kind in ("KV", "RS")}
    n_recurrent = sum(not shape.attends(i) for i in range(shape.n_layer))
    n_state = shape.recurrent.n_state if shape.recurrent else 0
    in_log = 0.01 * MIB  # its precision
    assert held["KV"] == pytest.approx(512 * 2 * kv_elements(shape), abs=in_log)
    assert held["RS"] == pytest.approx(4 * n_state * n_recurrent, abs=in_log)


@pytest.mark.parametrize("name", list(synth.SHAPES))
def test_small_keeps_the_structure(name: str) -> None:
    """All kinds of layers of a shape are in the small one, and the tensors of each kind."""
    shape, small = synth.SHAPES[name], synth.small(synth.SHAPES[name])
    for kind in ("attends", "slides", "routes"):
        large_has = {getattr(shape, kind)(i) for i in range(shape.n_layer)}
        assert {getattr(small, kind)(i) for i in range(small.n_layer)} == large_has
    parts = {name.split(".", 2)[-1] for name, _ in synth.tensors(small)}
    missing = {name.split(".", 2)[-1] for name, _ in synth.tensors(shape)} - parts
    assert missing <= {"attn_q.weight"}  # deepseek2: in two parts instead
    assert small.n_params < 12e6


@pytest.mark.parametrize(
    ("name", "n_params"),
    [
        ("gemma3-1b", 999_885_952),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("gpt-oss-20b", 20_914_757_184),
        ("deepseek-v2-lite", 15_706_484_224),
        ("phi3-mini", 3_821_079_552),
    ],
)
def test_a_shape_has_its_parameters(name: str, n_params: int) -> None:
    """As many as the model that the shape is taken from says it has."""
    assert synth.SHAPES[name].n_params == n_params


_DRY_RUN = """
import ctypes, json, re, sys
from llmrun.engine.child.native import llama
said = []
callback = llama.llama_log_callback(lambda level, text, user: said.append(text.decode()))
llama.llama_log_set(callback, None)
for file_type in sys.argv[2:]:
    said.clear()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.dry_run = int(file_type), 1, True
    assert llama.llama_model_quantize(sys.argv[1].encode(), b"", ctypes.byref(params)) == 0
    line = r"(?m)^\\[ *\\d+/ *\\d+\\] +(\\S+) .*type = +(\\w+), size = [^(\\n]*(?:\\((\\w+)\\))?"
    lines = re.findall(line, "".join(said))
    print(json.dumps({name: (new or old).upper() for name, old, new in lines}))
"""


@pytest.mark.parametrize(
    "shape",
    [
        synth.Shape(16, 256, 256, 4, 4, 512, head_dim=256),
        synth.Shape(16, 256, 256, 4, 1, 512, head_dim=256),
        synth.small(synth.SHAPES["mixtral-8x7b"], 16),
        synth.small(synth.SHAPES["gemma3-1b"], 16, 288),
        synth.small(synth.SHAPES["phi3-mini"], 16),
        synth.small(synth.SHAPES["gpt-oss-20b"], 16, 288),
        synth.small(synth.SHAPES["granite-4-h-tiny"], 16),
        synth.small(synth.SHAPES["lfm2-1.2b"], 16),
        synth.small(synth.SHAPES["mamba2-2.7b"]),
        synth.small(synth.SHAPES["qwen3.5-0.8b"], 16),
        synth.small(synth.SHAPES["qwen3-next-80b"], 9),
        synth.small(synth.SHAPES["deepseek-v2-lite"], 16),
        synth.Shape(80, 256, 64, 2, 1, 512, head_dim=128),
    ],
    ids=lambda shape: f"{shape.arch}-{shape.n_layer}-{shape.n_head}/{shape.n_head_kv}-{shape.n_embd}",
)
def test_types_are_the_quantizers(tmp_path: Path, shape: synth.Shape) -> None:
    """Tensor for tensor the types that llama.cpp's own quantizer gives, at each level."""
    from gguf.constants import LlamaFileType

    source = tmp_path / "f16.gguf"
    synth.write(source, shape, "F16")
    levels = [level for level in synth.LEVELS if level != "F32"]
    file_types = [str(int(LlamaFileType[f"MOSTLY_{level}"])) for level in levels]
    done = subprocess.run(
        [sys.executable, "-c", _DRY_RUN, source, *file_types], check=True, capture_output=True, text=True
    )
    for level, line in zip(levels, done.stdout.splitlines(), strict=True):
        theirs = json.loads(line)
        if level == "BF16":  # a copy of what is F16 already
            continue
        assert {name: kind for name, _, kind in synth.tensor_types(shape, level)} == theirs, level


def test_a_level_has_its_size(tmp_path: Path) -> None:
    """The 1.2 B shape counts as many parameters as the model it is taken from, and Q4_K_M 4.9 to 5.2 bits for each."""
    shape = synth.SHAPES["llama-1.2b"]
    assert shape.n_params == 1_235_814_400
    bits = {"Q4_K": 4.5, "Q6_K": 6.5625, "F32": 32.0}
    n_bits = sum(bits[kind] * math.prod(dims) for _, dims, kind in synth.tensor_types(shape, "Q4_K_M"))
    assert 4.9 < n_bits / shape.n_params < 5.25


def test_rows_of_any_length(tmp_path: Path) -> None:
    """A row that is no multiple of 256 elements takes a type of smaller blocks; of 32, F16."""
    for n_embd, expected in ((320, {"Q5_0", "Q8_0"}), (330, {"F16"})):
        shape = replace(MICRO, n_embd=n_embd, n_head=5, n_head_kv=5, head_dim=64)
        path = tmp_path / "m.gguf"
        synth.write(path, shape, "Q4_K_M")
        header = open_runnable(path)
        assert {tensor.type.name for tensor in header.tensors if tensor.shape[0] == n_embd} - {"F32"} == expected
        with ChildEngine(path, header) as engine:
            assert "".join(engine.generate("a", SamplingConfig(temperature=0, max_tokens=2)))


def test_nothing_half_written(tmp_path: Path) -> None:
    """An unknown level or a folder that is gone leaves no file behind."""
    with pytest.raises(UsageError, match="'Q9' is not a quantization level"):
        synth.write(tmp_path / "m.gguf", MICRO, "Q9")
    assert list(tmp_path.iterdir()) == []


def test_repack_is_chosen_by_type(tmp_path: Path) -> None:
    """Q4_0 and IQ4_NL gain from repacking, K-quants lose."""
    for level, expected in (("Q4_0", True), ("IQ4_NL", True), ("Q4_K_M", False), ("Q8_0", False), ("F16", False)):
        synth.write(tmp_path / "m.gguf", MICRO, level)
        assert wants_repack(open_header(tmp_path / "m.gguf")) is expected, level
    shutil.rmtree(tmp_path)
