"""The slash commands of a chat."""

from __future__ import annotations

import glob
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.chat.conversation import CHATML
from llmrun.cli.framework.sampling_options import dials, find_dial, turned, values_shown
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.files import is_file, path_of, read_text
from llmrun.errors import LlmrunError, NotFound, UsageError
from llmrun.units import count, size

if TYPE_CHECKING:
    from llmrun.cli.chat.repl import Repl

MOST_BYTES_PER_TOKEN = 16
MOST_FILES = 100
"""That /read takes at once, as in llama-cli."""
LISTED = 20
"""Conversations that /list shows."""


@dataclass(frozen=True)
class Command:
    """`takes` is what stands behind it in the help; `does` gets that text, and returns False to leave."""

    name: str
    takes: str
    help: str
    does: Callable[[Repl, str], bool | None]
    aliases: tuple[str, ...] = ()


def obey(repl: Repl, typed: str) -> bool:
    """Do what a line that begins with a slash says; False to leave. Raises `UsageError` with the nearest command."""
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
    return command.does(repl, rest) is not False


def names() -> list[str]:
    return list(_BY_NAME)


def words(name: str, prefix: str) -> Iterable[str]:
    """What can stand behind a command."""
    if name == "/set":
        return [*(dial.name for dial in dials()), *_SET_OTHERWISE]
    if name == "/show":
        return ["info", "template", "system", "license", "parameters"]
    if name == "/think":
        return ["show", "fold", "hide", "off", "budget "]
    if name == "/model":
        from llmrun.cli.framework.completion import model_names

        return model_names(prefix)
    if name == "/copy":
        return ["code"]
    if name == "/load":
        from llmrun.chat.store import Conversations

        try:
            with Conversations() as kept:
                return [each.id for each in kept.list(LISTED)]
        except LlmrunError:
            return []
    return []


# -- talk about the talk ---


def _help(repl: Repl, _rest: str) -> None:
    rows = [(f"{' '.join((each.name, *each.aliases))} {each.takes}".strip(), each.help) for each in COMMANDS]
    rows += [
        ('""" Alt-Enter Ctrl-G', "several lines: between quotes, one more, in $EDITOR"),
        ("Ctrl-C Ctrl-R Tab", "stop the answer; search what was typed; complete"),
    ]
    tables.show_pairs(rows)


def _bye(_repl: Repl, _rest: str) -> bool:
    return False


def _clear(repl: Repl, _rest: str) -> None:
    repl.chat.clear()
    repl.attached.clear()
    repl.say("a new conversation" + ("; the one before is kept: /list" if repl.chat.is_kept else ""))


def _regen(repl: Repl, _rest: str) -> None:
    repl.again()


def _undo(repl: Repl, _rest: str) -> None:
    message = repl.chat.undo()
    first = message.splitlines()[0] if message else ""
    repl.say(f"taken back: {first[:60]}")


def _edit(repl: Repl, rest: str) -> None:
    if rest:
        repl.ask(rest, instead=True)
    elif not screen.is_terminal(sys.stdin):
        raise UsageError("/edit: there is nobody to edit it", hint="/edit NEW TEXT")
    else:
        repl.edit_last()


def _system(repl: Repl, rest: str) -> None:
    if not rest:
        screen.out((repl.chat.system or "no system prompt") + "\n")
        return
    repl.chat.set_system("" if rest in ('""', "off", "none") else rest)
    repl.say("no system prompt" if not repl.chat.system else "the system prompt counts from the next answer on")


def _set(repl: Repl, rest: str) -> None:
    name, _, text = rest.partition(" ")
    if name in _SET_OTHERWISE:
        _SET_OTHERWISE[name](repl, text.strip())
        return
    shown = list(values_shown(repl.chat.sampling))
    if name and not text.strip():
        wanted = find_dial(name).name
        shown = [each for each in shown if each[0] == wanted]
    if not text.strip():
        tables.show([tables.Column("OPTION"), tables.Column("VALUE"), tables.Column("", flexible=True)], shown)
        return
    repl.chat.sampling = turned(repl.chat.sampling, name, text.strip())
    ((_, value, _),) = (each for each in values_shown(repl.chat.sampling) if each[0] == find_dial(name).name)
    repl.say(f"{find_dial(name).name} is {value}")


def _set_format(repl: Repl, rest: str) -> None:
    if rest not in ("json", ""):
        raise UsageError(f"/set format: '{rest[:40]}' is not json", hint="/set format json, or /set noformat")
    from llmrun.constrain.output_format import of_json

    repl.shape = of_json() if rest else None
    repl.chat.manner = replace(repl.chat.manner, grammar=repl.shape.grammar if repl.shape else None)
    repl.say("answers are JSON" if rest else "answers are free")


def _set_verbose(repl: Repl, wanted: bool) -> None:
    repl.verbose = wanted
    repl.say("figures after each answer" if wanted else "no figures after answers")


# What users of ollama type.
_SET_OTHERWISE: dict[str, Callable[[Repl, str], None]] = {
    "parameter": lambda repl, rest: _set(repl, rest),
    "system": lambda repl, rest: _system(repl, rest),
    "think": lambda repl, _: _think(repl, "show"),
    "nothink": lambda repl, _: _think(repl, "off"),
    "format": _set_format,
    "noformat": lambda repl, _: _set_format(repl, ""),
    "verbose": lambda repl, _: _set_verbose(repl, True),
    "quiet": lambda repl, _: _set_verbose(repl, False),
}


def _think(repl: Repl, rest: str) -> None:
    manner = repl.chat.manner
    name, _, number = rest.partition(" ")
    if name == "budget":
        try:
            budget = None if number.strip() in ("", "none") else int(number)
        except ValueError:
            raise UsageError(f"/think budget: '{number[:40]}' is no number", hint="/think budget 500") from None
        repl.chat.manner = replace(manner, think_budget=budget)
    elif rest:
        if rest not in ("show", "fold", "hide", "off"):
            raise UsageError(f"/think: '{rest[:40]}' is none of show, fold, hide, off", hint="/think fold")
        repl.chat.manner = replace(manner, think=rest)  # type: ignore[arg-type]
    manner = repl.chat.manner
    budget_said = "no budget" if manner.think_budget is None else f"at most {manner.think_budget} tokens"
    generation = repl.chat.generation
    unable = generation is not None and generation.thinks is False
    repl.say(f"thinking: {manner.think}, {budget_said}" + ("; this model's template knows none" if unable else ""))


# -- about the model ---


def _show(repl: Repl, rest: str) -> None:
    from llmrun.cli.answering.report import layers

    engine, header = repl.chat.engine, repl.found.header
    if rest and rest != "info":
        told: dict[str, Callable[[], str]] = {
            "template": lambda: repl.chat.manner.template or header.chat_template or CHATML,
            "system": lambda: repl.chat.system or "no system prompt",
            "license": lambda: str(header.metadata.get("general.license") or "its file names none"),
            "parameters": lambda: "\n".join(f"{name}  {value}" for name, value, _ in values_shown(repl.chat.sampling)),
        }
        if rest not in told:
            raise UsageError(
                f"/show: '{rest[:40]}' is none of info, template, system, license, parameters", hint="/show"
            )
        screen.out(told[rest]().rstrip("\n") + "\n")
        return
    tables.show_pairs(
        [
            ("model", f"{repl.found.name}, {engine.loaded.description}"),
            ("file", str(repl.found.path)),
            ("parameters", f"{count(engine.loaded.n_params)}, {size(header.weight_bytes)} of weights"),
            ("context", f"{repl.chat.n_used} used of {engine.n_ctx_most}, {engine.loaded.n_ctx_train} trained"),
            ("layers", layers(engine.plan.placement.layers)),
            ("threads", str(engine.n_threads)),
            ("template", "its own" if header.chat_template else "none: ChatML"),
            ("system", repl.chat.system or "none"),
            ("conversation", repl.chat.id or ("not kept" if not repl.chat.is_kept else "empty")),
        ]
    )


def _stats(repl: Repl, _rest: str) -> None:
    rows = list(repl.stats())
    if not rows:
        raise UsageError("there is no answer yet")
    tables.show_pairs(rows)


def _model(repl: Repl, rest: str) -> None:
    if rest:
        repl.switch(rest)
        repl.say(f"{repl.found.name}: the conversation goes on")
        return
    from llmrun.cli.framework.completion import model_names

    repl.say(f"now {repl.reference}; here are:")
    screen.out("".join(f"{name}\n" for name in model_names("")))


def _tokens(repl: Repl, rest: str) -> None:
    chat = repl.chat
    if rest:
        screen.out(f"{chat.engine.count(rest)}\n")
        return
    rows = []
    if chat.system:
        rows.append(("system", str(chat.engine.count(chat.system))))
    for i, said in enumerate(chat.turns):
        first = next(iter(said.content.splitlines()), "")
        gone = " (no longer given to the model)" if i < chat.n_dropped else ""
        rows.append((said.role, f"{chat.engine.count(said.content)}{gone}  {first[:50]}"))
    whole = chat.n_tokens(chat.messages()) if chat.turns else 0
    rows.append(("as the template has it", f"{whole} of {chat.engine.n_ctx_most}"))
    tables.show_pairs(rows)


# -- what is kept ---


def _save(repl: Repl, rest: str) -> None:
    from llmrun.chat.store import Conversations

    id = repl.chat.set_title(rest, None if repl.chat.is_kept else repl.keeper(Conversations))
    repl.say(f"kept as {id}" + (f", {rest}" if rest else "") + f"; llmrun chat --resume {id}")


def _load(repl: Repl, rest: str) -> None:
    from llmrun.chat.store import Conversations

    if not rest:
        raise UsageError("/load: which one?", hint="/list, then /load ID, or /load FILE.json")
    if is_file(rest):
        from llmrun.chat.transcript import from_document

        try:
            document = json.loads(read_text("/load", rest))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"/load: '{rest[:100]}' is no JSON: {error}") from None
        repl.chat.copy(from_document(document, rest))
    else:
        with Conversations() as kept:
            conversation = kept.read(_found(kept, rest))
        repl.chat.resume(conversation)
    tell_resumed(repl)


def _found(kept: object, words_: str) -> str:
    """By id, or by its title."""
    from llmrun.chat.store import Conversations

    assert isinstance(kept, Conversations)
    try:
        return kept.find(words_)
    except NotFound as error:
        same = [each.id for each in kept.list() if words_.lower() in each.title.lower()]
        if len(same) != 1:
            raise NotFound(error.message, hint="/list") from None
        return same[0]


def tell_resumed(repl: Repl) -> None:
    """Show the end of a conversation that goes on."""
    turns = repl.chat.turns
    if repl.on_terminal:  # in a pipe, what was said before is no answer
        for said in turns[-2:]:
            repl.show_turn(said)
    repl.say(f"{len(turns)} turns, {repl.chat.id or 'not kept'}")
    if repl.chat.is_unanswered:
        repl.say("the last message has no answer: /regen makes one")


def _list(_repl: Repl, _rest: str) -> None:
    from llmrun.chat.store import Conversations
    from llmrun.cli.commands.history import show_table

    with Conversations() as kept:
        show_table(kept.list(LISTED))


def _read(repl: Repl, rest: str) -> None:
    if not rest:
        raise UsageError("/read: which file?", hint="/read FILE")
    names = _files(rest)
    n_ctx = repl.chat.engine.n_ctx_most
    repl.revive()
    texts = []
    for name in names:
        if not is_file(name) and path_of("/read", name).exists():
            raise UsageError(f"/read: '{name[:100]}' is no file", hint="/read FILE")
        texts.append(read_text("/read", name).rstrip("\n"))
        n_bytes = len(texts[-1].encode())
        if n_bytes > MOST_BYTES_PER_TOKEN * n_ctx:
            raise UsageError(f"/read: '{name[:100]}' has {size(n_bytes)}, far more than {n_ctx} tokens of context hold")
    counts = [repl.chat.engine.count(text) for text in texts]
    for name, text, n_tokens in zip(names, texts, counts, strict=True):
        repl.say(f"{name}: {size(len(text.encode()))}, {n_tokens} tokens, before your next message")
    # Of one file the text alone, as if it were typed; of several, which is which.
    repl.attached += (
        texts if len(names) == 1 else [f"{name}:\n\n{text}" for name, text in zip(names, texts, strict=True)]
    )


def _files(typed: str) -> list[str]:
    """One name, blanks and all, or several, or patterns."""
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
            raise NotFound(f"/read: nothing here is like '{part[:100]}'", hint="/read FILE")
    if len(names) > MOST_FILES:
        raise UsageError(f"/read: {len(names)} files, and {MOST_FILES} are the most", hint="/read FILE")
    return names


def _export(repl: Repl, rest: str) -> None:
    from llmrun.chat.transcript import as_document, as_markdown
    from llmrun.fs import disk_errors, write_atomically

    if not rest:
        screen.out(as_markdown(repl.chat.as_conversation()))
        return
    path = path_of("/export", rest)
    if path.exists():
        raise UsageError(f"/export: {rest[:100]} is there already", hint="/export ANOTHER.md")
    with disk_errors(f"writing {path}"):
        conversation = repl.chat.as_conversation()
        if path.suffix == ".json":
            write_atomically(path, json.dumps(as_document(conversation), indent=1, ensure_ascii=False) + "\n")
        else:
            write_atomically(path, as_markdown(conversation))
    repl.say(f"{len(repl.chat.turns)} turns in {path}")


def _copy(repl: Repl, rest: str) -> None:
    from llmrun.cli.terminal.clipboard import copy

    said = repl.chat.last_answer
    if said is None:
        raise UsageError("there is no answer yet")
    text = said.content
    if rest == "code":
        text = last_code(text)
    elif rest:
        raise UsageError(f"/copy: '{rest[:40]}' is neither nothing nor code", hint="/copy code")
    repl.say(copy(text))


def last_code(text: str) -> str:
    """The last fenced block. Raises `UsageError` where there is none."""
    from markdown_it import MarkdownIt

    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]
    if not blocks:
        raise UsageError("there is no code in the last answer", hint="/copy")
    return blocks[-1]


COMMANDS = [
    Command("/help", "", "this list", _help, ("/?",)),
    Command("/bye", "", "leave, as Ctrl-D does", _bye, ("/exit",)),
    Command("/clear", "", "begin another conversation", _clear),
    Command("/regen", "", "answer the last message again", _regen),
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
