"""What makes a row doubtful: few samples, a machine that was busy, a model that did not stay in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrun.machine.sampler import Usage
from llmrun.units import fixed, percent

if TYPE_CHECKING:
    from llmrun.bench.record import Row

FEW_SAMPLES = 3
"""Below this, a spread says nothing."""
_BUSY_CORES = 0.1
"""Of others, from which on it is said."""
_SPREAD = 0.05
"""Standard deviation of the samples over their mean, from which on it is said."""


@dataclass(frozen=True)
class RowWarning:
    """Something that makes a row doubtful.

    Attributes:
        code: stays the same, for scripts: "noisy", "throttled", "others-busy", "swapping".
        message: what was seen, with numbers.
        numbers: the same numbers.
        advice: what to do about it.
    """

    code: str
    message: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    advice: str | None = None

    def __str__(self) -> str:
        return f"{self.message} ({self.advice})" if self.advice else self.message


def warnings_of(row: Row, repetitions: int, *, on_battery: bool = False) -> Iterator[RowWarning]:
    """Of a row that was to have so many samples."""
    if repetitions < FEW_SAMPLES:
        said = f"{repetitions} samples say nothing of their spread"
        yield RowWarning("few-samples", said, {"samples": repetitions}, "take 5 repetitions")
    mean, deviation = row.mean_tps, row.stddev_tps
    if mean and deviation and (share := deviation / mean) > _SPREAD:
        said, advice = f"the samples spread by {percent(share)} of their mean", "measure on a quiet machine"
        yield RowWarning("noisy", said, {"share": share}, f"{advice}, or take 20 repetitions")
    if row.usage is not None:
        yield from _of_the_machine(row.usage)
    if on_battery:
        yield RowWarning("battery", "the machine runs on battery", {}, "plug it in")


def _of_the_machine(usage: Usage) -> Iterator[RowWarning]:
    if (cores := usage.other_cores or 0) > _BUSY_CORES:
        advice = "end them, or measure later"
        yield RowWarning("others-busy", f"other processes used {fixed(cores, 2)} cores", {"cores": cores}, advice)
    if (cores := usage.steal_cores or 0) > _BUSY_CORES:
        yield RowWarning("steal", f"the host took {fixed(cores, 2)} cores away", {"cores": cores}, "measure later")
    if pages := usage.major_faults:
        said = f"{pages} pages were read from the disk while it ran"
        yield RowWarning("read-from-disk", said, {"pages": pages}, "more free RAM, or a smaller model")
    if usage.peak_swap_bytes:
        yield RowWarning("swapping", "a part of the engine lay in swap", {"bytes": usage.peak_swap_bytes})
    for gpu in usage.gpus or ():
        if gpu.throttled:
            yield RowWarning("throttled", f"GPU {gpu.index} was slowed down: {', '.join(gpu.throttled)}")
