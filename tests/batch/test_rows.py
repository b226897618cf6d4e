"""Files of rows: three forms, and what is wrong in them, by line number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from llmrun.batch.rows import Reading, Row, form_of, lines_of
from llmrun.chat.answer_options import AnswerOptions
from llmrun.errors import UsageError
from llmrun.options.sampling import SamplingConfig
from llmrun.wire.openai import CHAT, request_of
from llmrun.wire.request import Request

BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def asked(said: str | Mapping[str, str]) -> Request:
    return Request(said if isinstance(said, str) else said["city"], SamplingConfig(), AnswerOptions(), False)


def held(body: Any, url: str) -> Request:
    return request_of(body, url, SamplingConfig(), AnswerOptions())


def read(data: bytes, name: str = "rows") -> list[Row]:
    form = form_of(data, name)
    return [*Reading(form, asked, held).rows(lines_of(data, form, name))]


def line(custom_id: str, **more: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": BODY, **more})


def test_json_lines() -> None:
    """With line ends of Windows, a mark, blank lines and without a last line end: numbers are those of the file."""
    rows = read(("\ufeff\r\n" + line("a") + "\r\n\n" + line("b")).encode())
    assert [(row.number, row.custom_id, row.problem) for row in rows] == [(2, "a", None), (4, "b", None)]
    assert rows[0].request and rows[0].request.asked == BODY["messages"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "JSON"),
        ("[1]", "must be an object"),
        ('{"custom_id": "x"}', "is missing"),
        (line("x", method="GET"), "method"),
        (line("x", url="/v1/embeddings"), "/v1/embeddings"),
        (line("x", body={"messages": BODY["messages"], "n": 3}), "n is not held"),
        (line("x", more=1), "more"),
        (line("a"), "line 1 too"),
    ],
)
def test_a_bad_line(text: str, said: str) -> None:
    """The others are as they are."""
    rows = read(f"{line('a')}\n{text}\n{line('c')}\n".encode())
    assert [row.problem is None for row in rows] == [True, False, True]
    assert rows[1].problem and said in rows[1].problem.message and rows[1].number == 2


def test_not_utf8() -> None:
    first, second, third = read(line("a").encode() + b'\n{"\xff"}\n' + line("b").encode())
    assert second.problem and "UTF-8" in second.problem.message and not first.problem and not third.problem
    plain = read(b"one\n\xff\n")
    assert plain[1].problem and plain[0].request and plain[0].request.asked == "one"


def test_plain_lines() -> None:
    rows = read(b"Wo?\n\n  Wann?\r\n")
    assert [(row.number, row.custom_id, row.request and row.request.asked) for row in rows] == [
        (1, "1", "Wo?"),
        (3, "3", "  Wann?"),
    ]


def test_tables() -> None:
    """Cells over several lines; a column of ids; a row with too few cells is an error, with its number."""
    rows = read(b'id,city\na,"Par\nis"\nb\nc,Rome\nc,Bonn\n', "x.csv")
    assert [(row.number, row.custom_id) for row in rows] == [(2, "a"), (4, "4"), (5, "c"), (6, "c")]
    assert rows[0].request and rows[0].request.asked == "Par\nis"
    assert rows[1].problem and "1 cells" in rows[1].problem.message
    assert rows[3].problem and "line 5 too" in rows[3].problem.message
    tabs = read(b"city\tland\nBonn\tNRW, Germany\n", "x.tsv")
    assert tabs[0].request and tabs[0].request.asked == "Bonn"


@pytest.mark.parametrize("data", [b"", b"a,a\n1,2\n", b"a\n\xff\n", b'a,b\n1,"open\n2,x\n'])
def test_no_table(data: bytes) -> None:
    with pytest.raises(UsageError):
        read(data, "x.csv")


def test_ids_say_what_the_row_says() -> None:
    """So that results of another file are noticed."""
    one, other = read(b"a\nb\n"), read(b"a\nc\n")
    assert one[0].id == other[0].id and one[1].id != other[1].id and one[0].id != one[1].id
    assert form_of(b"hi", "x.jsonl") == "jsonl" and form_of(b"hi", "x") == "lines"
