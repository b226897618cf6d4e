"""Conversations with tools in the shape that a template takes; of one that knows of no tools, in words.

What comes in is OpenAI's form: `tool_calls` of an assistant, whose arguments are a text of JSON, and results with the
role "tool".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llmrun.engine.child.tool_syntax import GENERIC, ToolSyntax

_TOLD = """You may call functions. These are there, one in each line:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON, and nothing behind:
<tool_call>
{{"name": NAME, "arguments": ARGUMENTS}}
</tool_call>"""


def fitted(
    syntax: ToolSyntax, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools for the template."""
    if syntax.is_generic:
        return _in_words(messages, tools), None
    return [_of_template(syntax, message) for message in messages], tools


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


def _in_words(messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    made = [_said(message) for message in messages]
    if not tools:
        return made
    told = _TOLD.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    if made and made[0]["role"] == "system":
        return [{**made[0], "content": f"{made[0]['content']}\n\n{told}"}, *made[1:]]
    return [{"role": "system", "content": told}, *made]


def _said(message: dict[str, Any]) -> dict[str, Any]:
    """A call as the model writes it, a result as the user hands it in."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    pre, mid, post = (parts[0] for parts in (GENERIC.pre, GENERIC.mid, GENERIC.post))
    written = [f"{pre}{call['function']['name']}{mid}{call['function']['arguments']}{post}" for call in calls]
    text = "\n".join(filter(None, [message.get("content") or "", *written]))
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": text}
