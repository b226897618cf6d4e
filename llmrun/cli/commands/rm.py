"""`llmrun rm MODEL...`: removes models, and what is left of unfinished ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import stored
from llmrun.cli.terminal import screen
from llmrun.errors import Act, NotInStore, UsageError
from llmrun.text import sanitize
from llmrun.units import size

if TYPE_CHECKING:
    from llmrun.models.naming import ModelNames
    from llmrun.models.store.listing import Leftover, StoredModel


def rm(
    names: options.SomeModelNames = None,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    partials: Annotated[
        bool, Option("--partials", help="Free unfinished and damaged downloads, of all models.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Remove models, and free exactly what nothing else needs.

    An imported link goes, the file it leads to stays.
    """
    from llmrun.models.store import listing, remove

    if not names and not partials:
        raise UsageError("name the models to remove, or --partials", hint=Act("list"))
    known, leftovers = stored.names(), listing.list_leftovers()
    wanted = [*leftovers] if partials else []
    models: dict[Path, StoredModel] = {}
    for name in names or ():
        for item in _meant(name, known, leftovers):
            if isinstance(item, listing.StoredModel):
                models[item.path] = item
            elif item not in wanted:
                wanted.append(item)
    gone = [known.as_listed(model) for model in models.values()]
    if not models and not wanted:
        screen.note("there are no unfinished or damaged downloads")
    elif not yes and not _confirmed(known, models.values(), wanted):
        screen.note("nothing was removed")
        models, wanted, gone = {}, [], []
    freed = remove.remove_models(models.values()) + remove.remove_leftovers(wanted)
    if as_json:
        screen.out_json({"removed": gone, "leftovers": [os.fspath(item.path) for item in wanted], "freed_bytes": freed})
    elif models or wanted:
        for name in (*gone, *map(known.of, wanted)):
            screen.out(sanitize(name) + "\n")
        screen.note(f"{size(freed)} freed")
        _tell_what_stays({model.repo for model in models.values()})


def _tell_what_stays(repos: set[str]) -> None:
    """Names projectors whose last model is gone."""
    from llmrun.models import quants
    from llmrun.models.store.listing import list_models

    left = [model for model in list_models(header_budget_s=0) if model.repo in repos]
    with_model = {model.repo for model in left if not quants.is_projector(model.file)}
    for model in left:
        if model.repo not in with_model:
            screen.note(f"{model.name} went with it and stays; to remove it: llmrun rm {model.name}")


def _meant(name: str, known: ModelNames, leftovers: list[Leftover]) -> Sequence[StoredModel | Leftover]:
    """What to remove under this name: a row of `list`, or else what no other row could be meant by.

    More than one only where the same row is several. Raises `NotInStore`, and `UsageError` for a name that is vague.
    """
    from llmrun.models import naming
    from llmrun.models.resolve import all_stored

    missing: NotInStore | None = None
    try:
        found = all_stored(name)
    except NotInStore as error:
        found, missing = [], error
    if exact := [model for model in found if naming.same(known.as_listed(model), name)]:
        return exact
    if unfinished := [item for item in leftovers if known.of(item).lower() == name.lower()]:
        if found:
            kept = " and ".join(sorted({known.as_listed(model) for model in found}))
            screen.note(f"{name} is the name of an unfinished or damaged download; to remove instead: {kept}")
        return unfinished
    _refuse_if_vague(name, map(known.as_listed, found))
    if missing is None:
        return found
    unfinished = [item for item in leftovers if naming.is_meant(name, item)]
    _refuse_if_vague(name, map(known.of, unfinished))
    if not unfinished:
        raise missing
    return unfinished


def _refuse_if_vague(name: str, meant: Iterable[str]) -> None:
    names = sorted({*meant})
    if len(names) > 1:
        raise UsageError(f"'{name}' could be {' or '.join(names)}", hint=Act("rm", names[0]))


def _confirmed(known: ModelNames, models: Iterable[StoredModel], leftovers: Iterable[Leftover]) -> bool:
    rows = [f"  {known.as_listed(model)}  {size(model.size)}\n" for model in models]
    rows += [f"  {known.of(item)}  {size(item.size)}, {stored.LEFTOVER_WORDS[item.kind]}\n" for item in leftovers]
    return screen.confirmed(f"{''.join(rows)}Remove?", Act("rm", "NAME", {"yes": True}))
