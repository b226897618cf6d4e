"""What an experiment is made of: cells to measure, and what follows from their samples. Nothing is measured here.

    conduct(lab) ── lab.measure(cells) ──► samples, kept as they come ──► Result: findings, tables, pictures

A result is computed from the samples alone: an experiment that was ended goes on with those that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llmrun.bench.plot.figures import Figure
from llmrun.experiments.spread import Spread
from llmrun.planning.predict.prediction import Range
from llmrun.units import UNKNOWN, significant

Verdict = Literal["holds", "holds in part", "does not hold", "not measured"]

ARTICLES: Mapping[str, str] = {
    "toy": "P. Chng: CPU vs. GPU for neural networks (2024)",
    "mlops": "GPU vs CPU inference tradeoffs in MLOps",
    "70b": "Running Llama 3 70B locally on a CPU in extreme cases",
    "dream": "The pipe dream of running inference on CPUs",
    "rise": "The proportional rise of inference and CPUs",
}


@dataclass(frozen=True)
class Sample:
    """What one look at a cell gave.

    Attributes:
        values: figures by name, with the unit in it; None: could not be had.
        at: when it was taken; UTC.
        other_cores: that other processes kept busy meanwhile; None: not known.
    """

    values: Mapping[str, float | None]
    at: str = ""
    other_cores: float | None = None


@dataclass(frozen=True)
class Cell:
    """What is measured as one.

    Attributes:
        key: unlike that of any other cell of the experiment, in words.
        take: takes a sample. Raises `LlmrunError` where the machine or the build has no way to.
    """

    key: str
    take: Callable[[], Mapping[str, float | None]]


def shown(spread: Spread | None, scale: float = 1.0, digits: int = 3) -> str:
    return UNKNOWN if spread is None else spread.text(scale, digits)


def range_text(value: Range | None, scale: float = 1.0) -> str:
    """Of a prediction: "1.29 (0.738 to 2.27)"."""
    if value is None:
        return UNKNOWN
    middle, low, high = (significant(each * scale) for each in (value.mid, value.low, value.high))
    return f"{middle} ({low} to {high})"


@dataclass(frozen=True)
class Finding:
    """A claim, and what came of it.

    Attributes:
        claim: in a sentence of our own.
        article: of `ARTICLES`.
        number: ours, in words with its unit; of a prediction it says so.
        why: where it holds, or what stands against it.
        predicted: it rests on predictions, not on measurements.
    """

    claim: str
    article: str
    number: str
    verdict: Verdict
    why: str = ""
    predicted: bool = False

    @property
    def judged(self) -> str:
        """The verdict as it is shown: of a prediction as one."""
        return f"not measured, predicted: {self.verdict}" if self.predicted else self.verdict


def judged(is_so: Sequence[bool]) -> Verdict:
    """Of a claim that is several."""
    return "holds" if all(is_so) else "holds in part" if any(is_so) else "does not hold"


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns; a column whose title begins with ">" is set to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """What an experiment found.

    Attributes:
        method: what was done, in sentences.
        figures: by the last part of their files' names; "": the first one, of the experiment's own name.
        limits: what this does not say, in sentences.
    """

    findings: tuple[Finding, ...]
    method: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
