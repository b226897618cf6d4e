"""OpenAI's newer form of requests and answers: responses.

Nothing is kept between two of them, so that `previous_response_id` is refused, and whoever goes on sends all that was
said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llmrun import codec
from llmrun.codec import Meta, Struct, words
from llmrun.engine.protocol import new_call_id
from llmrun.wire.openai import call_of, text_of_parts
from llmrun.wire.request import (
    EFFORTS,
    Choice,
    Event,
    Function,
    Piece,
    Refused,
    Request,
    chosen,
    effort_of,
    format_of_json,
    format_of_schema,
    refusals,
    sampling_of,
    timings,
    tools_of,
)

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.engine.interface import Answer
    from llmrun.options.sampling import SamplingConfig

RESPONSES = "/v1/responses"
_NOT_MADE = frozenset(
    """reasoning.encrypted_content web_search_call.action.sources web_search_call.results file_search_call.results
    code_interpreter_call.outputs computer_call_output.output.image_url message.input_image.image_url""".split()
)
"""What would be included of things that no answer here has."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class _Part(Struct):
    type: str
    text: str | None = None


class _Item(Struct):
    """A message, what was thought before one, a call and its result, or something that is not held."""

    type: Annotated[str, words(["message", "reasoning", "function_call", "function_call_output"])] = "message"
    role: Annotated[str, words(_ROLES)] | None = None
    content: str | list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[_Part] | None = None


class _Format(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class _Text(Struct, forbid_unknown_fields=True):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(Struct, forbid_unknown_fields=True):
    effort: Annotated[str, words(EFFORTS)] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class _Tool(Struct):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _ToolChoice(Struct):
    type: str
    name: str | None = None


class ResponsesBody(Struct, forbid_unknown_fields=True, kw_only=True):
    input: str | Annotated[list[_Item], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: int | None = None
    # Of no meaning here, and of none for an answer.
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    client_metadata: dict[str, Any] | None = None
    stream_options: dict[str, Any] | None = None


def request_of(body: bytes, sampling: SamplingConfig, answers: AnswerOptions) -> Request:
    """As `openai.request_of`."""
    with refusals():
        asked = codec.decode(body, ResponsesBody)
        _refuse(asked)
        answers = effort_of(answers, asked.reasoning.effort if asked.reasoning else None, "reasoning.effort")
        wanted = asked.text.format if asked.text else None
        if wanted is not None and wanted.type != "text":
            if wanted.type == "json_schema" and wanted.schema is None:
                raise Refused("text.format.schema is missing", "text.format")
            schema = wanted.schema
            form = format_of_schema(codec.encode(schema)) if schema is not None else format_of_json()
            answers = replace(answers, output_format=form)
        found = _tools(asked)
        if found.tools and answers.output_format is not None:
            raise Refused("tools and text.format: an answer has one form", "text.format")
        given = {"max_tokens": asked.max_output_tokens, "temperature": asked.temperature, "top_p": asked.top_p}
        return Request(
            _messages(asked),
            sampling_of(given, sampling, None),
            answers,
            True,
            model=asked.model,
            streams=bool(asked.stream),
            tools=found.tools,
            must_call=found.must_call,
            several_calls=asked.parallel_tool_calls is not False,
            echo=_echo(asked),
        )


def _echo(asked: ResponsesBody) -> dict[str, Any]:
    """What the answer's document says again."""
    choice = asked.tool_choice or "auto"
    form: dict[str, Any] = {"type": "text"}
    if asked.text and asked.text.format:
        form = {name: value for name, value in codec.plain(asked.text.format).items() if value is not None}
    return {
        "instructions": asked.instructions,
        "metadata": asked.metadata or {},
        "reasoning": {"effort": asked.reasoning.effort if asked.reasoning else None, "summary": None},
        "text": {"format": form},
        "tool_choice": choice if isinstance(choice, str) else codec.plain(choice),
    }


def _refuse(asked: ResponsesBody) -> None:
    if asked.previous_response_id is not None or asked.conversation is not None:
        name = "previous_response_id" if asked.previous_response_id is not None else "conversation"
        raise Refused(f"{name}: nothing is kept here between two requests: send all that was said", name)
    if asked.background:
        raise Refused("background: an answer is made while somebody waits for it", "background")
    if asked.truncation == "auto":
        raise Refused("truncation: nothing is cut without being asked for: send what fits", "truncation")
    for wanted in asked.include or ():
        if wanted not in _NOT_MADE:
            raise Refused(f"include: {wanted[:60]!r} is not held here", "include")
    if asked.top_logprobs:
        raise Refused("top_logprobs is held by /v1/chat/completions alone", "top_logprobs")


def _tools(asked: ResponsesBody) -> Choice:
    """Functions; what OpenAI's own servers would do (searching, computing) nobody does here, and it is left out."""
    functions = [
        Function(tool.name or "", tool.description, tool.parameters)
        for tool in asked.tools or ()
        if tool.type == "function"
    ]
    tools, choice = tools_of(functions, "tools"), asked.tool_choice
    if not isinstance(choice, _ToolChoice):
        return chosen(tools, choice, None, "tool_choice")
    if choice.type != "function":
        raise Refused(f"tool_choice is {choice.type[:40]!r}: functions alone can be chosen", "tool_choice")
    return chosen(tools, "one", choice.name, "tool_choice")


def _messages(asked: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    thought = ""
    for i, item in enumerate(asked.input):
        where = f"input[{i}]"
        if item.type == "reasoning":
            parts = item.content if isinstance(item.content, list) else ()
            thought = "".join(part.text or "" for part in parts)
            continue
        if item.type == "function_call":
            call = call_of(item.call_id, item.name or "", item.arguments or "")
            if messages and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                thinks = {"reasoning_content": thought} if thought else {}
                messages.append({"role": "assistant", "content": "", "tool_calls": [call], **thinks})
            continue
        if item.type == "function_call_output":
            told = text_of_parts(item.output or "", where, ("input_text", "output_text", "text"))
            messages.append({"role": "tool", "content": told, "tool_call_id": item.call_id or ""})
            continue
        if item.type != "message":
            raise Refused(f"{where} is {item.type[:40]!r}: messages and calls are held", where)
        role = _ROLES.get(item.role or "")
        if role is None:
            raise Refused(f"{where}.role is {item.role!r}: there are {', '.join(_ROLES)}", f"{where}.role")
        if item.content is None:
            raise Refused(f"{where}.content is missing", f"{where}.content")
        text = text_of_parts(item.content, f"{where}.content", ("input_text", "output_text", "text"))
        said = {"role": role, "content": text}
        if thought and role == "assistant":
            said["reasoning_content"] = thought
        thought = ""
        messages.append(said)
    return messages


# -- answers -----------------------------------------------------------------------------------------------------------


class Response:
    """The answer of a request: as a whole, and as events."""

    def __init__(self, request: Request, *, id_: str, model: str, created: int) -> None:
        self._request, self._id, self._model, self._created = request, f"resp_{id_}", model, created
        self._number = -1
        self._done: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is being made, with what it says so far

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        (answer,) = answers
        items: list[dict[str, Any]] = []
        if answer.thinking:
            items.append(self._item("reasoning", len(items), answer.thinking, "completed"))
        calls = answer.calls
        if answer.text or not (items or calls):
            items.append(self._item("message", len(items), answer.text, "completed"))
        for call in calls:
            items.append(self._call(len(items), call.name, call.arguments, "completed"))
        if _is_cut(answer):
            items[-1]["status"] = "incomplete"
        return self._document(items, answer)

    def begin(self, i: int, answer: Answer) -> Iterator[Event]:
        document = self._document([], answer, running=True)
        yield self._event("response.created", response=document)
        yield self._event("response.in_progress", response=document)

    def piece(self, i: int, piece: Piece, answer: Answer) -> Iterator[Event]:
        for kind, text in (("reasoning", piece.thought), ("message", piece.text)):
            if text:
                yield from self._within(kind)
                yield from self._said(text)
        for call in piece.calls:
            if call.name:
                yield from self._closed()
                self._open = self._call(len(self._done), call.name, "", "in_progress")
                yield self._event("response.output_item.added", output_index=len(self._done), item={**self._open})
            if call.arguments and self._open is not None:
                self._open["arguments"] += call.arguments
                place = {"item_id": self._open["id"], "output_index": len(self._done)}
                yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)

    def end(self, i: int, answer: Answer) -> Iterator[Event]:
        if self._open is None and not self._done:
            yield from self._within("message")
        yield from self._closed("incomplete" if _is_cut(answer) else "completed")
        document = self._document(self._done, answer)
        yield self._event(f"response.{document['status']}", response=document)

    def close(self, answers: Sequence[Answer]) -> Iterator[Event]:
        return iter(())

    def failed(self, message: str, code: str | None) -> Event:
        """For one who reads the stream when an error ends it."""
        return self._event("error", code=code, message=message, param=None)

    def _within(self, kind: str) -> Iterator[Event]:
        if self._open is not None and self._open["type"] == kind:
            return
        yield from self._closed()
        self._open = item = self._item(kind, len(self._done), "", "in_progress")
        at = len(self._done)
        yield self._event("response.output_item.added", output_index=at, item={**item, "content": []})
        yield self._event("response.content_part.added", **self._place(), part=item["content"][0])

    def _said(self, text: str) -> Iterator[Event]:
        assert self._open is not None
        part = self._open["content"][0]
        self._open["content"] = [{**part, "text": part["text"] + text}]
        name = "output_text" if self._open["type"] == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if name == "output_text" else {}
        yield self._event(f"response.{name}.delta", **self._place(), delta=text, **more)

    def _closed(self, status: str = "completed") -> Iterator[Event]:
        if self._open is None:
            return
        item = {**self._open, "status": status}
        if item["type"] == "function_call":
            place = {"item_id": item["id"], "output_index": len(self._done)}
            yield self._event("response.function_call_arguments.done", **place, arguments=item["arguments"])
            yield self._event("response.output_item.done", output_index=len(self._done), item=item)
            self._done.append(item)
            self._open = None
            return
        (part,) = item["content"]
        name = "output_text" if item["type"] == "message" else "reasoning_text"
        more: dict[str, Any] = {"logprobs": []} if name == "output_text" else {}
        yield self._event(f"response.{name}.done", **self._place(), text=part["text"], **more)
        yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=len(self._done), item=item)
        self._done.append(item)
        self._open = None

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._done), "content_index": 0}

    def _item(self, kind: str, at: int, text: str, status: str) -> dict[str, Any]:
        number = f"{self._id.removeprefix('resp_')}{at}"
        if kind == "reasoning":
            part: dict[str, Any] = {"type": "reasoning_text", "text": text}
            return {"id": f"rs_{number}", "type": kind, "summary": [], "content": [part], "status": status}
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {"id": f"msg_{number}", "type": kind, "status": status, "role": "assistant", "content": [part]}

    def _call(self, at: int, name: str, arguments: str, status: str) -> dict[str, Any]:
        number = f"{self._id.removeprefix('resp_')}{at}"
        head = {"id": f"fc_{number}", "type": "function_call", "call_id": new_call_id()}
        return {**head, "name": name, "arguments": arguments, "status": status}

    def _event(self, name: str, **fields: Any) -> Event:
        self._number += 1
        return Event(name, {"type": name, "sequence_number": self._number, **fields})

    def _document(self, items: list[dict[str, Any]], answer: Answer, *, running: bool = False) -> dict[str, Any]:
        cut = _is_cut(answer)
        sampling, timing = self._request.sampling, answer.timing
        usage = {
            "input_tokens": timing.n_prompt,
            "input_tokens_details": {"cached_tokens": timing.n_cached},
            "output_tokens": timing.n_generated,
            "output_tokens_details": {"reasoning_tokens": answer.n_thinking},
            "total_tokens": timing.n_prompt + timing.n_generated,
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "in_progress" if running else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut and not running else None,
            "max_output_tokens": sampling.max_tokens if sampling.max_tokens >= 0 else None,
            "model": self._model,
            "output": list(items),
            "parallel_tool_calls": self._request.several_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "tools": [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": True,
                }
                for tool in self._request.tools
            ],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            **self._request.echo,
            "usage": None if running else usage,
            **({} if running else {"timings": timings(timing)}),
        }


def _is_cut(answer: Answer) -> bool:
    return answer.stop_reason in ("length", "context")
