"""Conversations with tools in the shape that a template takes; of one that knows of none, or tells of none, in words.

What comes in is OpenAI's form: `tool_calls` of an assistant, whose arguments are a text of JSON, and results with the
role "tool".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmrun.engine.child.tool_syntax import GENERIC, ID, INDEX, Parts, ToolSyntax
from llmrun.engine.child.written import Written, concat, own

_TOLD = """You may call functions. These are there, one in each line:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON, and nothing behind:
"""
_VARIABLE = {ID: "ID", INDEX: "0"}


def fitted(
    syntax: ToolSyntax, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools for the template."""
    made = [_in_words(message) if syntax.is_generic else _of_template(syntax, message) for message in messages]
    if syntax.is_told and not syntax.is_generic:
        return made, tools
    return _told(syntax, made, tools) if tools else made, None


def _of_template(syntax: ToolSyntax, message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    made = {**message, "tool_calls": [_call(call, as_text=syntax.as_text) for call in calls]}
    if not made.get("content"):
        made.pop("content", None)
        if syntax.content is not False:
            made["content"] = syntax.content
    return made


def _call(call: dict[str, Any], *, as_text: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    if not as_text:
        arguments = _loaded(arguments)
    return {**call, "function": {**function, "arguments": arguments}}


def _loaded(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments or "{}")
    except ValueError:
        return arguments


def _told(syntax: ToolSyntax, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system's words tell which tools there are. Control tokens in the form of a call are the template's."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    form = (*syntax.lead, *syntax.pre, "NAME", *syntax.mid, "ARGUMENTS", *syntax.post, *syntax.end)
    told = [Written(_TOLD.format(tools=listed)), own(_written(form).strip())]
    if messages and messages[0]["role"] == "system":
        before = [Written(f"{messages[0]['content']}\n\n")]
        return [{**messages[0], "content": concat([*before, *told])}, *messages[1:]]
    return [{"role": "system", "content": concat(told)}, *messages]


def _written(parts: Parts) -> str:
    return "".join(_VARIABLE.get(part, part) for part in parts)


def _in_words(message: dict[str, Any]) -> dict[str, Any]:
    """A call as the model writes it, a result as the user hands it in."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    pre, mid, post = (_written(parts) for parts in (GENERIC.pre, GENERIC.mid, GENERIC.post))
    written = [f"{pre}{call['function']['name']}{mid}{call['function']['arguments']}{post}" for call in calls]
    text = "\n".join(filter(None, [message.get("content") or "", *written]))
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": text}
