"""Layers for speed: which placements are looked at, by memory that the test makes up; and measured, on real workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from llmrun.errors import UsageError
from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.shapes import SHAPES, Shape, small
from llmrun.gguf.synth import header_of, write
from llmrun.options.load import LoadConfig, Offload
from llmrun.planning.layout import DeviceBudget, Layout
from llmrun.planning.load_plan import Expected, Planner
from llmrun.planning.predict.prediction import Question
from llmrun.tuning import curve

Worker = Callable[..., str]
MIB = 1 << 20
DENSE = header_of(Shape(8, 256, 512, 4, 2, 512), "F16")
"""Eight layers of 1.26 MiB with 256 tokens of keys and values, an output of 0.25 MiB."""
MIXTURE = header_of(Shape(6, 256, 512, 4, 2, 512, arch="qwen3moe", n_expert=8, n_expert_used=2), "F16")
"""Six layers whose experts are 6 MiB each, and the rest of them 0.4 MiB."""
OFFLOAD = Offload(fit_target=0)


def nothing(_config: LoadConfig, _layout: Layout, _n_ctx: int) -> Mapping[str, int]:
    return {}


def looked_at(header: Header, free: list[int], ram: int = 1 << 30, offload: Offload = OFFLOAD) -> list[curve.Candidate]:
    budgets = tuple(DeviceBudget(name, n_bytes) for name, n_bytes in zip("ABCDE", free, strict=False))
    planner = Planner(Path("m.gguf"), header, budgets, ram, nothing, Expected(256))
    return [*curve.candidates(planner, LoadConfig(offload=offload))]


def test_one_device() -> None:
    """Every number of layers that fits."""
    assert [each.split for each in looked_at(DENSE, [MIB << 10])] == [(n,) for n in range(10)]
    few = looked_at(DENSE, [5 * MIB])
    assert [each.n_gpu_layers for each in few] == [0, 1, 2, 3, 4]
    assert few[-1].plan.footprint.by_device["A"].total <= 5 * MIB


def test_what_auto_would_leave_free_is_left() -> None:
    found = looked_at(DENSE, [6 * MIB], offload=Offload(fit_target=MIB))
    assert [each.split for each in found] == [each.split for each in looked_at(DENSE, [5 * MIB])]


def test_one_device_is_filled_before_the_next() -> None:
    """In both orders; the same placement is looked at once."""
    found = looked_at(DENSE, [5 * MIB, 1 << 30])
    by_number = {n: sorted(each.split for each in found if each.n_gpu_layers == n) for n in range(10)}
    assert by_number[0] == [(0, 0)] and by_number[1] == [(0, 1), (1, 0)] and by_number[4] == [(0, 4), (4, 0)]
    assert by_number[9] == [(0, 9), (3, 6)]  # three layers on A, which has room for them
    for each in found:
        layers = each.plan.placement.layers
        assert (layers.count("A"), layers.count("B")) == each.split
    (both,) = [each for each in found if each.split == (3, 6)]
    assert both.between == ["A"] and both.output == "B"


def test_more_layers_than_ram_takes() -> None:
    """With too few on the device RAM is too small: they are left out."""
    found = looked_at(DENSE, [1 << 30], ram=6 * MIB)
    assert found[0].n_gpu_layers > 0 and found[-1].n_gpu_layers == 9
    assert all(each.plan.footprint.by_device["CPU"].total <= 6 * MIB for each in found)


def test_a_split_that_is_given() -> None:
    found = looked_at(DENSE, [1 << 30, 1 << 30], offload=replace(OFFLOAD, tensor_split=(2.0, 1.0)))
    assert [each.split for each in found][-1] == (6, 3) and len(found) == 10


def test_layers_and_experts() -> None:
    """Of a mixture on a device with room for three layers' experts: whole layers, layers without experts, and all
    layers with the experts of some in RAM."""
    found = looked_at(MIXTURE, [22 * MIB])
    made = {(each.n_gpu_layers, each.plan.layout.n_cpu_moe) for each in found}
    assert made == {*((n, 0) for n in range(5)), *((n, 6) for n in range(2, 8)), (7, 3), (7, 4), (7, 5)}
    everything = next(each for each in found if each.plan.layout.n_cpu_moe == 4 and each.n_gpu_layers == 7)
    assert [home.experts_in_ram for home in everything.homes] == [True] * 4 + [False] * 3


# -- measured ---


def test_two_workers(tmp_path: Path, rpc_worker: Worker) -> None:
    """Every number of layers on the workers' devices, of which the first has room for two; four runs at most."""
    write(tmp_path / "m.gguf", Shape(4, 1024, 2048, 8, 2, 512), "Q8_0")
    header = open_header(tmp_path / "m.gguf")
    config = LoadConfig(n_threads=1, n_ubatch=32, rpc=(rpc_worker(memory=0.02), rpc_worker()), offload=OFFLOAD)
    told: list[tuple[str, int, int]] = []
    found = curve.curve(
        header, Question(16, 8, (8,), config), tmp_path / "m.gguf", on_part=lambda *part: told.append(part)
    )
    assert found.devices == ("RPC0", "RPC1") and [point.n_gpu_layers for point in found.points] == [*range(6)]
    assert all(sum(point.split) == point.n_gpu_layers and point.n_cpu_moe is None for point in found.points)
    assert all(point.split[0] <= 3 for point in found.points)
    measured = [point for point in found.points if point.measured_step_s]
    assert 2 <= len(measured) <= 4 and found.points[0] in measured and found.points[-1] in measured
    assert all(point.step_s.mid == pytest.approx(point.measured_step_s) for point in measured)
    assert all(0 < point.step_s.low < point.step_s.high and point.prefill_s.mid > 0 for point in found.points)
    assert found.n_depth == 8 and {what for what, _, _ in told} == {"slices", "runs"}


def test_without_the_model(tmp_path: Path, rpc_worker: Worker) -> None:
    """Of a mixture, by its header alone: nothing is run, and experts in RAM count."""
    header = header_of(replace(small(SHAPES["qwen3-30b-a3b"]), n_layer=3, n_vocab=512), "Q8_0")
    config = LoadConfig(n_threads=1, n_ubatch=32, rpc=(rpc_worker(),), offload=OFFLOAD)
    found = curve.curve(header, Question(16, 8, (0,), config), None)
    places = [(point.n_gpu_layers, point.n_cpu_moe) for point in found.points]
    assert places == [(0, 0), (1, 0), (2, 3), (2, 0), (3, 3), (3, 0), (4, 3), (4, 2), (4, 1), (4, 0)]
    assert not any(point.measured_step_s for point in found.points)


def test_no_device() -> None:
    with pytest.raises(UsageError, match="no device"):
        curve.curve(DENSE, Question(config=LoadConfig(offload=Offload(devices=()))), None)
