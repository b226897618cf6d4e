"""A slice of a model: what its header says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmrun.gguf.reader import layer_of, open_header
from llmrun.gguf.shapes import SHAPES, small
from llmrun.gguf.slices import noise_file, slice_of
from llmrun.gguf.synth import header_of


def test_layers_are_numbered_anew(micro: Path) -> None:
    header = open_header(micro)
    part = slice_of(header, [1])
    assert part.n_layer == 1 and {layer_of(each) for each in part.tensors} == {None, 0}
    originals = {each.name.replace("blk.1.", "blk.0."): each.shape for each in header.tensors if ".0." not in each.name}
    assert {each.name: each.shape for each in part.tensors} == originals


def test_file_of_noise(micro: Path) -> None:
    """It reads as a model, as long as its weights, and norms are ones: what they multiply stays finite."""
    header = slice_of(open_header(micro), [0])
    with noise_file(header) as path:
        found, data = open_header(path), Path(path).read_bytes()
    assert [each.name for each in found.tensors] == [each.name for each in header.tensors]
    assert len(data) - found.data_offset >= header.weight_bytes
    norm = found.tensor("output_norm.weight")
    assert norm is not None
    begin = found.data_offset + norm.offset
    assert data[begin : begin + norm.n_bytes] == b"\0\0\x80\x3f" * norm.shape[0]


def test_what_is_only_looked_up_is_small() -> None:
    """The embedding takes few bits, unless it is the output too; all else has its type."""
    header = header_of(replace(small(SHAPES["llama-8b"]), n_vocab=1024), "Q8_0")
    part = slice_of(header, [0])
    assert {each.name for each in part.tensors if each.type.name == "Q2_K"} == {"token_embd.weight"}
    assert header.tensor("output.weight") and part.weight_bytes < header.weight_bytes
    tied = header_of(small(SHAPES["llama-1.2b"]), "Q8_0")
    assert all(each.type.name in ("Q8_0", "F32") for each in slice_of(tied, [0]).tensors)


def test_lists_that_are_not_by_layer() -> None:
    """Four sections of rotation in a model of four layers stay four."""
    header = header_of(replace(SHAPES["qwen3.5-0.8b"], n_layer=4), "Q8_0")
    sections = header.metadata["qwen35.rope.dimension_sections"]
    assert slice_of(header, [0, 1]).metadata["qwen35.rope.dimension_sections"] == sections
