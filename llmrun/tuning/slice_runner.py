"""Slices of a model, loaded and measured in a child of their own: what all of it would cost, without loading it.

A slice has some of the model's layers, with its real shapes, types and settings, and weights of noise
(`gguf/slices.py`). What one more layer takes is the difference of two slices; what lies outside of the layers (the
output matrix above all) is the rest:

    t(all) = t(small) + (n - n_small) * (t(large) - t(small)) / (n_large - n_small)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from llmrun.engine import devices
from llmrun.engine.channel import Channel
from llmrun.engine.devices import Found
from llmrun.engine.limits import Limits
from llmrun.engine.loader import settings_of
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import Failed, Load, Loaded, Progress, Trial, TrialResult
from llmrun.errors import EngineCrashed
from llmrun.gguf.reader import Header, layer_of
from llmrun.gguf.slices import layer_contents, noise_file, slice_of
from llmrun.options.load import LoadConfig
from llmrun.planning.kv_layout import layer_memories
from llmrun.planning.layout import Layout
from llmrun.text import printable

M = TypeVar("M")


@dataclass(frozen=True)
class Slices:
    """Two slices of a model, the larger one with some more of the layers that repeat themselves.

    Attributes:
        small, large: numbers of the layers that they have.
        n_repeats: how often what `large` has more is in the whole model more than in `small`.
    """

    small: tuple[int, ...]
    large: tuple[int, ...]
    n_repeats: float

    def whole(self, small_s: float, large_s: float) -> float:
        """Seconds of all layers, from those of both slices."""
        return max(small_s, small_s + self.n_repeats * (large_s - small_s))


def slices_of(header: Header, *, more: int = 2) -> Slices:
    """The two smallest slices that stand for the model: `more` layers, or whole periods of them, apart.

    Layers of one kind that differ in nothing but their types are taken from all over the model; where kinds alternate
    (windows, attention among recurrent layers, mixtures behind dense layers), what a layer is follows from its place:
    then the slices are the model's first layers.
    """
    kinds = _kinds(header)
    n = len(kinds)
    if not n:
        raise EngineCrashed("the model has no layers that a part could be made of")
    if len(set(kinds)) <= 1:
        more = min(more, max(1, n - 1))
        large = tuple(sorted({(2 * i + 1) * n // (2 * (more + 1)) for i in range(more + 1)}))
        return Slices((large[len(large) // 2],), large, (n - 1) / max(1, len(large) - 1))
    lead, period = _repetition(kinds)
    first, second = lead + period, min(n, lead + 2 * period)
    return Slices(tuple(range(first)), tuple(range(second)), (n - first) / max(1, second - first))


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
    wanted = {None, *layers}
    return sum(tensor.n_bytes for tensor in header.tensors if layer_of(tensor) in wanted)


class SliceRunner:
    """A child with one slice at a time. A context manager. Raises `EngineCrashed` where llama.cpp can't run a slice."""

    def __init__(self, header: Header, config: LoadConfig) -> None:
        """`config`: settings as the model would have them; the slice lies in RAM."""
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
        return devices.ask(self._channel)

    def load(self, layers: Sequence[int], *, n_threads: int, n_ctx: int) -> None:
        """Load the slice with these layers, in place of the one before."""
        config, _ = self._config, self.found
        settings = settings_of(
            config, Layout(0), n_ctx=n_ctx, n_ctx_most=None, n_threads=n_threads, repack=config.repack == "on"
        )
        with noise_file(slice_of(self._header, layers)) as path:
            self._ask(Load(path, settings, False), Loaded)

    def trial(self, trial: Trial) -> TrialResult:
        return self._ask(trial, TrialResult)

    def _ask(self, message: Load | Trial, kind: type[M]) -> M:
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
