"""Seconds of a token and of a prompt on one device, from its data sheet: the formulas, without a model's layout.

A decoded token reads what it multiplies by, once; unpacks what is quantized; and starts the kernels of every layer:

    t = bytes / (share · bandwidth) + KV bytes / (KV_SHARE · bandwidth)
        + unpack · weights / FP32 rate + kernels · layer_s
    kernels = layers + experts · layers with experts + recurrent · recurrent layers

A prompt is limited by products of matrices. Their rate is a part of the FP32 rate that grows with what the matrix units
of the generation do for each FP32 operation, and that cards with less power than their generation's largest, for their
size, do not keep up with. Every micro-batch also reads all weights once, of experts all of them:

    t = operations / (rate · matrix^growth · (watts per TFLOPS / usual)^power · FP32 rate)
        + micro-batches · (bytes of all weights / (share · bandwidth) + kernels · layer_s)

The constants stand in `data/prediction.toml`; `scripts/fit_predictions.py` fits them to measurements of others.
docs/how-speed-is-predicted.md has the terms, what was left out, and how wrong it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmrun import codec
from llmrun.options.toml import read_toml
from llmrun.planning.predict.machines import Part

_DATA = Path(__file__).parents[2] / "data" / "prediction.toml"

_GROUPS = {
    **dict.fromkeys("maxwell pascal gp100 volta turing-gtx turing ampere ga100 ada hopper blackwell".split(), "nvidia"),
    **dict.fromkeys("gcn cdna rdna1 rdna2 rdna3 rdna4".split(), "amd"),
    "xe": "intel-xe",
    "xe2": "intel-xe2",
    **dict.fromkeys("apple apple-m5".split(), "apple"),
    **dict.fromkeys("x86 arm".split(), "cpu"),
}

MATRIX_RATES: Mapping[str, float] = {
    "maxwell": 1, "pascal": 4, "gp100": 2, "volta": 8, "turing-gtx": 1, "turing": 16, "ampere": 8, "ga100": 32,
    "ada": 8, "hopper": 30, "blackwell": 8, "gcn": 1, "rdna1": 1, "rdna2": 4, "rdna3": 2, "rdna4": 8, "cdna": 16,
    "apple-m5": 4,
}  # fmt: skip
"""INT8 operations of the matrix units (of DP4A before there were any; FP16 of Volta's and GP100) for each in FP32, by
the makers' papers on the architectures. RDNA 3 counts its FP32 twice: the ratio is half of RDNA 2's. 1: none."""

USUAL_WATTS: Mapping[str, float] = {
    "maxwell": 37, "pascal": 22, "gp100": 27, "volta": 19, "turing-gtx": 20, "turing": 18.6, "ampere": 9.8,
    "ga100": 20.5, "ada": 5.4, "hopper": 10.5, "blackwell": 5.5, "gcn": 32, "rdna1": 23, "rdna2": 13, "rdna3": 5.8,
    "rdna4": 6.2, "cdna": 4.6,
}  # fmt: skip
"""Watts for each FP32 TFLOPS of a generation's largest card, from `data/devices.csv`."""

KV_SHARE = 0.55
"""Of the bandwidth, where keys and values are read: what a DGX Spark and an M2 Ultra reach at a depth of 32,768."""


LEAST_WEIGHTS = 1.1e9
"""Of the smallest model that the constants are fitted to."""


def group(part: Part) -> str:
    """Whose constants count: "nvidia", "amd", "intel-xe", "intel-xe2", "apple", "cpu"."""
    return _GROUPS[part.family]


def vendor(part: Part) -> str:
    """Who makes it: "nvidia", "amd", "intel", "apple", "cpu"."""
    return group(part).partition("-")[0]


@dataclass(frozen=True)
class Decode:
    """Constants of decoding.

    Attributes:
        share: of the bandwidth, where weights are read.
        unpack: FP32 operations for each quantized weight.
        layer_s: seconds of each layer, whatever it reads.
        spread: what a figure is divided and multiplied by for its range.
    """

    share: float
    unpack: float
    layer_s: float
    spread: float


@dataclass(frozen=True)
class Prefill:
    """Constants of prefill.

    Attributes:
        rate: operations of a product for each in FP32.
        growth: exponent of `MATRIX_RATES`.
        power: exponent of the watts for each TFLOPS, over `USUAL_WATTS`.
        experts: of the rate, where a layer's product is that of experts.
        spread: what a figure is divided and multiplied by for its range.
    """

    rate: float
    growth: float
    power: float
    experts: float
    spread: float


@dataclass(frozen=True)
class Mixture:
    """Constants of layers that start more kernels, the same for all devices.

    Attributes:
        experts: of a layer that chooses experts, in plain layers.
        recurrent: of one with a recurrent state.
        spread: what a figure is divided and multiplied by for its range.
    """

    experts: float
    recurrent: float
    spread: float


@dataclass(frozen=True)
class Constants:
    """Of decoding and of prefill by group of devices, and of mixtures."""

    decode: Mapping[str, Decode]
    prefill: Mapping[str, Prefill]
    mixture: Mixture


@cache
def constants() -> Constants:
    """Those that were fitted."""
    return codec.convert(read_toml(_DATA, "list of constants")[0], Constants)


@dataclass(frozen=True)
class Load:
    """What one token costs one device.

    Attributes:
        weight_bytes: weights that are read, of experts the chosen ones.
        kv_bytes: keys and values that are read.
        n_weights: that are multiplied; two operations each.
        attention_flops: operations of attention.
        n_layers, n_expert_layers, n_recurrent_layers: that lie there.
        quantized: share of the weights that is.
        file_bytes: of all weights that lie there.
    """

    weight_bytes: float
    kv_bytes: float
    n_weights: float
    attention_flops: float
    n_layers: int
    n_expert_layers: int = 0
    n_recurrent_layers: int = 0
    quantized: float = 1.0
    file_bytes: float = 0.0


def _kernels(load: Load, mixture: Mixture) -> float:
    """In plain layers."""
    return load.n_layers + mixture.experts * load.n_expert_layers + mixture.recurrent * load.n_recurrent_layers


def decode_s(part: Part, load: Load, each: Decode, mixture: Mixture) -> float:
    """Seconds of a token."""
    seconds = load.weight_bytes / (each.share * part.bytes_per_s) + load.kv_bytes / (KV_SHARE * part.bytes_per_s)
    if part.flops is not None:
        seconds += each.unpack * load.quantized * load.n_weights / part.flops
    return seconds + each.layer_s * _kernels(load, mixture)


_ATTENTION = 0.5
"""Of the rate of other products, that of attention: twice as much memory for each operation."""


def prefill_s(
    part: Part, load: Load, n_tokens: int, n_batches: int, decode: Decode, each: Prefill, mixture: Mixture
) -> float | None:
    """Seconds of a prompt, of which `load` is the mean token; None where nobody told the device's FP32 rate."""
    if part.flops is None:
        return None
    rate: float = each.rate * MATRIX_RATES.get(part.family, 1) ** each.growth * part.flops
    if part.watts is not None and part.family in USUAL_WATTS:
        rate *= (part.watts / (part.flops / 1e12) / USUAL_WATTS[part.family]) ** each.power
    share = load.n_expert_layers / load.n_layers if load.n_layers else 0.0
    matrices = 2 * load.n_weights * (1 - share + share / each.experts)
    batch_s = load.file_bytes / (decode.share * part.bytes_per_s) + decode.layer_s * _kernels(load, mixture)
    return n_tokens * (matrices + load.attention_flops / _ATTENTION) / rate + n_batches * batch_s
