"""Bodies in ollama's form."""

from __future__ import annotations

import json

import pytest

from llmrun.chat.answer_options import AnswerOptions
from llmrun.options.sampling import SamplingConfig
from llmrun.wire import ollama
from llmrun.wire.request import Refused


def kept_s(keep_alive: object) -> float | None:
    body = json.dumps({"model": "tiny", "prompt": "Hi", "keep_alive": keep_alive}).encode()
    return ollama.asked_of(body, ollama.GENERATE, SamplingConfig(), AnswerOptions()).keep_alive_s


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [
        (None, None),
        (-1, None),
        ("-1m", None),
        (0, 0),
        ("0", 0),
        (90, 90),
        ("90", 90),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        (".5s", 0.5),
        ("+5m", 300),
        ("1.s", 1),
        (1e300, None),
        ("9" * 400 + "h", None),
    ],
)
def test_how_long_a_model_stays(keep_alive: object, seconds: float | None) -> None:
    """None is for ever: also what no calendar has, so that listings can say until when."""
    assert kept_s(keep_alive) == seconds
    assert ollama.after(kept_s(keep_alive)).endswith("Z")


@pytest.mark.parametrize("keep_alive", ["", "soon", "5 m", "m5", "1e3", "inf", "nan", "٣", "٣m", "."])
def test_what_is_no_time(keep_alive: str) -> None:
    with pytest.raises(Refused, match="keep_alive"):
        kept_s(keep_alive)
