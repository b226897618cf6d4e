"""What a model does on this machine, measured without it: slices of it are run, and what all layers take follows.

    t(all) = t(outside of the layers) + sum over devices of bytes of the layers there x t(a byte of a layer there)

Two slices of different size on each device give both terms. So a model can be measured that is still on the hub, or
larger than this machine's memory. Slices take turns: what drifts hits both.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmrun import codec
from llmrun.engine.protocol import Trial, TrialResult
from llmrun.gguf.reader import Header, layer_of
from llmrun.machine import hardware
from llmrun.options.load import LoadConfig, Repack
from llmrun.planning.layout import Layout
from llmrun.tuning.slice_runner import SliceRunner, Slices, laid_on, slice_bytes, slices_within

MOST_SLICE = 3 << 29
"""Bytes of the larger of two slices, where the model allows it."""
_MOST_TOGETHER = 3 << 30
"""Bytes of both, where all that lies beside the weights finds room in 4 GB as well."""
_STEPS = 16


@dataclass(frozen=True)
class Probed:
    """Attributes:
    prefill_s: seconds of the prompt, of the whole model, in each round.
    step_s: by depth, seconds of one token behind so many, in each round.
    """

    prefill_s: tuple[float, ...]
    step_s: dict[int, tuple[float, ...]]


def probe(
    header: Header,
    config: LoadConfig,
    layers: Sequence[str],
    *,
    n_prompt: int,
    depths: Sequence[int],
    repack: Repack,
    rounds: int = 3,
    most_together: int = _MOST_TOGETHER,
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> Probed:
    """`layers`: where each layer and, last, the output would lie (`Placement.layers`). Raises `EngineCrashed`,
    `OSError`.

    `most_together`: bytes of two slices; larger ones are loaded in turn. `on_round` is told of what is done, of how
    much.
    """
    spread = Spread(header, slices_within(header, MOST_SLICE), tuple(layers))
    slices = spread.slices
    n_ctx = max(n_prompt, max(depths, default=0) + _STEPS) + _STEPS
    # What lies before a token is computed with all threads: it is not what is measured.
    behind = Trial(0, _STEPS, n_ctx=n_ctx, n_threads_batch=hardware.default_threads())
    trials = [Trial(n_prompt, 0, n_ctx=n_ctx), *(codec.replace(behind, n_depth=each) for each in depths)]
    found: list[list[float]] = [[] for _ in trials]
    together = sum(slice_bytes(header, each) for each in (slices.small, slices.large))
    with Runners(header, config, repack, n_ctx, in_turn=together > most_together) as runners:
        for i in range(rounds):
            seconds = [0.0] * len(trials)
            for device in spread.devices:
                small, large = (Part(own, laid_on(device, len(own))) for own in (slices.small, slices.large))
                pairs = runners.pairs(small, large, trials, first=i % 2)
                seconds = [s + spread.part_s(device, *pair) for s, pair in zip(seconds, pairs, strict=True)]
            for times, each in zip(found, seconds, strict=True):
                times.append(each)
            on_round(i + 1, rounds)
    return Probed(tuple(found[0]), dict(zip(depths, map(tuple, found[1:]), strict=True)))


@dataclass(frozen=True)
class Spread:
    """A model's layers over devices, and the slices that stand for them.

    Attributes:
        layers: the device of each layer and, last, of the output.
    """

    header: Header
    slices: Slices
    layers: tuple[str, ...]

    @cached_property
    def shares(self) -> Counter[str]:
        """Bytes of the layers' weights on each device."""
        shares: Counter[str] = Counter()
        for tensor in self.header.tensors:
            layer = layer_of(tensor)
            if layer is not None and layer < len(self.layers) - 1:
                shares[self.layers[layer]] += tensor.n_bytes
        return shares

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.layers))

    def part_s(self, device: str, small_s: float, large_s: float) -> float:
        """Seconds that a device takes of the whole model, from those of both slices on it."""
        per_byte, outside_s = apart(self.header, self.slices, small_s, large_s)
        return (outside_s if device == self.layers[-1] else 0.0) + per_byte * self.shares[device]


def apart(header: Header, slices: Slices, small_s: float, large_s: float) -> tuple[float, float]:
    """Seconds of a byte of a layer, and of what is outside of the layers, from those of both slices."""
    outside = slice_bytes(header, ())
    small, large = (slice_bytes(header, own) - outside for own in (slices.small, slices.large))
    if large_s <= small_s:  # of two processes one had the slower memory: then what a byte takes in the mean
        per_byte = large_s / (outside + large)
    else:
        per_byte = (large_s - small_s) / (large - small) if large > small else 0.0
    return per_byte, max(0.0, small_s - per_byte * small)


@dataclass(frozen=True)
class Part:
    """A slice: its layers, and where they lie."""

    layers: tuple[int, ...]
    layout: Layout


class Runners:
    """Children that hold a slice each, loaded when it is needed. A context manager.

    Of workers' devices (RPC) one child has all in turn: a worker serves one client at a time.
    """

    def __init__(
        self,
        header: Header,
        config: LoadConfig,
        repack: Repack,
        n_ctx: int,
        *,
        in_turn: bool = False,
        of_steps: Callable[[Sequence[float]], float] = statistics.median,
    ) -> None:
        """`in_turn`: one child for all slices here too. `of_steps`: what counts of the seconds of several steps."""
        self._repack, self._n_ctx, self._of_steps = repack, n_ctx, of_steps
        self._n_threads = config.n_threads or hardware.default_threads()
        self._runners = [SliceRunner(header, config) for _ in range(1 if config.rpc or in_turn else 2)]
        self._holds: dict[SliceRunner, Part] = {}

    def __enter__(self) -> Runners:
        return self

    def __exit__(self, *_: object) -> None:
        for runner in self._runners:
            runner.close()

    def pairs(self, small: Part, large: Part, trials: Sequence[Trial], *, first: int) -> list[tuple[float, float]]:
        """Seconds of each trial with both slices; `first`: 1 begins with the large one."""
        parts, order = (small, large), (first, 1 - first)
        found: list[list[float]] = [[], []]
        if len(self._runners) == 1:
            for which in order:
                found[which] = self.seconds(parts[which], trials)
        else:
            for trial in trials:
                for which in order:
                    found[which] += self.seconds(parts[which], [trial], runner=which)
        return [*zip(*found, strict=True)]

    def seconds(self, part: Part, trials: Sequence[Trial], *, runner: int = 0) -> list[float]:
        """Of each trial with one slice."""
        child, n_ctx = self._runners[runner], self._n_ctx
        if self._holds.get(child) != part:
            child.load(part.layers, repack=self._repack, n_threads=self._n_threads, n_ctx=n_ctx, layout=part.layout)
            child.trial(Trial(min(n_ctx, 64), 0, n_ctx=n_ctx))  # pages and caches
            self._holds[child] = part
        return [seconds_of(child.trial(trial), trial, self._of_steps) for trial in trials]


def seconds_of(done: TrialResult, trial: Trial, of_steps: Callable[[Sequence[float]], float]) -> float:
    """Of the prompt, or of one step."""
    return done.prefill_s or 0.0 if trial.n_prompt else of_steps(done.step_s)
