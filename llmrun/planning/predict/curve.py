"""Tokens per second for every number of layers on devices: what a placement takes is a sum over where its layers lie.

    t(placement) = sum over layers of bytes x t(a byte of a layer where it lies) + t(what is outside of the layers)
                 + sum over devices that lack the output of t(handing over to them)

A sequence goes through its layers one after the other, on one device after the other: seconds add up. What is outside
of the layers is computed where the output lies; handing over to that device is a part of it. A few runs of the model
correct the sum, in between by the ratio that lies between theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from llmrun.gguf.reader import Header, layer_of
from llmrun.planning.footprint import CPU, Placement, is_experts
from llmrun.planning.predict.prediction import Range


@dataclass(frozen=True)
class Home:
    """Where a layer is computed; `experts_in_ram`: all of it but its experts."""

    device: str
    experts_in_ram: bool = False


def homes(header: Header, placement: Placement, n_cpu_moe: int) -> tuple[Home, ...]:
    """Of each layer and, last, of the output; the experts of the first `n_cpu_moe` layers stay in RAM."""
    routed = {layer_of(tensor) for tensor in header.tensors if is_experts(tensor)}
    return tuple(
        Home(device, device != CPU and layer < n_cpu_moe and layer in routed)
        for layer, device in enumerate(placement.layers)
    )


@dataclass(frozen=True)
class Costs:
    """Of one token, or of one prompt.

    Attributes:
        byte_s: by home, seconds of a byte of a layer's weights.
        outside_s: by device, of what is outside of the layers, the output being there.
        handed_s: by device, of handing over to it, the output being elsewhere.
    """

    byte_s: Mapping[Home, float]
    outside_s: Mapping[str, float]
    handed_s: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, placed: Sequence[Home], layer_bytes: Sequence[int]) -> float:
        """Of all layers, with the output behind them."""
        *layers, output = placed
        between = {home.device for home in layers} - {CPU, output.device}
        in_layers = sum(self.byte_s[home] * n_bytes for home, n_bytes in zip(layers, layer_bytes, strict=True))
        return in_layers + self.outside_s[output.device] + sum(self.handed_s[device] for device in between)


@dataclass(frozen=True)
class Point:
    """One number of layers on devices, spread over them as is fastest.

    Attributes:
        n_gpu_layers: layers on devices, the output being one more.
        n_cpu_moe: the experts of so many of the first layers stay in RAM; None: the model has none.
        split: of these layers, so many on each device.
        device_bytes: of the weights that lie on devices.
        prefill_s, step_s: seconds of the prompt and of one token.
        measured_prefill_s, measured_step_s: by a run of the model; None: it was not run so.
    """

    n_gpu_layers: int
    n_cpu_moe: int | None
    split: tuple[int, ...]
    device_bytes: int
    prefill_s: Range
    step_s: Range
    measured_prefill_s: float | None = None
    measured_step_s: float | None = None


@dataclass(frozen=True)
class Curve:
    """Attributes:
    devices: in the order of `Point.split`.
    n_prompt: tokens of the prompt that `prefill_s` is of.
    n_depth: tokens before the one that `step_s` is of.
    points: those that fit, by rising `n_gpu_layers`; at least one.
    """

    devices: tuple[str, ...]
    n_prompt: int
    n_depth: int
    points: tuple[Point, ...]

    @property
    def best(self) -> Point:
        """The one that decodes fastest."""
        return min(self.points, key=lambda point: point.step_s.mid)

    @property
    def alone(self) -> Point | None:
        """The CPU alone; None: RAM does not take all of the model."""
        return next((point for point in self.points if not point.n_gpu_layers), None)

    @property
    def crosses_cpu_at(self) -> int | None:
        """The fewest layers that decode faster than the CPU alone; None: none do, or it can't be had alone."""
        alone = self.alone
        if alone is None:
            return None
        faster = (point.n_gpu_layers for point in self.points if point.step_s.mid < alone.step_s.mid)
        return min(faster, default=None)

    def to_confirm(self) -> list[int]:
        """At most four of the points, by their numbers: the best, that with the fewest bytes on devices and that with
        the most, and one in the middle of what lies widest apart."""
        by_bytes = sorted(range(len(self.points)), key=lambda i: self.points[i].device_bytes)
        chosen = sorted({0, by_bytes.index(self.points.index(self.best)), len(by_bytes) - 1})
        before, behind = max(pairwise(chosen), key=lambda pair: pair[1] - pair[0], default=(0, 0))
        return [by_bytes[i] for i in sorted({*chosen, (before + behind) // 2})]

    def corrected(self, measured: Mapping[int, tuple[float, float]]) -> Curve:
        """By runs of some points: seconds of the prompt and of one token, by the number of the point."""
        points = list(self.points)
        for i, (prefill_s, step_s) in measured.items():
            points[i] = replace(points[i], measured_prefill_s=prefill_s, measured_step_s=step_s)
        ran = sorted((points[i] for i in measured), key=lambda point: point.device_bytes)
        if not ran:
            return self
        prefill = [(each.device_bytes, (each.measured_prefill_s or 0.0) / each.prefill_s.mid) for each in ran]
        step = [(each.device_bytes, (each.measured_step_s or 0.0) / each.step_s.mid) for each in ran]
        return replace(
            self,
            points=tuple(
                replace(
                    point,
                    prefill_s=point.prefill_s.times(_between(prefill, point.device_bytes)),
                    step_s=point.step_s.times(_between(step, point.device_bytes)),
                )
                for point in points
            ),
        )


def _between(known: Sequence[tuple[int, float]], at: int) -> float:
    """A ratio by those of (x, ratio), x rising: its logarithm is linear between two; beyond the last it stays."""
    for (x0, y0), (x1, y1) in pairwise(known):
        if x0 <= at < x1:
            share = (at - x0) / (x1 - x0)
            return math.exp((1 - share) * math.log(y0) + share * math.log(y1))
    return known[0][1] if at < known[0][0] else known[-1][1]
