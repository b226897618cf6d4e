"""Predictions for machines that are not here: the formulas by hand, layers on made-up devices, the fitted errors."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from llmrun.gguf import synth
from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig, Offload
from llmrun.planning.footprint import decode_reads
from llmrun.planning.predict import speed
from llmrun.planning.predict.elsewhere import Elsewhere
from llmrun.planning.predict.machines import Part, parse
from llmrun.planning.predict.prediction import Prediction, Question, Range
from llmrun.planning.predict.speed import Constants, Decode, Load, Mixture, Prefill

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
ROUND = Constants(
    decode={"nvidia": Decode(0.5, 2, 0.001, 1.2), "cpu": Decode(0.5, 0, 0, 2.0)},
    prefill={"nvidia": Prefill(1, 0, 1, 0.5, 1.25), "cpu": Prefill(1, 0, 0, 0.5, 3.0)},
    mixture=Mixture(2, 3, 1.5),
)
"""Half the bandwidth, and a millisecond a layer on GPUs."""


def header(name: str, level: str = "Q4_K_M") -> Header:
    return synth.header_of(synth.SHAPES[name], level)


def asked(machine: str, name: str) -> Prediction:
    return Elsewhere(parse(machine)).predict(header(name), Question(depths=(0, 4096)))


def mid(value: Range | None) -> float:
    assert value is not None and value.low < value.mid < value.high
    return value.mid


# -- the formulas ---


def test_a_token_by_hand() -> None:
    """1 GB at half of 10 GB/s is 200 ms, keys and values of 55 MB at 0.55 of it 10 ms, 1e9 weights unpacked in two
    operations each at 1 TFLOPS 2 ms; ten layers 10 ms."""
    part = Part("x", "gpu", "ada", None, 10e9, 1e12)
    load = Load(1e9, 55e6, 1e9, 0, 10)
    assert speed.decode_s(part, load, ROUND.decode["nvidia"], ROUND.mixture) == pytest.approx(0.222)


def test_kernels_of_experts_and_of_recurrent_layers() -> None:
    """Ten layers of which four choose experts (two plain ones more each) and two are recurrent (three more): 24."""
    part = Part("x", "gpu", "ada", None, 1e30)
    load = Load(0, 0, 0, 0, 10, n_expert_layers=4, n_recurrent_layers=2)
    assert speed.decode_s(part, load, ROUND.decode["nvidia"], ROUND.mixture) == pytest.approx(0.024)


def test_a_prompt_by_hand() -> None:
    """100 tokens of 2e9 operations at 1 TFLOPS are 200 ms, with half the usual watts 400; one batch reads 1 GB at half
    of 10 GB/s in 200 ms and starts ten layers."""
    rates = (ROUND.decode["nvidia"], ROUND.prefill["nvidia"], ROUND.mixture)
    load = Load(0, 0, 1e9, 0, 10, file_bytes=1e9)
    part = Part("x", "gpu", "ada", None, 10e9, 1e12, speed.USUAL_WATTS["ada"])
    assert speed.prefill_s(part, load, 100, 1, *rates) == pytest.approx(0.2 + 0.21)
    weak = Part("x", "gpu", "ada", None, 10e9, 1e12, speed.USUAL_WATTS["ada"] / 2)
    assert speed.prefill_s(weak, load, 100, 1, *rates) == pytest.approx(0.4 + 0.21)
    assert speed.prefill_s(Part("x", "gpu", "ada", None, 10e9), load, 100, 1, *rates) is None


def test_ranges_are_factors() -> None:
    """Of a time of 2 s within 1.25, 10 tokens are 5 t/s, 4 to 6.25."""
    assert Range.around(2.0, 1.25).per(10) == Range(4.0, 5.0, 6.25)


# -- a model on a machine ---


def test_seconds_of_two_devices_add_up() -> None:
    """A model in RAM beside a GPU reads what it reads: at half of 10 GB/s."""
    source = Elsewhere(parse("kind=cpu,bandwidth=10,memory=64"), ROUND)
    found = source.predict(header("llama-8b"), Question(depths=(0, 1000)))
    reads = decode_reads(header("llama-8b"))
    assert mid(found.decode_tps[0]) == pytest.approx(5e9 / reads.weight_bytes, rel=1e-3)
    kv_s = 1000 * 131_072 / 5.5e9
    assert 1 / mid(found.decode_tps[1000]) - 1 / mid(found.decode_tps[0]) == pytest.approx(kv_s, rel=1e-3)
    assert found.fits and found.n_gpu_layers == 0 and found.prefill_tps is None


def test_memory_is_exact() -> None:
    """Weights and 4352 tokens of keys and values; for each of 512 tokens three times 14,336 activations and four times
    4096, and a byte pair a cell; the logits of one."""
    found = asked("kind=cpu,bandwidth=89.6,memory=32", "llama-8b")
    exact = sum(tensor.n_bytes for tensor in header("llama-8b").tensors) + 4352 * 131_072
    computing = 512 * (4 * (3 * 14_336 + 4 * 4096) + 2 * 4352) + 4 * 128_256
    assert found.n_ctx == 4352 and found.memory_bytes == {"RAM": exact + computing}


def test_layers_over_gpu_and_ram() -> None:
    """Each device takes what fits, and the more lies in RAM, the slower."""
    whole, split = asked("RTX 5090", "qwen3-30b-a3b"), asked("RTX 3060 + DDR5-5600 x2 64gb", "qwen3-30b-a3b")
    assert whole.fits and whole.n_gpu_layers == 49 and split.fits
    assert set(split.memory_bytes) == {"RAM", "CUDA0"} and split.memory_bytes["CUDA0"] < 12 * GIB
    assert mid(split.decode_tps[0]) < mid(whole.decode_tps[0])
    by_number = LoadConfig(offload=Offload(n_gpu_layers=10))
    few = Elsewhere(parse("RTX 3060 + DDR5-5600 x2 64gb")).predict(header("llama-8b"), Question(config=by_number))
    assert few.n_gpu_layers == 10 and mid(few.decode_tps[0]) < mid(asked("RTX 3060", "llama-8b").decode_tps[0])


def test_what_a_gpu_alone_can_not_hold() -> None:
    """Where the rest would lie nobody said: no speed, and what to say."""
    found = asked("RTX 3090", "llama-70b")
    assert found.fits is False and 0 < found.n_gpu_layers < 81
    assert found.decode_tps == {0: None, 4096: None} and found.ttft_s(512) is None and "+" in found.note
    experts = asked("RTX 3060", "qwen3-30b-a3b")  # which "auto" would leave in RAM
    assert experts.fits is False and experts.decode_tps[0] is None


def test_two_gpus_and_names() -> None:
    found = asked("2x RTX 3090", "llama-70b")
    assert found.fits and found.n_gpu_layers == 81
    assert set(found.memory_bytes) == {"RAM", "CUDA0", "CUDA1"}
    assert set(asked("M4 Pro", "llama-8b").memory_bytes) == {"RAM", "MTL0"}
    assert set(asked("RX 7900 XT + RTX 4090", "llama-8b").memory_bytes) == {"RAM", "ROCm0", "CUDA0"}


@pytest.mark.parametrize(
    ("machine", "watts"),
    [
        ("2x RTX 3090", 700),
        ("RTX 4090 + i9-14900 64gb", 450),  # the CPU looks up a row
        ("i9-14900 64gb", 65),
        ("kind=gpu,bandwidth=1000,memory=48,watts=300", 300),
        ("M4 Pro", 60),
        ("M4 Pro 24gb", 60),
        ("DDR5-5600 x2 64gb", None),
        ("kind=gpu,bandwidth=1000,memory=4 + DDR5-5600 x2 64gb", None),
    ],
)
def test_watts(machine: str, watts: float | None) -> None:
    """Of the devices that have layers, together; of a chip with CPU and GPU once."""
    assert asked(machine, "llama-8b").watts == watts


def test_larger_than_memory_is_mapped_from_the_disk() -> None:
    """Twice the disk is about twice the speed; at best what does not fit is read, at worst all of it."""
    slow, fast = (asked(f"i9-14900 32gb + disk={rate}", "llama-70b") for rate in (1, 2))
    assert slow.fits is False and "disk" in slow.note
    assert mid(fast.decode_tps[0]) / mid(slow.decode_tps[0]) == pytest.approx(2, rel=0.05)
    each = slow.decode_tps[0]
    assert each is not None and each.low < 1e9 / decode_reads(header("llama-70b")).weight_bytes < each.high
    assert asked("i9-14900 64gb", "llama-70b").fits
    assert asked("M4 Pro 24gb", "llama-70b").fits is False


def test_smaller_than_what_was_measured_is_a_guess() -> None:
    assert "a guess" in asked("RTX 4090", "qwen3-0.6b").note
    assert asked("RTX 4090", "llama-8b").note == ""


def test_memory_that_nobody_told() -> None:
    """Whether it fits is not known; how fast it is where it does, is."""
    found = asked("DDR5-5600 x2", "llama-8b")
    assert found.fits is None and mid(found.decode_tps[0]) > mid(found.decode_tps[4096])


@pytest.mark.parametrize("name", [name for name in synth.SHAPES if name != "micro"])
def test_every_shape_has_a_prediction(name: str) -> None:
    """Dense, mixtures, windows, latent attention, hybrids: on a large GPU, deeper is never faster."""
    found = asked("MI300X", name)
    assert found.fits and mid(found.prefill_tps) > 0
    assert mid(found.decode_tps[0]) >= mid(found.decode_tps[4096])


def test_the_machine_in_the_words_of_a_record() -> None:
    said = Elsewhere(parse("RTX 4090 + DDR5-5600 x2 64gb")).machine()
    assert said["gpus"] == ({"vendor": "NVIDIA", "name": "RTX 4090", "driver": None},)
    assert said["ram_bytes"] == 64 * GIB and said["what_if"] == "RTX 4090 + DDR5-5600 x2 64gb" and said["os"] is None


# -- the fit ---


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_predictions", ROOT / "scripts" / "fit_predictions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_predictions"] = module
    spec.loader.exec_module(module)
    return module


def test_the_constants_are_those_of_the_script(script: ModuleType) -> None:
    """prediction.toml is what the measurements in docs give."""
    whole = script.fit(script.samples_of(ROOT / "docs" / "measured-elsewhere.csv"))
    kept = speed.constants()
    for name, values in whole.decode.items():
        assert kept.decode[name].share == pytest.approx(values["share"], rel=0.01)
        assert kept.decode[name].spread == pytest.approx(whole.decode_spread[name], rel=0.01)
    for name, values in whole.prefill.items():
        assert kept.prefill[name].rate == pytest.approx(values["rate"], rel=0.01)
    assert kept.mixture.experts == pytest.approx(whole.mixture["experts"], rel=0.01)


def test_the_errors_of_docs(script: ModuleType) -> None:
    """Each device left out of the fit: what docs/prediction.md says of it still holds."""
    _, decode, prefill = script.judged(script.samples_of(ROOT / "docs" / "measured-elsewhere.csv"))

    def off(rows: list[object], share: float = 0.5) -> float:
        return float(np.quantile([each.off for each in rows], share))  # type: ignore[attr-defined]

    dense = [each for each in decode if not each.sample.is_mixture and each.sample.part.kind != "cpu"]
    assert off(dense) <= 0.08 and off(dense, 0.9) <= 0.30
    assert 0.8 <= sum(each.holds for each in dense) / len(dense) <= 0.95
    assert off([each for each in decode if each.sample.is_mixture]) <= 0.12
    for vendor, target in (("apple", 0.08), ("nvidia", 0.09), ("amd", 0.111)):
        rows = [each for each in prefill if speed.vendor(each.sample.part) == vendor and not each.sample.is_mixture]
        assert off(rows) <= target, vendor


def test_a_fit_finds_what_made_the_rows(script: ModuleType) -> None:
    """Rows that a formula made, and one that is ten times off: the constants come back."""
    points = [(float(x), 2.0 * x + 5.0) for x in range(1, 30)]
    points[3] = (points[3][0], 10 * points[3][1])

    def residuals(values: dict[str, float]) -> list[float]:
        return [math.log((values["slope"] * x + values["base"]) / y) for x, y in points]

    found = script.fitted(residuals, {"slope": 1.0, "base": 1.0})
    assert found["slope"] == pytest.approx(2, rel=0.05) and found["base"] == pytest.approx(5, rel=0.1)
