"""The slash commands of a chat.

What they may do to it is an interface, `Controls`: they know neither the terminal nor how a model is loaded.
"""

from __future__ import annotations

import glob
import json
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llmrun.chat.conversation import CHATML
from llmrun.cli.framework.dials import dials, turned, values_shown
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.files import is_file, path_of, read_text
from llmrun.errors import LlmrunError, NotFound, UsageError
from llmrun.units import count, size

if TYPE_CHECKING:
    from llmrun.chat.conversation import Chat
    from llmrun.chat.store import Conversations
    from llmrun.models.resolve import Model

MOST_BYTES_PER_TOKEN = 16
MOST_FILES = 100
"""That /read takes at once, as in llama-cli."""
LISTED = 20
"""Conversations that /list shows."""


class Controls(Protocol):
    """What a slash command may do to the chat that it is typed in.

    Attributes:
        chat: the conversation.
        found: the model that answers, and `reference` what the user calls it.
        attached: texts that go before the next message.
        verbose: whether figures are shown after each answer.
    """

    chat: Chat
    found: Model
    reference: str
    attached: list[str]
    verbose: bool

    def say(self, text: str) -> None:
        """Tells the user something, beside the conversation."""

    def ask(self, text: str, *, instead: bool = False) -> None:
        """Sends a message, or sends it `instead` of the last one, and shows the answer."""

    def again(self) -> None:
        """Answers the last message again."""

    def edit_last(self) -> None:
        """Offers the last message for editing. Raises `UsageError` where there is no terminal to edit it on."""

    def switch(self, reference: str) -> None:
        """Continues with another model; the old one stays if the new one can't be loaded."""

    def revive(self) -> None:
        """Loads the model again if its engine died."""

    def keep_in(self, open_store: Callable[[], Conversations]) -> Conversations:
        """Opens a store that stays open until the chat ends."""

    def stats(self) -> Iterable[tuple[str, str]]:
        """What the last answer took: names and figures; nothing before the first answer."""

    def show_resumed(self) -> None:
        """Shows the end of a conversation that goes on."""


@dataclass(frozen=True)
class Command:
    """A slash command.

    Attributes:
        takes: what may follow the name, for the help; empty: nothing may.
        does: gets what follows the name; returns False to leave the chat.
    """

    name: str
    takes: str
    help: str
    does: Callable[[Controls, str], bool | None]
    aliases: tuple[str, ...] = ()


def run(controls: Controls, typed: str) -> bool:
    """Runs a line that begins with a slash; False to leave. Raises `UsageError` with the nearest command."""
    name, _, rest = typed.partition(" ")
    name, newline, more = name.partition("\n")
    rest = (more + rest if newline else rest).strip()
    command = _BY_NAME.get(name.lower())
    if command is None:
        near = get_close_matches(name.lower(), _BY_NAME, 1, cutoff=0.0)[0]
        raise UsageError(
            f"there is no command {name[:40]}; the nearest is {near}", hint="/help, or //text for text with a slash"
        )
    if rest and not command.takes:
        raise UsageError(f"{command.name} takes nothing, not '{rest[:40]}'", hint=command.name)
    return command.does(controls, rest) is not False


def names() -> list[str]:
    return list(_BY_NAME)


def words(name: str, prefix: str) -> Iterable[str]:
    """Completions of what may follow a command."""
    if name == "/model":
        from llmrun.cli.framework.completion import model_names

        return model_names(prefix)
    if name == "/load":
        from llmrun.chat.store import Conversations

        try:
            with Conversations() as kept:
                return [each.id for each in kept.list(LISTED)]
        except LlmrunError:
            return []
    return [*(dial.name for dial in dials()), *_SET_OTHERWISE] if name == "/set" else _WORDS.get(name, ())


_WORDS = {
    "/show": ("info", "template", "system", "license", "parameters"),
    "/think": ("show", "fold", "hide", "off", "budget "),
    "/copy": ("code",),
}


# -- the conversation ---


def _help(controls: Controls, _rest: str) -> None:
    rows = [(f"{' '.join((each.name, *each.aliases))} {each.takes}".strip(), each.help) for each in COMMANDS]
    rows += [
        ('""" Alt-Enter Ctrl-G', "several lines: between quotes, one more, in $EDITOR"),
        ("Ctrl-C Ctrl-R Tab", "stop the answer; search what was typed; complete"),
    ]
    tables.show_pairs(rows)


def _clear(controls: Controls, _rest: str) -> None:
    controls.chat.clear()
    controls.attached.clear()
    controls.say("a new conversation" + ("; the one before is kept: /list" if controls.chat.is_kept else ""))


def _undo(controls: Controls, _rest: str) -> None:
    message = controls.chat.undo()
    first = message.splitlines()[0] if message else ""
    controls.say(f"taken back: {first[:60]}")


def _edit(controls: Controls, rest: str) -> None:
    if rest:
        controls.ask(rest, instead=True)
    else:
        controls.edit_last()


def _system(controls: Controls, rest: str) -> None:
    if not rest:
        screen.out((controls.chat.system or "no system prompt") + "\n")
        return
    controls.chat.set_system("" if rest in ('""', "off", "none") else rest)
    controls.say("no system prompt" if not controls.chat.system else "the system prompt counts from the next answer on")


def _set(controls: Controls, rest: str) -> None:
    name, _, text = rest.partition(" ")
    if name in _SET_OTHERWISE:
        _SET_OTHERWISE[name](controls, text.strip())
        return
    if text := text.strip():
        controls.chat.sampling = turned(controls.chat.sampling, name, text)
        ((option, value, _),) = values_shown(controls.chat.sampling, name)
        controls.say(f"{option} is {value}")
    else:
        tables.show(("OPTION", "VALUE", "…"), values_shown(controls.chat.sampling, name))


def _set_format(controls: Controls, rest: str) -> None:
    if rest not in ("json", ""):
        raise UsageError(f"/set format: '{rest[:40]}' is not json", hint="/set format json, or /set noformat")
    if rest and controls.chat.toolbox:
        raise UsageError("/set format: answers may call tools, and have no other form beside that")
    from llmrun.constrain.output_format import of_json

    controls.chat.options = replace(controls.chat.options, output_format=of_json() if rest else None)
    controls.say("answers are JSON" if rest else "answers are free")


def _set_verbose(controls: Controls, wanted: bool) -> None:
    controls.verbose = wanted
    controls.say("figures after each answer" if wanted else "no figures after answers")


# What users of ollama type.
_SET_OTHERWISE: dict[str, Callable[[Controls, str], None]] = {
    "parameter": lambda controls, rest: _set(controls, rest),
    "system": lambda controls, rest: _system(controls, rest),
    "think": lambda controls, _: _think(controls, "show"),
    "nothink": lambda controls, _: _think(controls, "off"),
    "format": _set_format,
    "noformat": lambda controls, _: _set_format(controls, ""),
    "verbose": lambda controls, _: _set_verbose(controls, True),
    "quiet": lambda controls, _: _set_verbose(controls, False),
}


def _think(controls: Controls, rest: str) -> None:
    options = controls.chat.options
    name, _, number = rest.partition(" ")
    try:
        if name == "budget":
            options = replace(options, think_budget=None if number.strip() in ("", "none") else int(number))
        elif rest:
            options = replace(options, think=rest)  # type: ignore[arg-type]  # checked there
    except ValueError:
        raise UsageError(f"/think budget: '{number[:40]}' is not a number", hint="/think budget 500") from None
    except UsageError as error:
        which = "/think budget" if name == "budget" else "/think"
        raise UsageError(f"{which}: {error.message}", hint="/think fold, or /think budget 500") from None
    controls.chat.options = options
    limit = "no budget" if options.think_budget is None else f"at most {options.think_budget} tokens"
    generation = controls.chat.generation
    unable = generation is not None and generation.thinks is False
    controls.say(f"thinking: {options.think}, {limit}" + ("; this model's template has none" if unable else ""))


# -- about the model ---


def _show(controls: Controls, rest: str) -> None:
    from llmrun.cli.answering.report import layers

    chat, engine, header = controls.chat, controls.chat.engine, controls.found.header
    if rest and rest != "info":
        shown: dict[str, Callable[[], str]] = {
            "template": lambda: chat.options.chat_template or header.chat_template or CHATML,
            "system": lambda: chat.system or "no system prompt",
            "license": lambda: str(header.metadata.get("general.license") or "the file does not name one"),
            "parameters": lambda: "\n".join(f"{name}  {value}" for name, value, _ in values_shown(chat.sampling)),
        }
        if rest not in shown:
            raise UsageError(f"/show: '{rest[:40]}' is none of {', '.join(_WORDS['/show'])}", hint="/show")
        screen.out(shown[rest]().rstrip("\n") + "\n")
        return
    if engine.server:
        where, weights = [("server", engine.server)], header.file_size
        how = []
    else:
        where, weights = [("file", str(controls.found.path))], header.weight_bytes
        how = [("layers", layers(engine.plan.placement.layers)), ("threads", str(engine.n_threads))]
    tables.show_pairs(
        [
            ("model", f"{controls.found.name}, {engine.loaded.description}"),
            *where,
            ("parameters", f"{count(engine.loaded.n_params)}, {size(weights)} of weights"),
            ("context", f"{chat.n_used} used of {engine.n_ctx_most}, {engine.loaded.n_ctx_train} trained"),
            *how,
            ("template", "its own" if header.chat_template else "none: ChatML"),
            ("system", chat.system or "none"),
            *([("tools", ", ".join(each.name for each in chat.toolbox.tools))] if chat.toolbox else []),
            ("conversation", chat.id or ("not kept" if not chat.is_kept else "empty")),
        ]
    )


def _stats(controls: Controls, _rest: str) -> None:
    rows = list(controls.stats())
    if not rows:
        raise UsageError("there is no answer yet")
    tables.show_pairs(rows)


def _model(controls: Controls, rest: str) -> None:
    if rest:
        controls.switch(rest)
        controls.say(f"{controls.found.name}: the conversation goes on")
        return
    from llmrun.cli.framework.completion import model_names

    controls.say(f"now {controls.reference}; here are:")
    screen.out("".join(f"{name}\n" for name in model_names("")))


def _tokens(controls: Controls, rest: str) -> None:
    chat = controls.chat
    if rest:
        screen.out(f"{_count(chat, rest)}\n")
        return
    rows = []
    if chat.system:
        rows.append(("system", str(_count(chat, chat.system))))
    for i, turn in enumerate(chat.turns):
        first = next(iter(turn.content.splitlines()), "")
        gone = " (no longer given to the model)" if i < chat.n_dropped else ""
        rows.append((turn.role, f"{_count(chat, turn.content)}{gone}  {first[:50]}"))
    whole = chat.n_tokens(chat.messages()) if chat.turns else 0
    rows.append(("as the template has it", f"{whole} of {chat.engine.n_ctx_most}"))
    tables.show_pairs(rows)


def _count(chat: Chat, text: str) -> int:
    """The tokens of a text, without those that only begin a prompt (BOS)."""
    return chat.engine.count(text) - chat.engine.count("")


# -- what is kept ---


def _save(controls: Controls, rest: str) -> None:
    from llmrun.chat.store import Conversations

    id = controls.chat.set_title(rest, None if controls.chat.is_kept else controls.keep_in(Conversations))
    controls.say(f"kept as {id}" + (f", {rest}" if rest else "") + f"; llmrun chat --resume {id}")


def _load(controls: Controls, rest: str) -> None:
    from llmrun.chat.store import Conversations

    if not rest:
        raise UsageError("/load: no conversation is named", hint="/list, then /load ID, or /load FILE.json")
    if is_file(rest):
        from llmrun.chat.transcript import from_document

        try:
            document = json.loads(read_text("/load", rest))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"/load: '{rest[:100]}' is not JSON: {error}") from None
        controls.chat.copy(from_document(document, rest))
    else:
        with Conversations() as kept:
            conversation = kept.read(_found(kept, rest))
        controls.chat.resume(conversation)
    controls.show_resumed()


def _found(kept: Conversations, words_: str) -> str:
    """The id of a conversation, by its id or by its title. Raises `NotFound`."""
    try:
        return kept.find(words_)
    except NotFound as error:
        same = [each.id for each in kept.list() if words_.lower() in each.title.lower()]
        if len(same) != 1:
            raise NotFound(error.message, hint="/list") from None
        return same[0]


def _list(_talk: Controls, _rest: str) -> None:
    from llmrun.chat.store import Conversations
    from llmrun.cli.chat import conversation_table

    with Conversations() as kept:
        conversation_table.show(kept.list(LISTED))


def _read(controls: Controls, rest: str) -> None:
    if not rest:
        raise UsageError("/read: no file is named", hint="/read FILE")
    names = _files(rest)
    n_ctx = controls.chat.engine.n_ctx_most
    controls.revive()
    texts = []
    for name in names:
        if not is_file(name) and path_of("/read", name).exists():
            raise UsageError(f"/read: '{name[:100]}' is not a file", hint="/read FILE")
        texts.append(read_text("/read", name).rstrip("\n"))
        n_bytes = len(texts[-1].encode())
        if n_bytes > MOST_BYTES_PER_TOKEN * n_ctx:
            raise UsageError(f"/read: '{name[:100]}' has {size(n_bytes)}, far more than {n_ctx} tokens of context hold")
    counts = [_count(controls.chat, text) for text in texts]
    for name, text, n_tokens in zip(names, texts, counts, strict=True):
        controls.say(f"{name}: {size(len(text.encode()))}, {n_tokens} tokens, before your next message")
    # Of one file the text alone, as if it were typed; of several, which is which.
    controls.attached += (
        texts if len(names) == 1 else [f"{name}:\n\n{text}" for name, text in zip(names, texts, strict=True)]
    )


def _files(typed: str) -> list[str]:
    """The files that are meant: one name, which may have blanks, or several names and patterns."""
    if is_file(typed):
        return [typed]
    try:
        parts = shlex.split(typed)
    except ValueError as error:
        raise UsageError(f"/read: {error} in {typed[:60]}", hint="/read FILE") from None
    names = []
    for part in parts:
        matches = sorted(glob.glob(os.path.expanduser(part), recursive=True)) if glob.has_magic(part) else [part]  # noqa: PTH111, PTH207
        names += [each for each in matches if Path(each).is_file()] if glob.has_magic(part) else matches
        if not matches:
            raise NotFound(f"/read: no file matches '{part[:100]}'", hint="/read FILE")
    if len(names) > MOST_FILES:
        raise UsageError(f"/read: {len(names)} files, and at most {MOST_FILES} are possible", hint="/read FILE")
    return names


def _export(controls: Controls, rest: str) -> None:
    from llmrun.chat.transcript import as_document, as_markdown
    from llmrun.fs import disk_errors, write_atomically

    if not rest:
        screen.out(as_markdown(controls.chat.as_conversation()))
        return
    path = path_of("/export", rest)
    if path.exists():
        raise UsageError(f"/export: {rest[:100]} exists already", hint="/export ANOTHER.md")
    with disk_errors(f"writing {path}"):
        conversation = controls.chat.as_conversation()
        if path.suffix == ".json":
            write_atomically(path, json.dumps(as_document(conversation), indent=1, ensure_ascii=False) + "\n")
        else:
            write_atomically(path, as_markdown(conversation))
    controls.say(f"{len(controls.chat.turns)} turns in {path}")


def _copy(controls: Controls, rest: str) -> None:
    from llmrun.cli.terminal.clipboard import copy

    answer = controls.chat.last_answer
    if answer is None:
        raise UsageError("there is no answer yet")
    text = answer.content
    if rest == "code":
        text = last_code(text)
    elif rest:
        raise UsageError(f"/copy: '{rest[:40]}' is not code", hint="/copy code")
    controls.say(copy(text))


def last_code(text: str) -> str:
    """The last fenced block. Raises `UsageError` if there is none."""
    from markdown_it import MarkdownIt

    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]
    if not blocks:
        raise UsageError("there is no code in the last answer", hint="/copy")
    return blocks[-1]


COMMANDS = [
    Command("/help", "", "this list", _help, ("/?",)),
    Command("/bye", "", "leave, as Ctrl-D does", lambda *_: False, ("/exit",)),
    Command("/clear", "", "begin another conversation", _clear),
    Command("/regen", "", "answer the last message again", lambda controls, _: controls.again()),
    Command("/undo", "", "take back the last message and its answer", _undo),
    Command("/edit", "[TEXT]", "change the last message, and answer it", _edit),
    Command("/system", "[TEXT|off]", "the system prompt", _system),
    Command("/set", "[OPTION [VALUE]]", "sampling options; all of them without one", _set),
    Command("/think", "[HOW|budget N]", "thinking: show, fold, hide or off; at most N tokens", _think),
    Command("/model", "[NAME]", "go on with another model", _model),
    Command("/show", "[template|license]", "what runs here", _show),
    Command("/stats", "", "what the last answer took", _stats),
    Command("/tokens", "[TEXT]", "tokens of the conversation, or of a text", _tokens),
    Command("/read", "FILE...", "put files before the next message; also *.py", _read),
    Command("/copy", "[code]", "the last answer, or its last code, to the clipboard", _copy),
    Command("/export", "[FILE]", "the conversation as .md or .json", _export),
    Command("/save", "[TITLE]", "name the conversation", _save),
    Command("/load", "ID|TITLE|FILE", "go on with another one", _load),
    Command("/list", "", f"the last {LISTED} conversations", _list),
]
_BY_NAME = {name: each for each in COMMANDS for name in (each.name, *each.aliases)}
