"""What slices say of a model: by hand-computed numbers, and by llama.cpp, in RAM and on the device of a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmrun.gguf.reader import open_header
from llmrun.gguf.shapes import SHAPES, small
from llmrun.gguf.synth import write
from llmrun.options.load import LoadConfig
from llmrun.tuning import probe
from llmrun.tuning.slice_runner import SliceRunner, slice_bytes, slices_of

Worker = Callable[..., str]
MIXED = ["llama-1.2b", "gemma3-1b", "mixtral-8x7b", "lfm2-1.2b"]


@pytest.mark.parametrize("name", MIXED)
def test_from_two_slices_to_all_layers(tmp_path: Path, name: str) -> None:
    """Ten layers in RAM at 1 ns a byte, the others and the output on a device at 0.1; the output takes 5 ms there."""
    write(tmp_path / "m.gguf", small(SHAPES[name]), "Q4_K_M")
    header = open_header(tmp_path / "m.gguf")
    n = header.n_layer or 0
    n_ram = n // 2
    slices, layers = slices_of(header), ("CPU",) * n_ram + ("GPU",) * (n - n_ram + 1)
    outside = slice_bytes(header, ())
    sizes = [slice_bytes(header, each) - outside for each in (slices.small, slices.large)]
    spread = probe.Spread(header, slices, layers)
    total = sum(
        spread.part_s(device, *(0.005 + size * byte_s for size in sizes))
        for device, byte_s in (("CPU", 1e-9), ("GPU", 1e-10))
    )
    in_ram = slice_bytes(header, range(n_ram)) - outside
    rest = slice_bytes(header, range(n_ram, n)) - outside
    assert total == pytest.approx(0.005 + in_ram * 1e-9 + rest * 1e-10)


def test_the_larger_slice_is_never_the_faster_one(tmp_path: Path) -> None:
    """A disturbed measurement makes no layers that cost nothing."""
    write(tmp_path / "m.gguf", small(SHAPES["llama-1.2b"]), "Q8_0")
    header = open_header(tmp_path / "m.gguf")
    slices = slices_of(header)
    spread = probe.Spread(header, slices, ("CPU",) * ((header.n_layer or 0) + 1))
    in_mean = 0.01 / slice_bytes(header, slices.large)
    layers = header.weight_bytes - slice_bytes(header, ())
    assert spread.part_s("CPU", 0.02, 0.01) >= in_mean * layers


@pytest.mark.parametrize("most_together", [0, 1 << 30])
@pytest.mark.parametrize("name", MIXED)
def test_measured_without_the_model(tmp_path: Path, name: str, most_together: int) -> None:
    """A header is enough: its file is gone. By slices that are loaded in turn as well."""
    write(tmp_path / "m.gguf", small(SHAPES[name]), "Q4_0")
    header = open_header(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").unlink()
    layers = ["CPU"] * ((header.n_layer or 0) + 1)
    done: list[tuple[int, int]] = []
    found = probe.probe(
        header,
        LoadConfig(n_threads=1),
        layers,
        n_prompt=20,
        depths=(0, 30),
        repack="off",
        rounds=2,
        most_together=most_together,
        on_round=lambda *told: done.append(told),
    )
    assert done == [(1, 2), (2, 2)] and [*found.step_s] == [0, 30]
    assert len(found.prefill_s) == 2 and all(each > 0 for each in (*found.prefill_s, *found.step_s[30]))


def test_on_a_device(tmp_path: Path, rpc_worker: Worker) -> None:
    """Layers in RAM and on a worker: both are run where they would lie."""
    write(tmp_path / "m.gguf", small(SHAPES["llama-1.2b"]), "Q8_0")
    header = open_header(tmp_path / "m.gguf")
    config = LoadConfig(n_threads=1, rpc=(rpc_worker(),))
    with SliceRunner(header, config) as runner:
        (device,) = (each.name for each in runner.found.devices if each.backend.startswith("RPC"))
    layers = ["CPU"] + [device] * (header.n_layer or 0)
    found = probe.probe(header, config, layers, n_prompt=8, depths=(0,), repack="off", rounds=1)
    assert found.prefill_s[0] > 0 < found.step_s[0][0]
