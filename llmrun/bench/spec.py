"""What a bench measures: tests, the settings that each runs with, and how often and beside what it is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from llmrun.errors import Change, UsageError
from llmrun.options.load import LoadConfig

TestKind = Literal["pp", "tg", "pg", "e2e"]
MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ."""
_TEMPLATE_TOKENS = 256
"""Room for what a chat template adds."""


@dataclass(frozen=True)
class Test:
    """What was computed. Counts are tokens of one sequence.

    Attributes:
        kind: "pp" prefill alone, "tg" decoding alone, "pg" one after the other, "e2e" a request from its text to its
            last token: template, tokenization, prefill, sampling, decoding.
        n_prompt: tokens of prompt that were computed; 0 for "tg".
        n_gen: tokens that were asked for; 0 for "pp".
        n_depth: tokens that lay in the KV cache before.
        n_seq: sequences in parallel.
    """

    __test__ = False  # to pytest: no class of tests

    kind: TestKind
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    n_seq: int = 1

    @property
    def name(self) -> str:
        """As llama-bench writes it: "pp512", "tg128 @ d4096", "pp512+tg128". Ours: "e2e512+128", "tg128 x4"."""
        names = {
            "pp": f"pp{self.n_prompt}",
            "tg": f"tg{self.n_gen}",
            "pg": f"pp{self.n_prompt}+tg{self.n_gen}",
            "e2e": f"e2e{self.n_prompt}+{self.n_gen}",
        }
        parallel = f" x{self.n_seq}" if self.n_seq > 1 else ""
        return names[self.kind] + parallel + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_ctx(self) -> int:
        """Tokens of context that it takes, of all its sequences; the template of "e2e" has room as well."""
        template = _TEMPLATE_TOKENS if self.kind == "e2e" else 0
        return self.n_seq * (self.n_depth + self.n_prompt + self.n_gen) + template


@dataclass(frozen=True)
class Case:
    """One row to be: a test, and the settings that it runs with."""

    config: LoadConfig
    test: Test


def asked_settings(config: LoadConfig) -> dict[str, Any]:
    """What was asked for, by the names of a row's settings: for rows that are only planned. "auto" or None: llmrun
    will decide."""
    known = config.as_dict()
    offload = known.pop("offload")
    offload["offload_kv"] = offload.pop("kv")
    for name in ("devices", "tensor_split", "override_tensor"):
        offload[name] = None if offload[name] is None else list(offload[name])
    return {**known, **offload}


@dataclass(frozen=True)
class MeasurementOptions:
    """How every case is measured.

    Attributes:
        repetitions: samples of each.
        warm_up: whether one run of each kind comes before, uncounted: it faults the weights in.
        delay_s: seconds of rest before each case.
        ceilings: whether to measure what the memories can do, beside the samples.
        price_kwh, price_hour: money for a kWh and for an hour of this machine, in any currency.
    """

    repetitions: int = 5
    warm_up: bool = True
    delay_s: float = 0.0
    ceilings: bool = True
    price_kwh: float | None = None
    price_hour: float | None = None

    def __post_init__(self) -> None:
        for field, value, low, high in (
            ("repetitions", self.repetitions, 1, 10_000),
            ("delay_s", self.delay_s, 0, 86_400),
            ("price_kwh", self.price_kwh, 0, 1_000_000_000),
            ("price_hour", self.price_hour, 0, 1_000_000_000),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(f"{value} is outside {low} to {high}", field=field, value=value)


def make_tests(
    prompts: Sequence[int] = (512,),
    gens: Sequence[int] = (128,),
    *,
    pairs: Sequence[tuple[int, int]] = (),
    depths: Sequence[int] = (0,),
    sequences: Sequence[int] | None = None,
    end_to_end: bool = False,
) -> list[Test]:
    """llama-bench's tests in its order: for every depth the prompts, the generations, the pairs; 0 leaves one out.

    `sequences`: numbers of sequences side by side, as llama-batched-bench has them: prompts and generations are then
    timed together. Raises `UsageError` where nothing is left to measure.
    """
    if sequences and max(sequences) > MAX_SEQUENCES:
        raise UsageError(f"{max(sequences)} is outside 1 to {MAX_SEQUENCES}", field="n_parallel", value=max(sequences))
    found = []
    for n_depth in depths:
        if sequences:
            found += [Test("pg", p, n, n_depth, n_seq) for p, n, n_seq in product(prompts, gens, sequences) if p and n]
        else:
            found += [Test("pp", n, 0, n_depth) for n in prompts if n]
            found += [Test("tg", 0, n, n_depth) for n in gens if n]
        found += [Test("pg", p, n, n_depth) for p, n in pairs]
    if end_to_end:
        found += [Test("e2e", p, n) for p, n in product(prompts, gens) if p and n]
    if not found:
        raise UsageError(
            "there is nothing to measure: `n_prompt` and `n_gen` are 0", hint=Change({"n_prompt": 512, "n_gen": 128})
        )
    return found
