"""Events to numbers. The one meter: every command that says how fast something was has read it here.

    request ──► prefill begins ──► prefill ends ──► first token ──► second ──► … ──► last
       └──────────────── TTFT ───────────────────────────┘└─ gap ─┘└──── N-1 gaps ──────┘

Prefill is compute: all tokens of the prompt at once. Decode is memory: every gap reads all active weights and the KV
cache once, so bytes ÷ time is the bandwidth that the run achieved. The first token's cost lies in the prefill and its
wait in TTFT, which leaves N tokens N-1 gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from llmrun.engine.protocol import Done, Loaded, Message, Prefilled, Started, Tokens
from llmrun.planning.footprint import DecodeReads


@dataclass(frozen=True)
class Timing:
    """One generation as it was measured. Rates are derived; what is unknown is None.

    Attributes:
        load_s: loading the model, from the file to the first request that can be served.
        n_prompt: tokens of the prompt; `n_cached` of them were in the KV cache already and not computed.
        prefill_s: computing the prompt, tokenization and template left out.
        ttft_s: from the request to the first token: queue, template, tokenization, context, prefill and sampling.
        queue_s: the part of it in which the engine was busy with requests before this one; None: not known.
        step_s: the gaps between tokens, N-1 for N tokens: sampling, detokenization and computing one token.
        n_generated: tokens that were made, the one that ends the answer not counted.
        read_bytes: bytes of weights and KV cache that the gaps read.
        peak_rss_bytes: the most memory resident in the engine's process, mapped weights included.
        n_drafted, n_accepted: tokens that were guessed ahead, and those of them that were right: they came with the one
            before them, and read nothing.
    """

    load_s: float | None
    n_prompt: int
    n_cached: int
    prefill_s: float | None
    ttft_s: float | None
    step_s: tuple[float, ...]
    n_generated: int
    read_bytes: int | None
    peak_rss_bytes: int | None
    queue_s: float | None = None
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def pp_tps(self) -> float | None:
        """Prompt tokens computed per second."""
        n = self.n_prompt - self.n_cached
        return n / self.prefill_s if n and self.prefill_s else None

    @property
    def n_steps(self) -> int:
        return len(self.step_s)

    @property
    def decode_s(self) -> float:
        return math.fsum(self.step_s)

    @property
    def tg_tps(self) -> float | None:
        """Tokens generated per second, over the gaps."""
        return self.n_steps / self.decode_s if self.n_steps and self.decode_s else None

    @property
    def read_bytes_per_s(self) -> float | None:
        """Bandwidth that decoding achieved, in bytes per second."""
        return self.read_bytes / self.decode_s if self.read_bytes and self.decode_s else None

    def gap_s(self, quantile: float) -> float | None:
        """The gap between two tokens at a quantile (0.5 the median, 0.95): the smallest that so many don't exceed."""
        return nearest_rank(self.step_s, quantile)


def nearest_rank(values: Sequence[float], quantile: float) -> float | None:
    """The nearest-rank quantile: of ordered x₁…xₙ the one at ⌈q·n⌉."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)]


class Meter:
    """Reads one generation's events, in order."""

    def __init__(self, reads: DecodeReads | None = None) -> None:
        self._reads = reads
        self._loaded: Loaded | None = None
        self._started: Started | None = None
        self._prefilled_s: float | None = None
        self._token_s: list[float] = []
        self._done: Done | None = None

    def feed(self, event: Message) -> None:
        match event:
            case Loaded():
                self._loaded = event
            case Started():
                self._started = event
            case Prefilled():
                self._prefilled_s = event.at_s
            case Tokens():
                self._token_s += event.at_s
            case Done():
                self._done = event

    @property
    def n_generated(self) -> int:
        return len(self._token_s)

    @property
    def token_s(self) -> tuple[float, ...]:
        """When each token was made, on `time.perf_counter`."""
        return tuple(self._token_s)

    @property
    def n_context(self) -> int:
        """Tokens of context in use: prompt and answer so far."""
        return (self._started.n_prompt if self._started else 0) + len(self._token_s)

    @property
    def ttft_s(self) -> float | None:
        """Of this generation, as soon as it is known."""
        return self._token_s[0] - self._started.request_s if self._started and self._token_s else None

    def read_bytes_per_s(self, tokens_per_s: float | None) -> float | None:
        """Bandwidth that decoding takes at such a rate, at the depth that is reached."""
        n_bytes = self._reads.at_depth(self.n_context) if self._reads else None
        return n_bytes * tokens_per_s if n_bytes is not None and tokens_per_s is not None else None

    def recent_tps(self, n: int = 32) -> float | None:
        """Tokens per second over the last `n` gaps: how fast it is now."""
        recent = self._token_s[-n - 1 :]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else None

    def timing(self) -> Timing:
        """What is known by now; a generation that was cancelled has what it got to."""
        started, token_s = self._started, self._token_s
        step_s = tuple(after - before for before, after in pairwise(token_s))
        n_prompt = started.n_prompt if started else 0
        # Gap i computes token i behind the prompt and the i tokens before it.
        read = self._reads
        per_step = [read.at_depth(n_prompt + i) for i in range(len(step_s))] if read else []
        known = [n for n in per_step if n is not None]
        done = self._done
        n_drafted, n_accepted = (done.n_drafted, done.n_accepted) if done else (0, 0)
        n_steps = len(step_s) - min(n_accepted, len(step_s))
        read_bytes = round(sum(known) * n_steps / len(known)) if known and len(known) == len(step_s) else None
        return Timing(
            load_s=self._loaded.end_s - self._loaded.begin_s if self._loaded else None,
            n_prompt=n_prompt,
            n_cached=started.n_cached if started else 0,
            prefill_s=self._prefilled_s - started.begin_s if started and self._prefilled_s else None,
            ttft_s=token_s[0] - started.request_s if started and token_s else None,
            step_s=step_s,
            n_generated=len(token_s),
            read_bytes=read_bytes,
            peak_rss_bytes=done.peak_rss_bytes if done else None,
            n_drafted=n_drafted,
            n_accepted=n_accepted,
            queue_s=started.served_s - started.request_s if started and started.served_s is not None else None,
        )
