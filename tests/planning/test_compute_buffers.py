"""What llama.cpp would compute in, estimated, beside what it lays out when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmrun.engine.engine import plan_load
from llmrun.gguf import synth
from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig, Offload
from llmrun.planning.fit import DoesNotFit
from llmrun.planning.footprint import CPU, Need
from llmrun.planning.layout import Layout
from llmrun.planning.predict.compute_buffers import ComputeEstimate


def laid_out(header: Header, config: LoadConfig) -> Need:
    """By llama.cpp, without a weight."""
    try:
        return plan_load(Path("model"), header, config).footprint.by_device[CPU]
    except DoesNotFit as error:
        return error.footprint.by_device[CPU]


@pytest.mark.parametrize("name", [name for name in synth.SHAPES if name != "micro"])
def test_beside_llama_cpp(name: str) -> None:
    """Within 3 % of all that the model takes, with few tokens and with many."""
    header = synth.header_of(synth.SHAPES[name])
    for n_ctx, n_ubatch, kind in ((2048, 512, "f16"), (4096, 128, "q8_0")):
        config = LoadConfig(n_ctx=n_ctx, n_ubatch=n_ubatch, type_k=kind, type_v=kind, repack="off")  # type: ignore[arg-type]
        taken = laid_out(header, config)
        assert taken.compute is not None
        guessed = ComputeEstimate(header)(config, Layout(0), n_ctx)[CPU]
        assert abs(guessed - taken.compute) < 0.03 * taken.total


@pytest.mark.parametrize("n_devices", [1, 2])
def test_on_devices(rpc_worker: Callable[..., str], n_devices: int) -> None:
    """All layers there: RAM passes on what it looks up; several devices have four copies of what they are passed."""
    header = synth.header_of(synth.SHAPES["llama-1.2b"])
    config = LoadConfig(n_ctx=2048, rpc=tuple(rpc_worker() for _ in range(n_devices)), offload=Offload("all"))
    plan = plan_load(Path("model"), header, config)
    guessed = ComputeEstimate(header)(config, plan.layout, 2048)
    assert len(guessed) == n_devices + 1
    for device, need in plan.footprint.by_device.items():
        assert guessed[device] == pytest.approx(need.compute, rel=0.01), device
