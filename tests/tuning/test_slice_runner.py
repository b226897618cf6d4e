"""Slices that are run: what stands for a model, and that llama.cpp takes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmrun.engine.protocol import Trial
from llmrun.errors import EngineCrashed
from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.shapes import SHAPES, small
from llmrun.gguf.synth import header_of, write
from llmrun.options.load import LoadConfig
from llmrun.tuning.slice_runner import SliceRunner, Slices, slice_bytes, slices_of


@pytest.mark.parametrize(
    "name", ["llama-1.2b", "gemma3-1b", "mixtral-8x7b", "deepseek-v2-lite", "lfm2-1.2b", "mamba2-2.7b"]
)
def test_llama_cpp_runs_them(tmp_path: Path, name: str) -> None:
    """Of dense models, windows, mixtures, latent attention and recurrent layers: both slices, one after the other."""
    path = tmp_path / "m.gguf"
    write(path, small(SHAPES[name]), "Q4_0")
    header = open_header(path)
    slices = slices_of(header)
    with SliceRunner(header, LoadConfig()) as runner:
        for layers in (slices.small, slices.large):
            runner.load(layers, repack="both", n_threads=1, n_ctx=80)
            for layout in ("off", "on", "both"):
                done = runner.trial(Trial(70, 3, layout=layout))
                assert done.prefill_s and len(done.step_s) == 3


def test_a_model_that_is_known_by_its_number_of_layers() -> None:
    """DeepSeek V2 Lite has 27 and no rank of its queries; a slice has fewer, and a rank with as many weights."""
    full = SHAPES["deepseek-v2-lite"]
    assert full.mla is not None
    narrow = replace(small(full), n_layer=full.n_layer, mla=replace(full.mla, q_lora_rank=0))
    header = header_of(narrow, "Q4_0")
    slices = slices_of(header)
    assert slice_bytes(header, slices.large) - slice_bytes(header, slices.small) > 0
    with SliceRunner(header, LoadConfig()) as runner:
        for layers in (slices.small, slices.large):
            runner.load(layers, repack="off", n_threads=1, n_ctx=80)
            assert runner.trial(Trial(16, 2)).prefill_s


def test_layers_that_are_alike(micro: Path) -> None:
    """One layer, and more of them from all over the model: together they stand for all."""
    header = open_header(micro)
    slices = slices_of(header)
    assert len(slices.small) == 1 and set(slices.small) <= set(slices.large)
    assert slice_bytes(header, slices.small) < slice_bytes(header, slices.large) <= header.weight_bytes


def test_layers_that_alternate(tmp_path: Path) -> None:
    """A window in all but every sixth layer: whole periods from the beginning, where llama.cpp counts them from."""
    path = tmp_path / "m.gguf"
    shape = SHAPES["gemma3-1b"]
    write(path, small(shape), "Q4_0")
    header = open_header(path)
    slices = slices_of(header)
    assert slices.small == tuple(range(len(slices.small))) and slices.large == tuple(range(len(slices.large)))
    assert whole_bytes(header, slices) == pytest.approx(header.weight_bytes)


def test_layers_of_several_sizes(tmp_path: Path) -> None:
    """Of a mix, where every third layer or so has better types: what is multiplied is like the mean of all."""
    path = tmp_path / "m.gguf"
    write(path, replace(small(SHAPES["llama-1.2b"]), n_layer=16), "Q4_K_M")
    header = open_header(path)
    sizes = [slice_bytes(header, [i]) - slice_bytes(header, []) for i in range(16)]
    slices = slices_of(header, more=4)
    between = [sizes[i] for i in slices.large if i not in slices.small]
    assert len(set(sizes)) > 1 and len(between) == 4
    assert sum(between) / 4 == pytest.approx(sum(sizes) / 16, rel=0.05)
    assert whole_bytes(header, slices) == pytest.approx(header.weight_bytes)


def whole_bytes(header: Header, slices: Slices) -> float:
    return slices.whole(slice_bytes(header, slices.small), slice_bytes(header, slices.large))


def test_from_slices_to_the_whole() -> None:
    slices = Slices((0,), (0, 1, 2), n_repeats=4.5)  # ten layers
    assert slices.whole(3.0, 5.0) == 12.0  # two seconds without layers, one for each
    assert slices.whole(3.0, 2.9) == 3.0  # noise makes no model faster than a part of it


def test_what_llama_cpp_refuses(micro: Path) -> None:
    """A sentence, not a crash."""
    refused = pytest.raises(EngineCrashed, match="measuring a part of the model failed")
    with SliceRunner(open_header(micro), LoadConfig()) as runner, refused:
        runner.load([], repack="off", n_threads=1, n_ctx=32)
