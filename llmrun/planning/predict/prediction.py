"""What is asked of a prediction, what it answers, and who can answer: the interface of all sources.

A source knows one machine: one that is not here by its data sheets (`elsewhere.Elsewhere`), this one by its measured
profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig


@dataclass(frozen=True)
class Range:
    """A figure that is not measured: most likely `mid`, and between `low` and `high` in 80 to 95 of 100 cases."""

    low: float
    mid: float
    high: float

    @classmethod
    def around(cls, mid: float, factor: float) -> Range:
        """From `mid` divided by to `mid` times `factor`: errors of speed are ratios."""
        return cls(mid / factor, mid, mid * factor)

    def per(self, amount: float) -> Range:
        """Of a rate, the time of so much; of a time, the rate: `amount` divided by it."""
        return Range(amount / self.high, amount / self.mid, amount / self.low)

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.mid * factor, self.high * factor)


TOO_LARGE = "the context alone does not fit"
"""Of what can't run at all: keys, values and what is computed in have to be in memory, weights need not."""


def with_disk(computing: Range, least_s: float, most_s: float, doubt: float = 1.5) -> Range:
    """Seconds with what is read from the disk on the way.

    At best (`least_s`) memory keeps what it holds, and only the rest is read; at worst (`most_s`), as what was used
    longest ago goes first, a pass through a file that is larger than memory finds nothing in it. `doubt`: by how much
    the disk may be faster or slower than it is taken to be.
    """
    return Range(
        computing.low + least_s / doubt, computing.mid + (least_s + most_s) / 2, computing.high + most_s * doubt
    )


@dataclass(frozen=True)
class Question:
    """What a model is to do.

    Attributes:
        n_prompt: tokens of prompt, for prefill and the time to the first token.
        n_gen: tokens of answer; only the context has to hold them.
        depths: tokens before the one that is decoded.
        config: how it is loaded: context, types of keys and values, layers.
    """

    n_prompt: int = 512
    n_gen: int = 128
    depths: tuple[int, ...] = (0,)
    config: LoadConfig = field(default_factory=LoadConfig)


@dataclass(frozen=True)
class Prediction:
    """One model on one machine. None: not known.

    Attributes:
        fits: all of it lies in memory, nothing is read from the disk again.
        n_gpu_layers: of the layers and the output, so many lie on devices.
        n_ctx: tokens of context that memory is for.
        memory_bytes: by device, "RAM" among them: weights, keys and values, compute buffers.
        prefill_tps: tokens of the prompt per second.
        decode_tps: tokens per second, by depth.
        note: what is worth knowing of it: "mapped from disk"; mostly empty.
        watts: what it takes to decode: of this machine measured, of others the most that their makers tell.
    """

    fits: bool | None
    n_gpu_layers: int
    n_ctx: int
    memory_bytes: Mapping[str, int]
    prefill_tps: Range | None
    decode_tps: Mapping[int, Range | None]
    note: str = ""
    watts: float | None = None

    def ttft_s(self, n_prompt: int) -> Range | None:
        """Seconds to the first token of an answer, the model being loaded: those of the prefill."""
        return None if self.prefill_tps is None else self.prefill_tps.per(n_prompt)


class Source(Protocol):
    """Predicts for one machine."""

    def machine(self) -> Mapping[str, Any]:
        """What the machine is, in the words of a bench's record."""

    def predict(self, header: Header, question: Question) -> Prediction:
        """Raises `UsageError` for settings that the model or the machine can't have."""
