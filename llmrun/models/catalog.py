"""The models that have short names: `models.toml`, in this package and then in the user's config folder.

The user's adds entries and replaces those of the same name. Nothing here touches the network.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from llmrun import paths
from llmrun.errors import UsageError
from llmrun.models import quants
from llmrun.options.toml import is_option_value, read_toml

EMBEDDED: Mapping[str, Path] = {"tiny": Path(__file__).parents[1] / "data" / "tiny.gguf"}

_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
FILE = re.compile(r"[^/\\:*?\"<>|%]+(?:/[^/\\:*?\"<>|%]+)*\.gguf", re.IGNORECASE)
_WORD = r"[a-z0-9][a-z0-9._-]*"
_NAME = re.compile(f"{_WORD}:{_WORD}")
ALIAS = re.compile(f"{_WORD}(?::{_WORD})?")


@dataclass(frozen=True)
class CatalogEntry:
    """A model of the catalog. None: unknown.

    Attributes:
        name: "family:tag".
        aliases: other names; a family's own name is an alias of its usual size.
        parameters: number of weights in the GGUF file (text model only, without vision or draft heads).
        active_parameters: weights used for one token, of a mixture of experts.
        n_ctx: context in tokens that the model was trained for, before any stretching.
        summary: one line on what it is good for.
        gated: the hub asks to accept a licence first.
        seen: where the repository was seen.
        quant, file: what to take when the user names no level.
        settings: options of `llmrun run` that its makers recommend, by their names without dashes.
    """

    name: str
    repo: str
    aliases: tuple[str, ...] = ()
    parameters: int | None = None
    active_parameters: int | None = None
    n_ctx: int | None = None
    licence: str | None = None
    summary: str | None = None
    gated: bool = False
    seen: str | None = None
    quant: str | None = None
    file: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def tag(self) -> str:
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class Catalog:
    """Entries in the order of their files; names and aliases are unique."""

    entries: tuple[CatalogEntry, ...]

    @cached_property
    def _by_name(self) -> dict[str, CatalogEntry]:
        # Names last: an alias of the user's must not hide another entry's own name.
        names = {alias: entry for entry in self.entries for alias in entry.aliases}
        for family, entries in self.families().items():
            names.setdefault(family, entries[0])
        return names | {entry.name: entry for entry in self.entries}

    def find(self, name: str) -> CatalogEntry | None:
        """The entry of this name or alias, in any case. A family's name is its usual size.

        Two habits of ollama's users are understood: "qwen3:latest", and "llama3.1:8b-instruct" for what has no other
        edition here.
        """
        name = name.lower()
        stem = name.removesuffix(":latest")
        for known in (name, stem, re.sub("-(instruct|chat|it)$", "", stem)):
            if entry := self._by_name.get(known):
                return entry
        return None

    def families(self) -> dict[str, tuple[CatalogEntry, ...]]:
        """Family -> its entries, both in the order of the file."""
        found: dict[str, tuple[CatalogEntry, ...]] = {}
        for entry in self.entries:
            found[entry.family] = (*found.get(entry.family, ()), entry)
        return found

    def suggest(self, name: str, n: int = 5) -> tuple[str, ...]:
        """Names of at most `n` entries that someone who typed `name` may have meant, the likeliest first."""
        from difflib import get_close_matches

        wanted = name.lower()
        family, _, tag = wanted.partition(":")
        siblings = [entry.name for entry in self.families().get(family, ())]
        if siblings:  # the family is right: its nearest tags
            near = get_close_matches(tag, [sibling.partition(":")[2] for sibling in siblings], n, cutoff=0)
            return tuple(f"{family}:{tag}" for tag in near)
        close = get_close_matches(wanted, self._by_name, n, cutoff=0.6)
        close += get_close_matches(family, self.families(), n, cutoff=0.6)
        close += [known for known in self._by_name if family and family in known]
        return tuple(dict.fromkeys(self._by_name[each].name for each in close))[:n]


def load() -> Catalog:
    """The catalog of this package with the user's `models.toml` over it. Raises `UsageError` for a malformed one.

    A command asks several times: files that have not changed since are not read again.
    """
    files = (_shipped_file(), paths.config() / "models.toml")
    return _load(*files, tuple(_stamp(file) for file in files))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None: it isn't there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1)
def _load(shipped: Path, users: Path, _stamps: object) -> Catalog:
    kept = _read(shipped)
    mine = _read(users) if users.exists() else ()
    # What the user calls something is no longer a name of a shipped entry.
    taken = {entry.name for entry in mine} | {alias for entry in mine for alias in entry.aliases}
    return Catalog((*(_without_aliases(entry, taken) for entry in kept if entry.name not in taken), *mine))


def home(entry: CatalogEntry) -> Path:
    """The file that an entry of `load()` stands in."""
    users = paths.config() / "models.toml"
    return users if users.exists() and entry in _read(users) else _shipped_file()


def read(path: Path) -> Catalog:
    """The catalog in one file alone. Raises `UsageError` with the file, line and field of the first thing wrong."""
    return Catalog(_read(path))


def _shipped_file() -> Path:
    installed = Path(__file__).parents[1] / "models.toml"  # in a wheel; in a checkout it lies beside the package
    return installed if installed.exists() else Path(__file__).parents[2] / "models.toml"


def _without_aliases(entry: CatalogEntry, taken: set[str]) -> CatalogEntry:
    return dataclasses.replace(entry, aliases=tuple(alias for alias in entry.aliases if alias not in taken))


def is_repo(repo: str) -> bool:
    """As huggingface_hub's validate_repo_id has it, for user/name and in ASCII."""
    fits = all(len(part) <= 96 and part[-1:] not in ".-" for part in repo.split("/"))
    return fits and bool(_REPO.fullmatch(repo)) and ".." not in repo and "--" not in repo and not repo.endswith(".git")


# --- models.toml ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[CatalogEntry, ...]:
    tables, text = read_toml(path, "catalog")
    return _Checker(path, text).entries(tables)


class _Checker:
    """Makes entries of a parsed file, or says in which line and field it is wrong."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

    def entries(self, tables: Mapping[str, Any]) -> tuple[CatalogEntry, ...]:
        for key in tables:
            if key != "model":
                self._wrong(None, {}, key, "unknown; a catalog has [[model]] tables only")
        models = tables.get("model", [])
        if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
            self._wrong(None, {}, "model", "must be [[model]] tables")
        entries, taken = [], set(EMBEDDED)
        for index, fields in enumerate(models):
            entry = self._entry(index, fields)
            for field, names in (("name", (entry.name,)), ("aliases", entry.aliases)):
                for name in names:
                    if name in taken:
                        self._wrong(index, fields, field, f"'{name}' is taken already")
                    taken.add(name)
            entries.append(entry)
        return tuple(entries)

    def _entry(self, index: int, fields: Mapping[str, Any]) -> CatalogEntry:
        for field in ("name", "repo"):
            if field not in fields:
                self._wrong(index, fields, field, "is missing")
        made: dict[str, Any] = {field: self._value(index, fields, field, value) for field, value in fields.items()}
        active = made.get("active_parameters")
        if active and active > made.get("parameters", 0):
            self._wrong(index, fields, "active_parameters", "more than there are parameters")
        return CatalogEntry(**made)

    def _value(self, index: int, fields: Mapping[str, Any], field: str, value: Any) -> object:
        must: str | None = None
        made: Any = value
        if field in ("parameters", "active_parameters"):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 100_000:
                must = "a number of billions, such as 4.02"
            else:
                made = round(value * 1e9)
        elif field == "n_ctx":
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
                must = "a number of tokens, such as 32768"
        elif field == "settings":
            if not isinstance(value, dict) or not all(is_option_value(each) for each in value.values()):
                must = "a table of options, such as { temp = 0.6, top-p = 0.95 }"
        elif field == "gated":
            must = None if isinstance(value, bool) else "true or false"
        elif field == "aliases":
            made = tuple(value) if isinstance(value, list) else (None,)
            if not all(isinstance(each, str) and ALIAS.fullmatch(each) for each in made):
                must = 'a list of lower-case names, such as ["qwen3", "qwen3:latest"]'
        elif field not in CatalogEntry.__dataclass_fields__:
            must = f"one of {', '.join(CatalogEntry.__dataclass_fields__)}"
        elif not isinstance(value, str) or not value.strip() or not value.isprintable():
            must = "a line of text"
        elif field == "name" and (not _NAME.fullmatch(value) or quants.normalize(value.partition(":")[2])):
            must = "family:tag in lower case, such as qwen3:4b"
        elif field == "repo" and not is_repo(value):
            must = "a repository of the hub, user/repo"
        elif field == "quant":
            made = quants.normalize(value)
            must = None if made else "a quantization level, such as Q4_K_M"
        elif field == "file" and (not FILE.fullmatch(value) or ".." in value.split("/") or value.startswith("/")):
            must = "a .gguf in the repository"
        if must:
            self._wrong(index, fields, field, f"must be {must}")
        return made

    def _wrong(self, index: int | None, fields: Mapping[str, Any], field: str, what: str) -> NoReturn:
        """Name file, line, entry and field. The parser keeps no lines: the field is looked for in the text."""
        from llmrun.text import printable

        lines = self._text.splitlines()
        starts = [no for no, line in enumerate(lines) if re.match(r"\s*\[\[\s*model\s*\]\]", line)]
        is_found = index is not None and index < len(starts)
        first, last = [*starts, len(lines)][index : index + 2] if is_found else (0, len(lines))  # type: ignore[operator]
        here = [no for no in range(first, last) if re.match(rf'\s*\[*\s*"?{re.escape(field)}"?\s*[]=.]', lines[no])]
        line = here[0] + 1 if here else first + 1 if is_found else None
        name = fields.get("name")
        who = f"{printable(name)}: " if isinstance(name, str) else ""
        raise UsageError(f"{self._path}{f':{line}' if line else ''}: {who}{printable(field, 40)}: {what}")
