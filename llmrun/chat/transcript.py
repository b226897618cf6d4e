"""A conversation as a file: Markdown for people, JSON that can be read back.

as_markdown(conversation)                            # Title, ## You, ## qwen3:4b, …
from_document(as_document(conversation), "a.json")   the same conversation, its turns numbered from 1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llmrun import codec
from llmrun.chat.store import Conversation, Turn
from llmrun.errors import Act, UsageError

SCHEMA = "llmrun.conversation/1"
"""Name and major version. New fields that may be missing leave it; what old readers would misread raises it."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def as_markdown(conversation: Conversation, *, thinking: bool = True) -> str:
    """Each turn below a heading; the thinking is quoted, or left out."""
    about = [conversation.model, conversation.created.replace("T", " ").replace("Z", " UTC"), conversation.id]
    parts = [f"# {conversation.title or 'Conversation'}", " · ".join(part for part in about if part)]
    if conversation.system:
        parts += ["## System", _closed(conversation.system)]
    for turn in conversation.turns:
        called = turn.calls[0].name if turn.calls else "a tool"
        whose = {"user": "You", "tool": f"Result of {called}"}.get(turn.role)
        parts.append(f"## {whose or turn.model or conversation.model or 'Assistant'}")
        if thinking and turn.thinking.strip():
            parts.append("\n".join(f"> {line}".rstrip() for line in _closed(turn.thinking.strip()).split("\n")))
        parts.append(_closed(turn.content.strip("\n")))
        if turn.role == "assistant":
            parts += [f"    {' '.join(f'{each.name}({each.arguments})'.split())}" for each in turn.calls]
        if not turn.whole:
            parts.append("*(cut short)*")
    return "\n\n".join(part for part in parts if part) + "\n"


def _closed(text: str) -> str:
    """The text, with an end for a block of code that has none: what follows it is not code."""
    fence = ""
    for line in text.split("\n"):
        found = _FENCE.fullmatch(line.rstrip("\r"))
        if found is None:
            continue
        if not fence:
            fence = found[1]
        elif found[1].startswith(fence) and not found[2].strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


def as_document(conversation: Conversation) -> dict[str, Any]:
    """Plain data for JSON, without loss."""
    about = {name: value for name, value in vars(conversation).items() if name != "turns"}
    return {"schema": SCHEMA, **about, "messages": [_message(turn) for turn in conversation.turns]}


def _message(turn: Turn) -> dict[str, Any]:
    said = {name: value for name, value in vars(turn).items() if name not in ("id", "calls")}
    return {**said, **({"calls": [vars(each) for each in turn.calls]} if turn.calls else {})}


@dataclass
class _Document:
    messages: list[Turn]
    id: str = ""
    created: str = ""
    updated: str = ""
    model: str = ""
    title: str = ""
    system: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def from_document(document: Any, where: str) -> Conversation:
    """Reads what `as_document` made, or somebody wrote: "schema" and "messages" with "role" and "content" are required.

    Unknown fields are ignored. Raises `UsageError`; `where` names the document in it.
    """
    if not isinstance(document, Mapping):
        raise UsageError(
            f"{where}: not a conversation: it is not a JSON object",
            hint=Act("history export", "ID", {"output": "FILE.json"}),
        )
    schema = document.get("schema")
    if schema != SCHEMA:
        name, _, version = str(schema).partition("/")
        if name == SCHEMA.partition("/")[0] and version.isdigit():
            raise UsageError(f"{where}: {schema} is from another version of llmrun; this one reads {SCHEMA}")
        raise UsageError(f"{where}: not a conversation: its schema is {str(schema)[:60]!r}, not {SCHEMA!r}")
    try:
        read = codec.convert(document, _Document)
    except codec.Malformed as error:
        raise UsageError(f"{where}: {error}") from None
    turns = tuple(replace(turn, id=number) for number, turn in enumerate(read.messages, 1))
    return Conversation(read.id, read.created, read.updated, read.model, read.title, read.system, read.settings, turns)
