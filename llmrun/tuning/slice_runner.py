"""Slices of a model, loaded and measured in a child of their own: what all of it would cost, without loading it.

A slice has some of the model's layers, with its real shapes, types and settings, and weights of noise
(`gguf/slices.py`). What one more layer takes is the difference of two slices; what lies outside of the layers (the
output matrix above all) is the rest:

    t(all) = t(small) + (n - n_small) * (t(large) - t(small)) / (n_large - n_small)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from llmrun.engine import devices
from llmrun.engine.channel import Channel
from llmrun.engine.devices import Found
from llmrun.engine.limits import Limits
from llmrun.engine.loader import settings_of
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import Failed, Load, Loaded, OpTimes, Progress, TimeAttention, Trial, TrialResult
from llmrun.errors import EngineCrashed
from llmrun.gguf.reader import Header, layer_of
from llmrun.gguf.slices import layer_contents, noise_file, slice_of
from llmrun.options.load import LoadConfig, Repack
from llmrun.planning.footprint import CPU
from llmrun.planning.kv_layout import layer_memories
from llmrun.planning.layout import Layout
from llmrun.planning.placement import experts_of
from llmrun.text import printable

M = TypeVar("M")

_IN_RAM = Layout(0)


@dataclass(frozen=True)
class Slices:
    """Two slices of a model, the larger one with some more of the layers that repeat themselves.

    Attributes:
        small, large: numbers of the layers that they have.
        n_repeats: how often what `large` has more is in the whole model more than in `small`, by bytes of weights:
            layers of one shape may differ in their types.
    """

    small: tuple[int, ...]
    large: tuple[int, ...]
    n_repeats: float

    def whole(self, small_s: float, large_s: float) -> float:
        """Seconds of all layers, from those of both slices."""
        return max(small_s, small_s + self.n_repeats * (large_s - small_s))


def slices_of(header: Header, *, more: int = 2) -> Slices:
    """The two smallest slices that stand for the model: `more` layers, or whole periods of them, apart.

    Layers of one kind that differ in nothing but their types are taken so that those of both slices, and of what lies
    between them, have the mean size of all; where kinds alternate (windows, attention among recurrent layers, mixtures
    behind dense layers), what a layer is follows from its place: then the slices are the model's first layers.
    """
    kinds = _kinds(header)
    n = len(kinds)
    if not n:
        raise EngineCrashed("the model has no layers that a part could be made of")
    sizes = layer_bytes(header)[:n]
    if len(set(kinds)) <= 1:
        picked = _typical(sizes, 1 + min(more, max(1, n - 1)))
        small, large = picked[:1], tuple(sorted(picked))
    else:
        lead, period = _repetition(kinds)
        small, large = tuple(range(lead + period)), tuple(range(min(n, lead + 2 * period)))
    between = sum(sizes[i] for i in large) - sum(sizes[i] for i in small)
    rest = sum(sizes) - sum(sizes[i] for i in small)
    return Slices(small, large, rest / between if between else 0.0)


def slices_within(header: Header, most_bytes: int) -> Slices:
    """As many layers apart as read about as much as the output does: it stands in both, and what it takes must not
    drown what is to be found. Two to six, of at most so many bytes where that is possible."""
    outside = slice_bytes(header, ())
    per_layer = max(1, sum(layer_bytes(header)) // (header.n_layer or 1))
    fitting = max(1, (most_bytes - outside) // per_layer - 1)
    return slices_of(header, more=min(max(2, outside // per_layer), 6, fitting))


def layer_bytes(header: Header) -> list[int]:
    """Of the weights of each layer."""
    sizes = [0] * (header.n_layer or 0)
    for tensor in header.tensors:
        layer = layer_of(tensor)
        if layer is not None and layer < len(sizes):
            sizes[layer] += tensor.n_bytes
    return sizes


def _typical(sizes: Sequence[int], n: int) -> tuple[int, ...]:
    """So many layers, each chosen to bring the mean of those behind the first nearest to the mean of all; the first
    is nearest to it by itself."""
    mean, left = sum(sizes) / len(sizes), list(range(len(sizes)))
    picked: list[int] = []
    total = 0
    for i in range(min(n, len(sizes))):
        wanted = max(i, 1) * mean - total
        best = min(left, key=lambda layer: abs(sizes[layer] - wanted))
        left.remove(best)
        picked.append(best)
        total = total + sizes[best] if i else 0
    return tuple(picked)


def _kinds(header: Header) -> list[int]:
    """What each layer is to llama.cpp, types left aside, as a number. Without those that predict further tokens."""
    memories = layer_memories(header)
    extra = header.hparam("nextn_predict_layers")
    contents = layer_contents(header)
    known: dict[object, int] = {}
    return [
        known.setdefault((tuple((name, shape) for name, shape, _ in made), memories and memories[i]), len(known))
        for i, made in enumerate(contents[: len(contents) - (extra if isinstance(extra, int) else 0)])
    ]


def _repetition(kinds: Sequence[int]) -> tuple[int, int]:
    """How many layers come before those that repeat themselves, and how many are repeated."""
    n = len(kinds)
    ways = [
        (lead + period, lead, period)
        for lead in range(n)
        for period in range(1, n - lead + 1)
        if all(kinds[i] == kinds[i + period] for i in range(lead, n - period))
    ]
    _, lead, period = min(ways)
    return lead, period


def slice_bytes(header: Header, layers: Sequence[int]) -> int:
    """Of the weights of a slice."""
    return slice_of(header, layers).weight_bytes


def laid_on(device: str, n_layers: int, *, experts_in_ram: bool = False) -> Layout:
    """All of a slice on one device; of a mixture without the experts, if so asked."""
    if device == CPU:
        return _IN_RAM
    overrides = tuple((experts_of(layer), CPU) for layer in range(n_layers)) if experts_in_ram else ()
    return Layout(n_layers + 1, (device,), (1.0,), len(overrides), overrides)


class SliceRunner:
    """A child with one slice at a time. A context manager. Raises `EngineCrashed` where llama.cpp can't run a slice."""

    def __init__(self, header: Header, config: LoadConfig) -> None:
        """`config`: settings as the model would have them, but for where layers lie."""
        self._header, self._config = header, config
        self._channel = Channel(Child("child.main"), limits=Limits(idle_s=60), of_death=_failed)

    def __enter__(self) -> SliceRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call twice."""
        self._channel.close()

    @cached_property
    def found(self) -> Found:
        """What llama.cpp sees. Waits, the first time, until the child is there."""
        return devices.ask(self._channel, self._config.rpc)

    def load(
        self, layers: Sequence[int], *, repack: Repack, n_threads: int, n_ctx: int, layout: Layout = _IN_RAM,
        header: Header | None = None,
    ) -> None:  # fmt: skip
        """Load the slice with these layers, in place of the one before. `repack`: not "auto". `header`: of another
        model from now on."""
        self._header = header or self._header
        config, _ = replace(self._config, repack=repack, draft="off"), self.found
        settings = settings_of(
            config, layout, n_ctx=n_ctx, n_ctx_most=None, n_threads=n_threads, repack=repack != "off"
        )
        with noise_file(slice_of(self._header, layers)) as path:
            self._ask(Load(path, settings, False), Loaded)

    def trial(self, trial: Trial) -> TrialResult:
        return self._ask(trial, TrialResult)

    def seconds_of(self, question: TimeAttention) -> list[float]:
        """Of attention alone, as `OpTimes` has it; whatever slice is loaded."""
        return self._ask(question, OpTimes).seconds

    def _ask(self, message: Load | Trial | TimeAttention, kind: type[M]) -> M:
        channel = self._channel
        number = channel.request(message)
        while isinstance(answer := channel.answer(number), Progress):
            pass
        channel.forget(number)
        if isinstance(answer, kind):
            return answer
        raise _wrong(answer.message if isinstance(answer, Failed) else f"it sent {type(answer).__name__}")


def _wrong(what: str) -> EngineCrashed:
    return EngineCrashed(f"measuring a part of the model failed: {printable(what)}")


def _failed(death: Death) -> EngineCrashed:
    return _wrong(f"the engine {death.reason}")
