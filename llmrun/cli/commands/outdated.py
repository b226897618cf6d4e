"""`llmrun outdated`, `llmrun update`: stored models beside what the hub has of them now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrun.cli.framework import options
from llmrun.cli.loading import fetch
from llmrun.cli.terminal import screen, tables
from llmrun.cli.terminal.progress import teller
from llmrun.errors import LlmrunError
from llmrun.units import UNKNOWN, size

if TYPE_CHECKING:
    from llmrun.models.hub.outdated import Freshness


def outdated(names: options.SomeModelNames = None, as_json: options.Json = False) -> None:
    """Show which stored models the hub has newer files of.

    Told apart by the hash of each file. One question a repository; nothing is fetched.
    """
    found = _freshness(names)
    if as_json:
        screen.out_json([_plain(each) for each in found])
        return
    if not found:
        screen.note("no model here is from the hub")
        return
    tables.show(("NAME", "HERE", "HUB", "STATE…"), [_row(each) for each in found])


def update(names: options.SomeModelNames = None, quiet: options.Quiet = False) -> None:
    """Fetch what the hub has newer files of.

    The version before stays until it is removed: its commit still names it.
    """
    found = _freshness(names)
    for each in found:
        if each.error is not None:
            raise each.error
    changed = [each for each in found if each.state == "changed"]
    for each in found:
        if each.state == "gone":
            screen.note(f"{each.model.name} is gone from the hub; what is here stays")
    if not changed:
        teller(quiet)("every model is as the hub has it")
        return
    from llmrun.models.reference import HubFile

    for each in changed:
        model = each.model
        named = HubFile(model.repo, None, model.file, None, model.repo)
        resolved = fetch.resolve(named, offline=False, quiet=quiet)
        path, _ = fetch.pull(resolved, offline=False, quiet=quiet)
        teller(quiet)(f"{model.name} is that of {resolved.commit[:8]} now, was {(model.commit or UNKNOWN)[:8]}")
        screen.out(f"{path}\n")


def _freshness(names: list[str] | None) -> list[Freshness]:
    from llmrun.models.hub.outdated import freshness
    from llmrun.models.resolve import all_stored
    from llmrun.models.store.listing import list_models

    models = [*{m.path: m for name in names for m in all_stored(name)}.values()] if names else list_models()
    found = list(freshness(models))
    if found and all(each.error is not None for each in found):
        error = found[0].error
        assert error is not None
        raise error
    return found


def _row(found: Freshness) -> tuple[str, str, str, str]:
    states = {
        "current": "up to date",
        "changed": f"newer: {size(found.fetch_bytes)} to fetch",
        "gone": "gone from the hub",
        "unknown": found.error.message if isinstance(found.error, LlmrunError) else UNKNOWN,
    }
    here, there = (found.model.commit or UNKNOWN)[:8], (found.commit or UNKNOWN)[:8]
    return found.model.name, here, there, states[found.state]


def _plain(found: Freshness) -> dict[str, Any]:
    return {
        "name": found.model.name,
        "repo": found.model.repo,
        "file": found.model.file,
        "commit": found.model.commit,
        "hub_commit": found.commit,
        "state": found.state,
        "fetch_bytes": found.fetch_bytes,
        "error": found.error.message if found.error else None,
    }
