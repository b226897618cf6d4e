"""What a user can set: how a model is loaded, how its tokens are sampled. Frozen, and checked when made.

llama.cpp takes many bad values without a word (`n_ctx` 1 becomes 256) and dies of others (`n_batch` -5, `n_threads`
100000), so nothing reaches it that has not passed here. Fields carry llama.cpp's names; messages name the option that
a user types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from llmrun.errors import UsageError

OnOff = Literal["on", "off"]
AutoOnOff = Literal["auto", "on", "off"]

# GGML_MAX_N_THREADS: one more than this and ggml aborts.
MAX_THREADS = 512
MAX_CTX = 1 << 24
MAX_BATCH = 1 << 16
MAX_SEED = (1 << 32) - 2  # 2^32 - 1 is llama.cpp's word for "pick one"


def _within(option: str, value: float, low: float, high: float) -> None:
    """Raise `UsageError` unless low <= value <= high; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{option}: {value!r} is no number", hint="llmrun run --help")
    if not low <= value <= high:
        shown = "a number of that size" if isinstance(value, int) and abs(value) > 1e15 else value
        raise UsageError(f"{option}: {shown} is outside {low} to {high}", hint="llmrun run --help")


def _whole_within(option: str, value: float, low: int, high: int) -> None:
    """The same for a whole number: 2.5 tokens are never reached, and ctypes would refuse them too late."""
    if not isinstance(value, int):
        raise UsageError(f"{option}: {value!r} is no whole number", hint="llmrun run --help")
    _within(option, value, low, high)


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option}: '{value}' is none of {', '.join(choices)}", hint="llmrun run --help")


@dataclass(frozen=True)
class LoadConfig:
    """How a model is loaded.

    Attributes:
        n_ctx: context length in tokens, prompt and answer together. 0: as long as the prompt and `max_tokens` need,
            without such a bound at least 4096, and at most what the model was trained on.
        n_batch: tokens of the prompt that are handed to llama.cpp at once (logical batch).
        n_ubatch: tokens that are computed at once (physical batch); values above `n_batch` are cut to it.
        n_threads: threads for decoding. None: one per physical core within the CPU quota.
        n_threads_batch: threads for prefill. None: the same as `n_threads`.
        flash_attn: flash attention; "auto" leaves the choice to llama.cpp, which knows what the devices can do.
        repack: rearrange the weights at load for this CPU; "auto" chooses by the weights' type (see `planner.py`).
    """

    n_ctx: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    flash_attn: AutoOnOff = "auto"
    repack: AutoOnOff = "auto"

    def __post_init__(self) -> None:
        _whole_within("-c/--ctx-size", self.n_ctx, 0, MAX_CTX)
        _whole_within("-b/--batch-size", self.n_batch, 1, MAX_BATCH)
        _whole_within("-ub/--ubatch-size", self.n_ubatch, 1, MAX_BATCH)
        if self.n_threads is not None:
            _whole_within("-t/--threads", self.n_threads, 1, MAX_THREADS)
        if self.n_threads_batch is not None:
            _whole_within("-tb/--threads-batch", self.n_threads_batch, 1, MAX_THREADS)
        _one_of("-fa/--flash-attn", self.flash_attn, ("auto", "on", "off"))
        _one_of("--repack", self.repack, ("auto", "on", "off"))


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen, and when to stop. The steps run in this order, llama.cpp's own.

    Attributes:
        logit_bias: token id -> what is added to its logit; -inf forbids the token.
        repeat_last_n: how many tokens back the three penalties look; 0 turns them off, -1 is the whole context.
        repeat_penalty: divides the logits of tokens seen; 1 is off.
        presence_penalty: taken off the logit of every token seen; 0 is off.
        frequency_penalty: taken off the logit of a token seen, once for each time; 0 is off.
        top_k: keep the k likeliest tokens; 0 is off.
        typical_p: keep tokens of typical information up to this probability; 1 is off.
        top_p: keep the likeliest tokens up to this probability; 1 is off.
        min_p: keep tokens with at least this share of the likeliest token's probability; 0 is off.
        temperature: flattens (> 1) or sharpens (< 1) the choice; 0 is greedy: always the likeliest token.
        seed: of the random choice; None picks one, which the result reports.
        max_tokens: at most so many tokens are generated; -1: until the model ends or the context is full.
        stop: texts that end the answer and are not part of it.
    """

    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int = 40
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.05
    temperature: float = 0.8
    seed: int | None = None
    max_tokens: int = -1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for token, bias in self.logit_bias.items():
            _whole_within("--logit-bias (token)", token, 0, (1 << 31) - 1)
            if bias != -math.inf:
                _within("--logit-bias (bias)", bias, -1e6, 1e6)
        _whole_within("--repeat-last-n", self.repeat_last_n, -1, MAX_CTX)
        _within("--repeat-penalty", self.repeat_penalty, 0.01, 100)
        _within("--presence-penalty", self.presence_penalty, -100, 100)
        _within("--frequency-penalty", self.frequency_penalty, -100, 100)
        _whole_within("--top-k", self.top_k, 0, 1 << 24)
        _within("--typical", self.typical_p, 0.0, 1)
        _within("--top-p", self.top_p, 0.0, 1)
        _within("--min-p", self.min_p, 0.0, 1)
        _within("--temp", self.temperature, 0, 100)
        if self.seed is not None:
            _whole_within("--seed", self.seed, 0, MAX_SEED)
        _whole_within("-n/--n-predict", self.max_tokens, -1, MAX_CTX)
        if isinstance(self.stop, str):  # type: ignore[unreachable]  # a str is a sequence of str, one letter each
            raise UsageError(f"stop: a tuple of texts is wanted, such as ({self.stop!r},)")
        if any(not text for text in self.stop):
            raise UsageError("--stop: an empty text would end every answer at once", hint="llmrun run --help")


_LOGIT_BIAS = re.compile(r"(\d{1,10})([+-](?:inf|\d{1,7}(?:\.\d{1,9})?))")


def parse_logit_bias(text: str) -> tuple[int, float]:
    """One `--logit-bias` as llama.cpp writes it, TOKEN+BIAS or TOKEN-BIAS: "15043-1.5" is (15043, -1.5)."""
    match = _LOGIT_BIAS.fullmatch(text)
    if match is None or match[2] == "+inf":
        raise UsageError(
            f"--logit-bias: '{text[:40]}' is not TOKEN+BIAS or TOKEN-BIAS, such as 15043+1 or 15043-inf",
            hint="llmrun run --help",
        )
    return int(match[1]), float(match[2])
