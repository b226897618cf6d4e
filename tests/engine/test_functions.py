"""A user's functions: what of a file becomes a tool, what its calls come to, and that it ends nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from waiting import until_gone

from llmrun.engine.jobs.functions import MOST_RESULT, UserFunctions
from llmrun.errors import UsageError

FILE = '''
"""Tools."""
from __future__ import annotations

import asyncio, datetime, enum, os, sys, threading
from dataclasses import dataclass
from typing import Annotated

import msgspec

import beside


class Unit(enum.Enum):
    C = "c"
    F = "f"


@dataclass
class Place:
    city: str
    country: str = "NO"


n_calls = 0


Days = Annotated[int, msgspec.Meta(ge=1)]


def weather(place: Place, unit: Unit = Unit.C, days: Days = 3, *, when: datetime.date | None = None):
    """What the weather
    is.

    A second paragraph.
    """
    return {"place": f"{place.city}, {place.country}", "unit": unit, "days": days, "when": when}


def text() -> str:
    """A text."""
    return f"as it is, {beside.WORD}"


def fails(why: str):
    """It fails."""
    raise ValueError(why)


def leaves():
    """It leaves."""
    sys.exit(3)


def dies():
    """It dies."""
    print("last words", file=sys.stderr, flush=True)
    os._exit(5)


def counts():
    """How often it was called."""
    global n_calls
    n_calls += 1
    print("noise on stdout")
    os.write(1, b"more noise")
    return n_calls


async def later():
    """It takes its time."""
    await asyncio.sleep(0)
    return [None, 1.5]


def hangs():
    """It never ends."""
    threading.Event().wait()


def large():
    """Much."""
    return "x" * 100_003


def strange():
    """What JSON has not."""
    return object()


def _helper():
    pass
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "tools.py").write_text(FILE)
    return tmp_path / "tools.py"


def test_what_becomes_a_tool(file: Path) -> None:
    """Public functions of the file itself, in its order: the first paragraph, and a schema of the arguments."""
    with UserFunctions(file) as functions:
        specs = {each.name: each for each in functions.specs}
    assert [*specs] == [*"weather text fails leaves dies counts later hangs large strange".split()]
    weather = specs["weather"]
    assert weather.description == "What the weather is."
    properties = weather.parameters["properties"]
    assert weather.parameters["required"] == ["place"] and weather.parameters["additionalProperties"] is False
    assert properties["days"] == {"type": "integer", "minimum": 1, "default": 3}
    assert properties["unit"] == {"$ref": "#/$defs/Unit", "default": "c"}
    assert properties["when"]["anyOf"][0] == {"type": "string", "format": "date"}
    assert weather.parameters["$defs"]["Place"]["required"] == ["city"]
    assert specs["text"].parameters == {
        "type": "object", "properties": {}, "required": [], "additionalProperties": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("text", "{}", "as it is, beside"),
        ("fails", '{"why": "no"}', "ValueError: no"),
        ("leaves", "{}", "SystemExit: 3"),
        ("later", "{}", "[null,1.5]"),
        ("weather", "{}", "ValidationError: Object missing required field `place`"),
        ("weather", '{"place": {"city": "x"}, "days": 0}', "ValidationError: Expected `int` >= 1 - at `$.days`"),
        ("weather", "{", "DecodeError: Input data was truncated"),
        ("dies", "{}", "dies ended with status 5: last words"),
    ],
)
def test_results(file: Path, name: str, arguments: str, result: str) -> None:
    """A text is itself, all else JSON; what is raised, an exit too, is an answer, and so is the end of its process."""
    with UserFunctions(file) as functions:
        assert functions.call(name, arguments) == result
        assert functions.call("text", "{}") == "as it is, beside"


def test_arguments_are_what_was_declared(file: Path) -> None:
    with UserFunctions(file) as functions:
        given = functions.call("weather", '{"place": {"city": "Oslo"}, "unit": "f", "when": "2026-11-30"}')
        assert json.loads(given) == {"place": "Oslo, NO", "unit": "f", "days": 3, "when": "2026-11-30"}
        assert functions.call("large", "{}") == "x" * MOST_RESULT + "… (3 characters more)"
        assert functions.call("strange", "{}").startswith("TypeError: ")


def test_its_process_lives_from_call_to_call(file: Path) -> None:
    """What it prints goes nowhere; one that takes too long is ended, and the next one finds the file as it began."""
    with UserFunctions(file, call_s=60) as functions:
        assert [functions.call("counts", "{}") for _ in range(2)] == ["1", "2"]
    with UserFunctions(file, call_s=0.2) as functions:
        assert functions.call("hangs", "{}") == "hangs took more than 200 ms, and was ended"
    channel = functions._channel
    assert channel is None
    with UserFunctions(file) as functions:
        assert functions._channel is not None
        pid = functions._channel.child.pid
        functions.call("dies", "{}")
        until_gone(pid)
        assert functions.call("counts", "{}") == "1"
        pid = functions._channel.child.pid
    until_gone(pid)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1\n\ndef f(:\n", "line 3: SyntaxError: "),
        ("def g():\n    return 1 / 0\n\nx = g()\n", "line 2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit()\n", "line 2: SystemExit"),
        ("import os\nos._exit(7)\n", "its process ended with status 7"),
        ("x = 1\ndef _f(): pass\n", "there is no function in it"),
        ("from os.path import join\n", "there is no function in it"),
        ("\ndef f(a: int): return a\n", "line 2: f has no docstring"),
        ("def f(a):\n    'F.'\n", r"line 1: f\(a\) has no type, such as a: str"),
        ("def f(a: complex):\n    'F.'\n", r"line 1: f\(a\): complex is no type that JSON has"),
        ("def f(a: 'Nowhere'):\n    'F.'\n", "line 1: f: NameError: name 'Nowhere' is not defined"),
        ("def f(*a: int):\n    'F.'\n", r"f\(a\): \*a: int can't be given by name"),
        ("def f(a: int, /):\n    'F.'\n", r"f\(a\): a: int can't be given by name"),
        ("class A: pass\ndef f(a: list[A]):\n    'F.'\n", r"line 2: f\(a\): list\[.*A\] is no type"),
    ],
)
def test_files_that_are_of_no_use(tmp_path: Path, source: str, problem: str) -> None:
    """One sentence, with the line and the parameter."""
    path = tmp_path / "tools.py"
    path.write_text(source)
    with pytest.raises(UsageError, match=problem) as error:
        UserFunctions(path)
    assert error.value.field == "tools" and str(path) in error.value.message
