"""Typed data to JSON and back: what is written is valid JSON, and what is refused is named by its place."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from llmrun import codec

_AT_ONCE = """
import sys, threading
from llmrun import codec

sys.setswitchinterval(1e-6)
fields = [f"a{i}" for i in range(20)]
for n in range(100):

    def struct(name, kind):
        annotations = dict.fromkeys(fields, f"{kind} | None")
        parts = {"__module__": __name__, "__annotations__": annotations, **dict.fromkeys(fields)}
        globals()[name] = type(codec.Struct)(name, (codec.Struct,), parts)
        return globals()[name]

    struct(f"Inner{n}", "int")
    kind, line = struct(f"Outer{n}", f"Inner{n}"), codec.encode({name: dict.fromkeys(fields, 1) for name in fields})
    beginning = threading.Barrier(8)

    def met():
        beginning.wait()
        assert codec.decode(line, kind).a19.a19 == 1

    threads = [threading.Thread(target=met) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
"""Types that nobody has decoded yet, each of them by eight threads."""


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    sizes: Mapping[str, tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    inner: tuple[Inner, ...] = ()
    n: int | None = None


def test_there_and_back() -> None:
    """Tuples, mappings and numbers keep their types; fields of a newer writer are ignored."""
    value = Outer("x", (Inner("a", {"RAM": (1.0, 2.5)}),), 3)
    assert codec.decode(codec.encode(value), Outer) == codec.convert(codec.plain(value), Outer) == value
    assert codec.convert({"name": "x", "later": [1]}, Outer) == Outer("x")


def test_what_json_can_not_hold_is_null() -> None:
    """JSON has no NaN and no infinity; keys are texts."""
    value = {"a": (1.0, math.inf), 2: math.nan}
    assert codec.plain(value) == json.loads(codec.encode(value)) == {"a": [1.0, None], "2": None}


@pytest.mark.parametrize(
    ("document", "place", "problem"),
    [
        ({"name": 3}, "name", "must be a text, not a whole number"),
        ({"name": "x", "n": "3"}, "n", "must be a whole number or null, not a text"),
        ({"name": "x", "inner": {}}, "inner", "must be a list, not an object"),
        ({"name": "x", "inner": [{"kind": "c"}]}, "inner[0].kind", "has an unknown value, 'c'"),
        ({"name": "x", "inner": [{}]}, "inner[0].kind", "is missing"),
        (
            {"name": "x", "inner": [{"kind": "a", "sizes": {"RAM": [None]}}]},
            "inner[0].sizes[...][0]",
            "must be a number",
        ),
        ({}, "name", "is missing"),
        ([], "", "must be an object, not a list"),
    ],
)
def test_the_place_of_what_is_wrong(document: Any, place: str, problem: str) -> None:
    """An error has the place and a sentence that goes on from there."""
    with pytest.raises(codec.Malformed) as error:
        codec.convert(document, Outer)
    assert error.value.place == place and error.value.problem.startswith(problem)


def test_whole_numbers_as_json_has_them() -> None:
    """5.0 and 5e0 are 5, as in JSON Schema; 5.5 is none, and what no float holds exactly is not guessed at."""
    assert codec.decode(b'{"name": "x", "n": 5.0}', Outer) == codec.decode(b'{"name": "x", "n": 5e0}', Outer)
    assert codec.decode(b'{"name": "x", "n": 5.0}', Outer).n == 5
    assert codec.decode(b'{"name": "x", "n": 1e18}', Outer).n == 10**18
    for no in (b"5.5", b"1e300", b"-0.1"):
        with pytest.raises(codec.Malformed) as error:
            codec.decode(b'{"name": "x", "n": ' + no + b"}", Outer)
        assert error.value.problem == "must be a whole number or null, not a number"


def test_a_type_that_many_threads_meet_at_once() -> None:
    """msgspec would end the process: one thread reads of the type what another is still finding out."""
    done = subprocess.run([sys.executable, "-c", _AT_ONCE], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
