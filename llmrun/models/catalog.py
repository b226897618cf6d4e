"""What a user may call a model, and the list of models that have short names.

One grammar for every command (catalog names and levels in any case):

    tiny                                the model inside this package
    qwen3:4b · qwen3                    catalog; a family alone is its usual size
    qwen3:4b:Q5_K_M                     at a quantization level; qwen3:4b@Q5_K_M and qwen3:4b-q5_K_M are understood
    user/repo · user/repo:Q4_K_M        any GGUF repository on the hub; also behind hf.co/ and hf://
    user/repo@main                      at a revision: whatever after @ is no level
    hf://user/repo/file.gguf            one file; so is a URL of the hub, /resolve/ or /blob/
    ./file.gguf · ~/file.gguf           a file: has a folder in front, ends in .gguf, or exists

A catalog name beats a file of that name in the current folder ("./qwen3" is the file), so that what a command means
does not depend on where it is typed.

The catalog is `models.toml`, in this package and then in the user's config folder; the latter adds entries and
replaces those of the same name. Nothing here touches the network.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from llmrun import paths
from llmrun.errors import NotFound, UsageError
from llmrun.models import quants
from llmrun.options.toml import is_option_value, read_toml

EMBEDDED: Mapping[str, Path] = {"tiny": Path(__file__).parents[1] / "data" / "tiny.gguf"}
MAX_REFERENCE_CHARACTERS = 512
MAX_CATALOG_BYTES = 1 << 20
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HELP = "llmrun pull --help"
_LINUX: bool = sys.platform == "linux"

_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*(?<![./])")
_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FILE = re.compile(r"[^/\\:*?\"<>|%]+(?:/[^/\\:*?\"<>|%]+)*\.gguf", re.IGNORECASE)
_WORD = r"[a-z0-9][a-z0-9._-]*"
_NAME = re.compile(f"{_WORD}:{_WORD}")
_ALIAS = re.compile(f"{_WORD}(?::{_WORD})?")


@dataclass(frozen=True)
class Embedded:
    """The model inside this package."""

    name: str
    path: Path

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class LocalFile:
    """A path that the user gave, "~" expanded; nobody has looked whether it exists."""

    path: Path

    @property
    def name(self) -> str:
        """The path, so written that it can't be taken for another kind of name."""
        text = str(self.path)
        return text if _looks_like_a_path(text) else f"./{text}"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class HubFile:
    """A model on the hub.

    Attributes:
        quant: the level that was asked for, in one spelling. It may be one that nobody has (`quants.choose` says so).
        file: exactly this file of the repository; then `quant` is None.
        revision: branch, tag or commit; None is the main branch.
        name: what the user calls it, without level and revision: "qwen3:4b" or "user/repo".
    """

    repo: str
    quant: str | None
    file: str | None
    revision: str | None
    name: str

    def __str__(self) -> str:
        """A spelling that `parse` reads as the same thing."""
        revision = f"@{self.revision}" if self.revision else ""
        if self.file:
            return f"hf://{self.repo}{revision}/{self.file}"
        return self.name + (f":{self.quant}" if self.quant else "") + revision


Reference = Embedded | LocalFile | HubFile


@dataclass(frozen=True)
class Entry:
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

    entries: tuple[Entry, ...]

    @cached_property
    def _by_name(self) -> dict[str, Entry]:
        # Names last: an alias of the user's must not hide another entry's own name.
        names = {alias: entry for entry in self.entries for alias in entry.aliases}
        for family, entries in self.families().items():
            names.setdefault(family, entries[0])
        return names | {entry.name: entry for entry in self.entries}

    def find(self, name: str) -> Entry | None:
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

    def families(self) -> dict[str, tuple[Entry, ...]]:
        """Family -> its entries, both in the order of the file."""
        found: dict[str, tuple[Entry, ...]] = {}
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


def home(entry: Entry) -> Path:
    """The file that an entry of `load()` stands in."""
    users = paths.config() / "models.toml"
    return users if users.exists() and entry in _read(users) else _shipped_file()


def read(path: Path) -> Catalog:
    """The catalog in one file alone. Raises `UsageError` with the file, line and field of the first thing wrong."""
    return Catalog(_read(path))


def _shipped_file() -> Path:
    installed = Path(__file__).parents[1] / "models.toml"  # in a wheel; in a checkout it lies beside the package
    return installed if installed.exists() else Path(__file__).parents[2] / "models.toml"


def _without_aliases(entry: Entry, taken: set[str]) -> Entry:
    if taken.isdisjoint(entry.aliases):
        return entry
    from dataclasses import replace

    return replace(entry, aliases=tuple(alias for alias in entry.aliases if alias not in taken))


# --- names ---------------------------------------------------------------------------------------------------------


def parse(text: str, catalog: Catalog | None = None) -> Reference:
    """What `text` names. Reads the catalog (`load()` unless it is given) only when the text may be a name in it.

    Raises `UsageError` for what can't be a name, `NotFound` for a name that the catalog does not have.
    """
    if not text.strip():
        _malformed(text, "the name is empty")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        _malformed(text, "it has a control character")
    if text.lower() in EMBEDDED:
        return Embedded(text.lower(), EMBEDDED[text.lower()])
    scheme, marked, rest = text.partition("://")
    if marked:
        return _url(text, scheme.lower(), rest)
    if _looks_like_a_path(text):
        return LocalFile(_expanded(text))
    _check_characters(text, text)
    host, _, path = text.partition("/")
    if host.lower() in _HUB_HOSTS:
        return _hub_path(text, path)
    if "/" in text.partition("@")[0]:
        return _file(text) or _repository(text, text)
    return _catalog_name(text, catalog or load())


def _looks_like_a_path(text: str) -> bool:
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")):
        return True
    return text.lower().endswith(".gguf") and text.partition("/")[0].lower() not in _HUB_HOSTS


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # no such user
        return Path(text)


def _file(text: str) -> LocalFile | None:
    try:
        return LocalFile(Path(text)) if Path(text).is_file() else None
    except OSError:  # a component that is too long: no file
        return None


def _check_characters(text: str, name: str) -> None:
    """Refuse what no name of a model has, before anything is made of it; `name` is `text` without its scheme."""
    if len(text) > MAX_REFERENCE_CHARACTERS:
        _malformed(text, f"it has {len(text)} characters, and {MAX_REFERENCE_CHARACTERS} are the limit")
    if "%" in text:
        _malformed(text, "write the characters themselves, not percent codes")
    if not text.isprintable():
        _malformed(text, "it has an invisible character")
    if any(part in (".", "..", "") for part in name.removesuffix("/").split("/")):
        _malformed(text, "it has an empty or dotted part in its path")


def _url(text: str, scheme: str, rest: str) -> HubFile:
    rest = rest.partition("#")[0].partition("?")[0]
    _check_characters(text, rest)
    if scheme in ("hf", "huggingface"):
        return _hub_path(text, rest)
    if scheme not in ("http", "https"):
        _malformed(text, f"{scheme}:// is not understood; hf:// and https:// are")
    host, _, path = rest.partition("/")
    if host.lower() not in _HUB_HOSTS:
        endpoint = os.environ.get("HF_ENDPOINT", "").partition("://")[2].strip("/")
        if not endpoint or not f"{rest}/".lower().startswith(f"{endpoint.lower()}/"):
            _malformed(text, "only files on the hub can be named by URL: https://huggingface.co/user/repo/…")
        path = rest[len(endpoint) :]  # a mirror of the hub may live below a path
    return _hub_path(text, path)


def _hub_path(text: str, path: str) -> HubFile:
    """What stands behind hf:// or the hub's host: user/repo, perhaps with a level, a revision, a file."""
    parts = path.strip("/").split("/")
    if len(parts) < 2 or (len(parts) > 2 and parts[0] in ("datasets", "spaces")):
        _malformed(text, "a repository is user/repo")
    if len(parts) == 2:
        return _repository(text, "/".join(parts))
    repo, _, revision = "/".join(parts[:2]).partition("@")
    rest = parts[2:]
    if len(rest) > 1 and rest[0] in ("resolve", "blob", "raw", "tree"):
        revision, rest = rest[1], rest[2:]
    if revision == "refs":  # refs/pr/7
        revision, rest = "/".join((revision, *rest[:2])), rest[2:]
    _check_repo(text, repo)
    if not rest:
        return HubFile(repo, None, None, _revision(text, revision), repo)
    file = "/".join(rest)
    if not _FILE.fullmatch(file):
        _malformed(text, "the file in the repository is no .gguf")
    return HubFile(repo, None, file, _revision(text, revision), repo)


def _repository(text: str, path: str) -> HubFile:
    """user/repo, user/repo:LEVEL, user/repo@REVISION and both."""
    repo, quant, revision = _suffixes(text, path)
    _check_repo(text, repo)
    return HubFile(repo, quant, None, revision, repo)


def _is_repo(repo: str) -> bool:
    """As huggingface_hub's validate_repo_id has it, for user/name and in ASCII."""
    fits = all(len(part) <= 96 and part[-1:] not in ".-" for part in repo.split("/"))
    return fits and bool(_REPO.fullmatch(repo)) and ".." not in repo and "--" not in repo and not repo.endswith(".git")


def _check_repo(text: str, repo: str) -> None:
    if not _is_repo(repo):
        _malformed(text, "a repository is user/repo: letters, digits, single . and -, and _")


def _suffixes(text: str, rest: str) -> tuple[str, str | None, str | None]:
    """Take the level and the revision off the end: "a/b:Q8_0@main" -> ("a/b", "Q8_0", "main")."""
    rest, at, after = rest.partition("@")
    revision: str | None = None
    quant: str | None = None
    if at:
        word, _, level = after.partition(":")
        if quants.normalize(word):
            if level:
                _malformed(text, "it names two levels")
            level = word
        else:
            revision = _revision(text, word)
        if level:
            quant = _quant(text, level)
    head, colon, level = rest.rpartition(":")
    if colon and "/" in head:
        if quant and level:
            _malformed(text, "it names two levels")
        rest, quant = head, quant or _quant(text, level)
    return rest, quant, revision


def _quant(text: str, level: str) -> str | None:
    if level.lower() == "latest":  # ollama's habit
        return None
    if not _LEVEL.fullmatch(level):
        _malformed(text, "a quantization level is a word such as Q4_K_M")
    return quants.normalize(level) or level


def _revision(text: str, revision: str) -> str | None:
    if revision in ("", "main"):
        if not revision and "@" in text:
            _malformed(text, "nothing follows the @")
        return None
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        _malformed(text, "a revision is a branch, a tag or a commit")
    return revision


def _catalog_name(text: str, catalog: Catalog) -> Reference:
    """A name without a slash: family, family:tag, and the three ways to add a level."""
    name, _, after = text.partition("@")
    entry, quant = catalog.find(name), None
    if entry is None:
        for stem, level in _with_level(name):
            entry = catalog.find(stem)
            if entry is not None:
                quant = _quant(text, level)
                break
    if entry is None:
        return _file(text) or _unknown(text, name, catalog)
    revision: str | None = None
    if "@" in text:
        _, at_quant, revision = _suffixes(text, f"@{after}")
        if quant and at_quant:
            _malformed(text, "it names two levels")
        quant = quant or at_quant
    file = entry.file if quant is None else None
    return HubFile(entry.repo, None if file else quant or entry.quant, file, revision, entry.name)


def _with_level(name: str) -> Iterator[tuple[str, str]]:
    """Every way to read the end of `name` as a level: after a second colon anything, elsewhere only a known one."""
    head, colon, level = name.rpartition(":")
    if colon and level and (":" in head or quants.normalize(level)):
        yield head, level
    for dash in re.finditer("-", name):
        if quants.normalize(name[dash.end() :]):
            yield name[: dash.start()], name[dash.end() :]


def _unknown(text: str, name: str, catalog: Catalog) -> NoReturn:
    from llmrun.text import printable

    family = name.partition(":")[0].lower()
    if family in EMBEDDED:
        _malformed(text, f"{family} has one size and one level: call it {family}")
    if not _ALIAS.fullmatch(name.lower()) and not _LEVEL.fullmatch(name.replace(":", "-")):
        _malformed(text, "a name is letters, digits, . _ and -, such as qwen3:4b")
    near = catalog.suggest(name)
    tags = [entry.tag for entry in catalog.families().get(family, ())]
    if tags:
        said = f"{printable(family)} has no {printable(name.partition(':')[2])}; it has {', '.join(tags)}"
    elif near:
        said = f"no model or file is called '{printable(text)}'; near are {', '.join(near)}"
    else:
        said = f"no model or file is called '{printable(text)}'"
    raise NotFound(said, hint=f"llmrun search {printable(family, 40)}")


def _malformed(text: str, why: str) -> NoReturn:
    from llmrun.text import printable

    raise UsageError(f"'{printable(text)}' names no model: {why}", hint=_HELP)


# --- models.toml ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Entry, ...]:
    tables, text = read_toml(path, "catalog")
    return _Checker(path, text).entries(tables)


class _Checker:
    """Makes entries of a parsed file, or says in which line and field it is wrong."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text

    def entries(self, tables: Mapping[str, Any]) -> tuple[Entry, ...]:
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

    def _entry(self, index: int, fields: Mapping[str, Any]) -> Entry:
        made: dict[str, Any] = {}
        for field in ("name", "repo"):
            if field not in fields:
                self._wrong(index, fields, field, "is missing")
        for field, value in fields.items():
            made[field] = self._value(index, fields, field, value)
        active = made.get("active_parameters")
        if active and active > made.get("parameters", 0):
            self._wrong(index, fields, "active_parameters", "more than there are parameters")
        return Entry(**made)

    def _value(self, index: int, fields: Mapping[str, Any], field: str, value: Any) -> object:
        must: str | None = None
        made: object = value
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
            if not isinstance(value, list) or not all(
                isinstance(each, str) and _ALIAS.fullmatch(each) for each in value
            ):
                must = 'a list of lower-case names, such as ["qwen3", "qwen3:latest"]'
            else:
                made = tuple(value)
        elif field not in Entry.__dataclass_fields__:
            must = f"one of {', '.join(Entry.__dataclass_fields__)}"
        elif not isinstance(value, str) or not value.strip() or not value.isprintable():
            must = "a line of text"
        elif field == "name" and (not _NAME.fullmatch(value) or quants.normalize(value.partition(":")[2])):
            must = "family:tag in lower case, such as qwen3:4b"
        elif field == "repo" and not _is_repo(value):
            must = "a repository of the hub, user/repo"
        elif field == "quant":
            made = quants.normalize(value)
            must = None if made else "a quantization level, such as Q4_K_M"
        elif field == "file" and (not _FILE.fullmatch(value) or ".." in value.split("/") or value.startswith("/")):
            must = "a .gguf in the repository"
        if must:
            self._wrong(index, fields, field, f"must be {must}")
        return made

    def _wrong(self, index: int | None, fields: Mapping[str, Any], field: str, what: str) -> NoReturn:
        """Name file, line, entry and field. The parser keeps no lines: the field is looked for in the text."""
        from llmrun.text import printable

        lines = self._text.splitlines()
        starts = [no for no, line in enumerate(lines) if re.match(r"\s*\[\[\s*model\s*\]\]", line)]
        first, last = 0, len(lines)
        if index is not None and index < len(starts):
            first = starts[index]
            last = starts[index + 1] if index + 1 < len(starts) else len(lines)
        here = [no for no in range(first, last) if re.match(rf'\s*\[*\s*"?{re.escape(field)}"?\s*[]=.]', lines[no])]
        line = here[0] + 1 if here else first + 1 if index is not None and index < len(starts) else None
        name = fields.get("name")
        who = f"{printable(name)}: " if isinstance(name, str) else ""
        raise UsageError(f"{self._path}{f':{line}' if line else ''}: {who}{printable(field, 40)}: {what}")
