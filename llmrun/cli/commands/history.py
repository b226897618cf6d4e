"""`llmrun history`: the conversations that `llmrun chat` kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.chat import conversation_table
from llmrun.cli.framework import options
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen, tables
from llmrun.errors import UsageError
from llmrun.options.spec import Whole

if TYPE_CHECKING:
    from llmrun.chat.store import Conversation, Conversations, Hit

HITS = 50
_Ids = Annotated[list[str] | None, Argument("ID", "Ids, or how they begin; 'last'.")]
_All = Annotated[bool, Option("--all", help="All conversations.")]
_Limit = Annotated[int | None, Option("-n", "--limit", kind=Whole(1), help="Show so many, the last changed.")]


def history(limit: _Limit = None, as_json: options.Json = False) -> None:
    """Show the conversations of `llmrun chat`, search, export and remove them."""
    list_(limit, as_json)


def list_(limit: _Limit = None, as_json: options.Json = False) -> None:
    """Show the conversations of this machine, the last changed first."""
    with _kept() as kept:
        found = kept.list(limit)
    if as_json:
        screen.out_json([vars(each) for each in found])
        return
    conversation_table.show(found)


def show(
    id: Annotated[str, Argument("ID", "An id, how one begins, or 'last'.")],
    thinking: Annotated[bool, Option("--thinking", help="Also what the model thought.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show one conversation as Markdown."""
    from llmrun.chat.transcript import as_document, as_markdown

    with _kept() as kept:
        found = kept.read(kept.find(id))
    if as_json:
        screen.out_json(as_document(found))
    else:
        screen.out(as_markdown(found, thinking=thinking))


def search(
    words: Annotated[list[str], Argument("WORD...", "Parts of words; upper or lower case.")],
    limit: Annotated[int, Option("-n", "--limit", kind=Whole(1), help="Show so many turns, the latest.")] = HITS,
    as_json: options.Json = False,
) -> None:
    """Find the turns in which all of the words occur."""
    with _kept() as kept:
        found = kept.search(" ".join(words), limit + 1)
    more, found = len(found) > limit, found[:limit]
    if as_json:
        screen.out_json([_hit(each) for each in found])
    else:
        tables.show(("ID", "WHO", "TEXT…"), [(each.summary.id, _who(each), each.excerpt) for each in found])
    if more:
        screen.note(f"the latest {limit} turns; more with: --limit {10 * limit}")
    elif not found:
        screen.note("no turn has all of these words")


def rm(
    ids: _Ids = None, everything: _All = False, yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Remove conversations: nothing of them is left in the file."""
    with _kept() as kept:
        meant = _meant(kept, ids, everything, "rm")  # all of them exist, or none is removed
        question = f"Remove {_n(meant)}?"
        if everything and meant and not yes and not screen.confirmed(question, "llmrun history rm --all -y"):
            screen.note("nothing was removed")
            return
        kept.remove(meant)
    for id in meant:
        screen.note(f"removed {id}")
    if not meant:
        screen.note("no conversation is kept")


def export(
    ids: _Ids = None,
    everything: _All = False,
    output: Annotated[Path | None, Option("-o", "--output", metavar="FILE", help="Write a file: .md or .json.")] = None,
    format: Annotated[
        str | None, Option("--format", metavar="FORMAT", help="md or json.", without="by the file's ending, or md")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write conversations as Markdown or JSON.

    What is written as JSON, `llmrun chat` can load.
    """
    import json

    from llmrun import fs
    from llmrun.chat.transcript import as_document, as_markdown

    chosen = _format(format, output)
    if output is not None:
        _check_output(output, force)
    with _kept() as kept:
        found: list[Conversation] = [kept.read(id) for id in _meant(kept, ids, everything, "export")]
    if chosen == "md":
        text = "\n---\n\n".join(as_markdown(each) for each in found)
    else:
        documents: Any = [as_document(each) for each in found]
        if len(documents) == 1 and not everything:
            (documents,) = documents
        if output is None:
            screen.out_json(documents)
            return
        text = json.dumps(documents, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        screen.out(text)
        return
    with fs.disk_errors(f"writing {output}"):
        fs.write_atomically(Path(os.path.realpath(output)), text.encode("utf-8", errors="replace"))
    screen.note(f"{output}: {_n(found)}")


def path() -> None:
    """Print where the conversations are kept."""
    from llmrun.chat import store

    screen.out(f"{store.file()}\n")


def _kept() -> Conversations:
    from llmrun.chat.store import Conversations

    return Conversations()


def _meant(kept: Conversations, ids: list[str] | None, everything: bool, command: str) -> list[str]:
    """The ids that are meant, each once. Raises `NotFound` and `UsageError`."""
    if bool(ids) == everything:
        both = "ids and --all: only one of them" if ids else "name the conversations, or use --all"
        raise UsageError(both, hint="llmrun history list" if everything else f"llmrun history {command} last")
    if everything:
        return [each.id for each in kept.list()]
    return list(dict.fromkeys(kept.find(each) for each in ids or ()))


_ENDINGS = {".md": "md", ".markdown": "md", ".json": "json"}


def _format(format: str | None, output: Path | None) -> str:
    """ "md" or "json". Raises `UsageError`."""
    if format is not None and format not in _ENDINGS.values():
        raise UsageError(f"--format: '{format}' is neither md nor json", hint="--format md")
    if format is None and output is not None and (format := _ENDINGS.get(output.suffix.lower())) is None:
        raise UsageError(f"-o {output}: neither .md nor .json", hint="--format md")
    return format or "md"


def _check_output(output: Path, force: bool) -> None:
    """Raises `UsageError`."""
    if os.path.lexists(output):
        if output.exists() and not output.is_file():
            raise UsageError(f"{output} is not a file that can be replaced", hint="-o conversations.md")
        if not force:
            raise UsageError(f"{output} exists already", hint="--force, or another name")


def _n(conversations: Sequence[object]) -> str:
    return f"{len(conversations):,} conversation{'' if len(conversations) == 1 else 's'}"


def _who(hit: Hit) -> str:
    return {"user": "you", "tool": "a tool"}.get(hit.role) or hit.summary.model or hit.role


def _hit(each: Hit) -> dict[str, Any]:
    return {**vars(each.summary), "role": each.role, "turn_id": each.turn_id, "excerpt": each.excerpt}
