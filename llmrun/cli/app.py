"""The commands. Each is imported when it is called; what the program's help says of one stands here.

The words are read by `framework/parser.py`, and Typer, which knows the shells, completes them. Typer reads a command
line as well, but imports pydantic for it: 12 starts of Python before the first option is known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from llmrun import __version__
from llmrun.cli.framework import page
from llmrun.cli.terminal import screen
from llmrun.errors import Act, UsageError

if TYPE_CHECKING:
    from llmrun.cli.framework.command import Command
    from llmrun.options.spec import Option


class Entry(NamedTuple):
    """Where a command is, and the first sentence of its help."""

    module: str
    function: str
    help: str
    hidden: bool = False


# In the order in which a newcomer needs them.
COMMANDS = {
    "run": Entry("run", "run", "Answer one prompt and exit; without a prompt on a terminal, chat."),
    "chat": Entry("chat", "chat", "Talk with a model; /help there lists what can be done."),
    "batch": Entry("batch", "batch", "Answer every row of a file."),
    "bench": Entry("bench", "bench", "Measure tokens per second."),
    "bench serve": Entry("bench_serve", "bench_serve", "Load a server, and measure what those see who wait."),
    "bench history": Entry("bench_history", "list_", "Show the benches of this machine, the oldest first."),
    "bench history list": Entry("bench_history", "list_", "Show the benches of this machine, the oldest first."),
    "bench history show": Entry("bench_history", "show", "Show one bench again; with --json its whole record."),
    "bench history rm": Entry("bench_history", "rm", "Remove benches."),
    "bench history path": Entry("bench_history", "path", "Print where the records are, or one of them."),
    "tune": Entry("tune", "tune", "Find the fastest settings for a model on this machine, and keep them."),
    "tune list": Entry("tune", "list_", "Show what was measured to be fastest, by model and length of prompt."),
    "tune rm": Entry("tune", "rm", "Forget it: the next run measures anew."),
    "prompt-cache": Entry("prompt_cache", "list_", "Show what is kept of long prompts, the last used first."),
    "prompt-cache list": Entry("prompt_cache", "list_", "Show what is kept of long prompts, the last used first."),
    "prompt-cache rm": Entry("prompt_cache", "rm", "Remove it from the disk."),
    "plan": Entry("plan", "plan", "Predict whether a model fits, and how fast it would be."),
    "probe": Entry("plan", "probe", "Measure how fast a model would be here, without it: by slices of it."),
    "pull": Entry("pull", "pull", "Fetch models from the hub."),
    "list": Entry("list", "list_", "List the models on this machine, or those of the catalog."),
    "ls": Entry("list", "list_", "List the models on this machine, or those of the catalog.", hidden=True),
    "show": Entry("show", "show", "Show what a model is: shape, weights, tokenizer, licence."),
    "rm": Entry("rm", "rm", "Remove models, and free exactly what nothing else needs."),
    "outdated": Entry("outdated", "outdated", "Show which stored models the hub has newer files of."),
    "update": Entry("outdated", "update", "Fetch what the hub has newer files of."),
    "search": Entry("search", "search", "Search the hub for GGUF models, with their levels and sizes."),
    "verify": Entry("verify", "verify", "Read every byte again and compare it with what the hub promised."),
    "import": Entry("import_", "import_", "Make a GGUF file on this machine a model with a name."),
    "quantize": Entry("quantize", "quantize", "Make a smaller model of a larger one."),
    "compare": Entry(
        "compare", "compare", "Compare two benches: how much faster is B than A, and is that more than chance?"
    ),
    "plot": Entry("plot", "plot", "Draw benches: curves of a sweep, bars side by side, batch scaling, a roofline."),
    "experiment": Entry(
        "experiment", "experiment", "Conduct experiments: claims on CPUs and GPUs, and what they are worth here."
    ),
    "devices": Entry("devices", "devices", "Show what llama.cpp can compute on, with memory, features and versions."),
    "serve": Entry("serve", "serve", "Serve models to clients of OpenAI, Anthropic and ollama."),
    "ps": Entry("ps", "ps", "Show the servers that run, and what they do."),
    "worker": Entry("worker", "worker", "Lend this machine's devices to `llmrun run --rpc` on another."),
    "doctor": Entry(
        "doctor", "doctor", "Check this machine for what makes runs fail or slow, and say what to do about it."
    ),
    "history": Entry("history", "history", "Show the conversations of `llmrun chat`, search, export and remove them."),
    "history list": Entry("history", "list_", "Show the conversations of this machine, the last changed first."),
    "history show": Entry("history", "show", "Show one conversation as Markdown."),
    "history search": Entry("history", "search", "Find the turns in which all of the words occur."),
    "history rm": Entry("history", "rm", "Remove conversations: nothing of them is left in the file."),
    "history export": Entry("history", "export", "Write conversations as Markdown or JSON."),
    "history path": Entry("history", "path", "Print where the conversations are kept."),
    "config": Entry("config", "config", "Show what is set, and where."),
    "config set": Entry("config", "set_", "Set an option for every run, or for one model."),
    "config unset": Entry("config", "unset", "Take an option out of the file."),
}
# Options of these can stand in config.toml.
MODEL_COMMANDS = ("run", "chat", "batch")
TITLE = "Run quantized language models on this machine, and know how fast it is."
OPTIONS = (
    ("--version", "Show the version and exit."),
    ("--install-completion", "Install completion for the current shell."),
    ("--show-completion", "Show completion for the current shell, to copy it or customize the installation."),
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return screen.run_command(lambda: _run(words))


def _run(words: list[str]) -> None:
    if "_LLMRUN_COMPLETE" in os.environ or words[:1] in (["--install-completion"], ["--show-completion"]):
        from llmrun.cli.framework import shells

        shells.complete(words, {name: entry.help for name, entry in _shown().items()}, command, TITLE)
    elif not words or words[0] in ("-h", "--help", "--help-all"):
        screen.out(page.of_program(TITLE, OPTIONS, _rows("")))
        if not words:
            raise SystemExit(2)
    elif words[0] == "--version":
        screen.out(f"llmrun {__version__}\n")
    elif words[0] not in COMMANDS:
        from difflib import get_close_matches

        what = "option" if words[0].startswith("-") else "command"
        near = "".join(f"; the nearest is {each}" for each in get_close_matches(words[0], _shown(), 1))
        raise UsageError(f"there is no {what} {words[0][:40]}{near}", hint=Act("help"))
    else:
        from llmrun.cli.framework.command import Invocation

        path, rest = _split(words)
        command(path).run(rest, Invocation(path, command, settable), _rows(path))


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The path of a command, and what is for it: "history list" of `history list -n 3`."""
    path, rest = words[0], words[1:]
    while rest and f"{path} {rest[0]}" in COMMANDS:
        path, rest = f"{path} {rest[0]}", rest[1:]
    return path, rest


def _shown() -> dict[str, Entry]:
    return {path: entry for path, entry in COMMANDS.items() if not entry.hidden}


def _rows(above: str) -> list[tuple[str, str]]:
    """Name and help of what stands directly below a path."""
    begin = f"{above} " if above else ""
    below = {path[len(begin) :]: entry for path, entry in _shown().items() if path.startswith(begin) and path != above}
    # `bench` is a command, and `bench history` one beside it that its own help names; so with `tune`.
    return [(name, entry.help) for name, entry in below.items() if " " not in name and above not in ("bench", "tune")]


def command(path: str) -> Command:
    """Import a command."""
    from llmrun.cli.framework.command import Command

    entry = COMMANDS[path]
    found = getattr(import_module(f"llmrun.cli.commands.{entry.module}"), entry.function)
    return found if isinstance(found, Command) else Command(found)


def settable() -> dict[str, Option]:
    """By each of its names, every option that `config.toml` can set."""
    from llmrun.options.settings import by_name

    return by_name(option for path in MODEL_COMMANDS for option in command(path).options)
