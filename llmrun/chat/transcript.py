"""A conversation outside of its database: Markdown for people, JSON that is read back.

as_markdown(conversation)                            # Title, ## You, ## qwen3:4b, …
from_document(as_document(conversation), "a.json")   the same conversation, its turns numbered from 1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from llmrun.chat.store import Conversation, Role, Turn
from llmrun.errors import UsageError

SCHEMA = "llmrun.conversation/1"
"""Name and major version. New fields that may be missing leave it; what old readers would misread raises it."""

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


def as_markdown(conversation: Conversation, *, thinking: bool = True) -> str:
    """What was said, each turn below a heading; what the model thought is quoted, or left out."""
    about = [conversation.model, conversation.created.replace("T", " ").replace("Z", " UTC"), conversation.id]
    parts = [f"# {conversation.title or 'Conversation'}", " · ".join(part for part in about if part)]
    if conversation.system:
        parts += ["## System", _closed(conversation.system)]
    for turn in conversation.turns:
        parts.append("## You" if turn.role == "user" else f"## {turn.model or conversation.model or 'Assistant'}")
        if thinking and turn.thinking.strip():
            parts.append("\n".join(f"> {line}".rstrip() for line in _closed(turn.thinking.strip()).split("\n")))
        parts.append(_closed(turn.content.strip("\n")))
        if not turn.whole:
            parts.append("*(cut short)*")
    return "\n\n".join(part for part in parts if part) + "\n"


def _closed(text: str) -> str:
    """With an end for a block of code that has none: what follows is no part of it."""
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
    return {
        "schema": SCHEMA,
        "id": conversation.id,
        "created": conversation.created,
        "updated": conversation.updated,
        "model": conversation.model,
        "title": conversation.title,
        "system": conversation.system,
        "settings": dict(conversation.settings),
        "messages": [
            {
                "role": turn.role,
                "content": turn.content,
                "thinking": turn.thinking,
                "created": turn.created,
                "model": turn.model,
                "stop_reason": turn.stop_reason,
                "timing": dict(turn.timing),
                "whole": turn.whole,
            }
            for turn in conversation.turns
        ],
    }


def from_document(document: Any, where: str) -> Conversation:
    """What `as_document` made, or someone by hand: only "schema", "messages", their "role" and "content" must be there.

    Fields that are unknown are ignored. Raises `UsageError`; `where` names the document in it.
    """
    if not isinstance(document, Mapping):
        raise UsageError(
            f"{where}: no conversation: it is no JSON object", hint="llmrun history export ID -o FILE.json"
        )
    schema = document.get("schema")
    if schema != SCHEMA:
        name, _, version = str(schema).partition("/")
        if name == SCHEMA.partition("/")[0] and version.isdigit():
            raise UsageError(f"{where}: {schema} is from another version of llmrun; this one reads {SCHEMA}")
        raise UsageError(f"{where}: no conversation: its schema is {str(schema)[:60]!r}, not {SCHEMA!r}")
    messages = _get(document, "messages", list, where, None)
    return Conversation(
        id=_get(document, "id", str, where, ""),
        created=_get(document, "created", str, where, ""),
        updated=_get(document, "updated", str, where, ""),
        model=_get(document, "model", str, where, ""),
        title=_get(document, "title", str, where, ""),
        system=_get(document, "system", str, where, ""),
        settings=_get(document, "settings", dict, where, {}),
        turns=tuple(_turn(number, each, f"{where}: messages[{number - 1}]") for number, each in enumerate(messages, 1)),
    )


def _turn(number: int, message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where}: is no JSON object")
    role = _get(message, "role", str, where, None)
    if role not in get_args(Role):
        raise UsageError(f"{where}: the role is {role[:60]!r}, none of {', '.join(get_args(Role))}")
    return Turn(
        id=number,
        role=role,
        content=_get(message, "content", str, where, None),
        thinking=_get(message, "thinking", str, where, ""),
        created=_get(message, "created", str, where, ""),
        model=None if message.get("model") is None else _get(message, "model", str, where, None),
        stop_reason=None if message.get("stop_reason") is None else _get(message, "stop_reason", str, where, None),
        timing=_get(message, "timing", dict, where, {}),
        whole=_get(message, "whole", bool, where, True),
    )


_WORDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}


def _get(document: Mapping[str, Any], field: str, kind: type, where: str, default: Any) -> Any:
    """The field's value; `default` where it is missing, unless that is None."""
    if field not in document and default is not None:
        return default
    if not isinstance(value := document.get(field), kind):
        raise UsageError(f"{where}: {field} is {'not there' if field not in document else f'not {_WORDS[kind]}'}")
    return value
