"""A slice of a model: what its header says."""

from __future__ import annotations

from pathlib import Path

from llmrun.gguf.reader import layer_of, open_header
from llmrun.gguf.slices import noise_file, slice_of


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
