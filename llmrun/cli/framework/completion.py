"""What Tab offers: models and conversations here; commands and options by Typer, which knows the shells."""

from __future__ import annotations

from collections.abc import Iterable

from llmrun.errors import LlmrunError

_MOST = 200


def model_names(prefix: str) -> list[str]:
    """`tiny`, what is on this machine, and names of the catalog once something is typed. Nothing is fetched."""
    found = dict.fromkeys(each for each in _known(prefix) if each.lower().startswith(prefix.lower()))
    return list(found)[:_MOST]


def _known(prefix: str) -> Iterable[str]:
    yield "tiny"
    try:
        from llmrun.models import catalog
        from llmrun.models.naming import ModelNames

        entries = catalog.load().entries
        yield from ModelNames(entries).listed()
        if prefix:
            yield from (entry.name for entry in entries)
    except (LlmrunError, OSError):  # a Tab is no place for errors
        return


def models(incomplete: str) -> list[str]:
    """Names, and files."""
    from pathlib import Path

    names = model_names(incomplete)
    try:
        folder = Path(incomplete).expanduser()
        parent = folder if incomplete.endswith("/") else folder.parent
        typed = incomplete.rpartition("/")[0] + "/" if "/" in incomplete else ""
        for path in sorted(parent.iterdir())[: 10 * _MOST]:
            if path.suffix == ".gguf" or ("/" in incomplete and path.is_dir()):
                name = f"{typed}{path.name}{'/' if path.is_dir() else ''}"
                if name.startswith(incomplete):
                    names.append(name)
    except (OSError, RuntimeError, ValueError):
        pass
    return names


def conversations(incomplete: str) -> list[tuple[str, str]]:
    """Ids with their titles."""
    from llmrun.chat.store import Conversations, file

    try:
        if not file().exists():
            return []
        with Conversations() as kept:
            return [(each.id, each.title) for each in kept.list(_MOST) if each.id.startswith(incomplete)]
    except (LlmrunError, OSError):
        return []
