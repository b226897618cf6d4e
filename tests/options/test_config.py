"""Bad values end here, naming the option and its range, and never reach native code."""

from __future__ import annotations

from typing import Any

import pytest

from llmrun.cli.framework import spelling
from llmrun.errors import UsageError
from llmrun.options import parse
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig

BAD_LOAD: list[tuple[dict[str, Any], str]] = [
    ({"n_ctx": -1}, "--ctx-size: -1 is outside 0 to"),
    ({"n_ctx": 1 << 40}, "--ctx-size"),
    ({"n_batch": -5}, "--batch-size: -5 is outside 1 to"),
    ({"n_batch": 0}, "--batch-size"),
    ({"n_ubatch": 0}, "--ubatch-size"),
    ({"n_threads": 0}, "--threads: 0 is outside 1 to 512"),
    ({"n_threads": 100_000}, "--threads"),
    ({"n_threads_batch": 513}, "--threads-batch"),
    ({"flash_attn": "maybe"}, "--flash-attn: 'maybe' is none of auto, on, off"),
    ({"repack": ""}, "--repack"),
]
BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "--temp: -0.1 is outside 0 to 100"),
    ({"temperature": float("nan")}, "--temp: nan"),
    ({"temperature": float("inf")}, "--temp: inf"),
    ({"top_k": -1}, "--top-k"),
    ({"top_p": 1.01}, "--top-p"),
    ({"min_p": -0.5}, "--min-p"),
    ({"typical_p": 2}, "--typical"),
    ({"repeat_penalty": 0}, "--repeat-penalty"),
    ({"repeat_last_n": -2}, "--repeat-last-n"),
    ({"presence_penalty": float("inf")}, "--presence-penalty"),
    ({"frequency_penalty": -1e9}, "--frequency-penalty"),
    ({"seed": -1}, "--seed"),
    ({"seed": 1 << 32}, "--seed"),
    ({"max_tokens": -2}, "--n-predict: -2 is outside -1 to"),
    ({"stop": ("",)}, "--stop"),
    ({"logit_bias": {-1: 1.0}}, "--logit-bias"),
    ({"logit_bias": {1: float("nan")}}, "--logit-bias"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_LOAD)
def test_load_ranges(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LoadConfig(**fields)
    assert message in spelling.message(caught.value) and spelling.hint(caught.value)


@pytest.mark.parametrize(("fields", "message"), BAD_SAMPLING)
def test_sampling_ranges(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingConfig(**fields)
    assert message in spelling.message(caught.value)


@pytest.mark.parametrize(
    ("text", "pair"), [("15043+1", (15043, 1.0)), ("0-2.5", (0, -2.5)), ("7-inf", (7, float("-inf")))]
)
def test_logit_bias(text: str, pair: tuple[int, float]) -> None:
    assert parse.logit_bias(text) == (pair,)


@pytest.mark.parametrize("text", ["", "5", "5+inf", "+1", "5+-1", "a+1", "5+nan", "5=1", "99999999999+1"])
def test_bad_logit_bias(text: str) -> None:
    with pytest.raises(ValueError, match="is not TOKEN"):
        parse.logit_bias(text)
