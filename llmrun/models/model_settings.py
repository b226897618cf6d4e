"""What `config.toml` has to know of models: which table means which, and what the catalog recommends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from llmrun.errors import LlmrunError
from llmrun.models import catalog
from llmrun.models.reference import HubFile, LocalFile, Reference, parse
from llmrun.options.user_config import Setting

_AS_TYPED = 9  # above every other closeness: of two names for one model, the one that was typed is nearer


class Names:
    """By the catalog, which is read when it is needed."""

    @cached_property
    def _catalog(self) -> catalog.Catalog:
        return catalog.load()

    def closeness(self, table: str, model: str) -> int | None:
        """How much of level, file and revision a table's name says of the model; None: it means another."""
        if table.lower() == model.lower():
            return _AS_TYPED
        typed, meant = self._named(model), self._general(table)
        if isinstance(meant, HubFile) and isinstance(typed, HubFile):
            if meant.repo.lower() != typed.repo.lower():
                return None
            asked = [(meant.quant, typed.quant), (meant.file, typed.file), (meant.revision, typed.revision)]
            said = [(mine, theirs) for mine, theirs in asked if mine is not None]
            return len(said) if all(theirs and mine.lower() == theirs.lower() for mine, theirs in said) else None
        if isinstance(meant, LocalFile) and isinstance(typed, LocalFile):
            return 0 if meant.path.absolute() == typed.path.absolute() else None
        return None

    def recommended(self, model: str) -> Iterable[Setting]:
        try:
            named = parse(model)
            if not isinstance(named, HubFile):
                return ()
            known = self._catalog
        except LlmrunError:
            return ()
        by_repo = (each for each in known.entries if each.repo.lower() == named.repo.lower())
        entry = known.find(named.name) or next(by_repo, None)
        if entry is None or not entry.settings:
            return ()
        file = catalog.home(entry)
        return [Setting(key, value, file, entry.name) for key, value in entry.settings.items()]

    def _general(self, table: str) -> Reference | None:
        """What a table's name means. A name without a level is every level, also where the catalog has a usual one."""
        named = self._named(table)
        if isinstance(named, HubFile) and self._catalog.find(table):
            return replace(named, quant=None, file=None)
        return named

    def _named(self, name: str) -> Reference | None:
        known = self._catalog
        try:
            return parse(name, known)
        except LlmrunError:
            return None
