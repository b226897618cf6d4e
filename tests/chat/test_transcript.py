"""Conversations as files: Markdown for people, JSON that comes back as the same conversation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmrun.chat.store import Conversations, Turn
from llmrun.chat.transcript import as_document, as_markdown, from_document
from llmrun.errors import UsageError


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Conversations]:
    with Conversations(tmp_path / "conversations.db") as opened:
        yield opened


def test_document(kept: Conversations) -> None:
    """Through JSON and back it is the same conversation."""
    id = kept.create("tiny", system="Be kind.", settings={"temp": 0})
    kept.add(id, Turn("user", 'Say "\x1b[31m" \0 ä 😀'))
    kept.add(id, Turn("assistant", "ok", thinking="hm", model="tiny", stop_reason="stop", timing={"ttft_s": 0.5}))
    kept.append(kept.begin_answer(id, "tiny"), "cut")
    read = kept.read(id)
    document = json.loads(json.dumps(as_document(read)))
    assert document["schema"] == "llmrun.conversation/1"
    assert document["messages"][1]["timing"] == {"ttft_s": 0.5}
    again = from_document(document, "a.json")
    assert again == replace(read, turns=tuple(replace(turn, id=i) for i, turn in enumerate(read.turns, 1)))
    least = from_document({"schema": document["schema"], "messages": [{"role": "user", "content": "x"}], "new": 1}, "a")
    assert least.turns[0].content == "x" and least.turns[0].whole


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "a.json: not a conversation: it is not a JSON object"),
        ({}, "schema is 'None'"),
        ({"schema": "llmrun.bench/1"}, "schema is 'llmrun.bench/1'"),
        ({"schema": "llmrun.conversation/2"}, "another version of llmrun"),
        ({"schema": "llmrun.conversation/1"}, "missing required field `messages`"),
        ({"schema": "llmrun.conversation/1", "messages": {}}, r"Expected `array`, got `object` - at `\$.messages`"),
        ({"schema": "llmrun.conversation/1", "messages": [1]}, r"Expected `object`, got `int` - at `\$.messages\[0\]`"),
        (
            {"schema": "llmrun.conversation/1", "messages": [{"role": "user"}]},
            r"missing required field `content` - at `\$.messages\[0\]`",
        ),
        (
            {"schema": "llmrun.conversation/1", "messages": [{"role": "cat", "content": ""}]},
            r"Invalid enum value 'cat' - at `\$.messages\[0\].role`",
        ),
        (
            {"schema": "llmrun.conversation/1", "messages": [{"role": "user", "content": 1}]},
            r"Expected `str`, got `int` - at `\$.messages\[0\].content`",
        ),
        (
            {"schema": "llmrun.conversation/1", "messages": [], "settings": []},
            r"Expected `object`, got `array` - at `\$.settings`",
        ),
        (
            {"schema": "llmrun.conversation/1", "messages": [], "title": None},
            r"Expected `str`, got `null` - at `\$.title`",
        ),
    ],
)
def test_not_a_conversation(document: object, message: str) -> None:
    """A document that is not a conversation is refused, with the place that is wrong."""
    with pytest.raises(UsageError, match=message):
        from_document(document, "a.json")


def test_markdown(kept: Conversations) -> None:
    """Headings for turns, thoughts quoted, a block of code that was cut short closed, the cut told."""
    id = kept.create("tiny", system="Be kind.")
    kept.add(id, Turn("user", "Hello"))
    turn = kept.begin_answer(id, "tiny")
    kept.append(turn, "Look:\n```python\nprint(1)", "so\n\nso")
    read = kept.read(id)
    when = read.created.replace("T", " ").replace("Z", " UTC")
    assert as_markdown(read) == (
        f"# Hello\n\ntiny · {when} · {id}\n\n## System\n\nBe kind.\n\n## You\n\nHello\n\n## tiny\n\n"
        "> so\n>\n> so\n\nLook:\n```python\nprint(1)\n```\n\n*(cut short)*\n"
    )
    assert "> so" not in as_markdown(read, thinking=False)
