"""What a user may call a model.

One grammar for every command (catalog names and levels in any case):

    tiny                                the model inside this package
    qwen3:4b · qwen3                    catalog; a family alone is its usual size
    qwen3:4b:Q5_K_M                     at a quantization level; qwen3:4b@Q5_K_M and qwen3:4b-q5_K_M are understood
    user/repo · user/repo:Q4_K_M        any GGUF repository on the hub; also behind hf.co/ and hf://
    user/repo@main                      at a revision: whatever after @ is no level
    hf://user/repo/file.gguf            one file; so is a URL of the hub: /resolve/, /blob/, ?show_file_info=
    ./file.gguf · ~/file.gguf           a file: has a folder in front, ends in .gguf, or exists

A catalog name beats a file of that name in the current folder ("./qwen3" is the file), so that what a command means
does not depend on where it is typed.

Nothing here touches the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qs, unquote

from llmrun.errors import Act, NotFound, UsageError
from llmrun.models import quants
from llmrun.models.catalog import ALIAS, EMBEDDED, FILE, Catalog, is_repo, load
from llmrun.text import printable

MAX_REFERENCE_CHARACTERS = 512
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*(?<![./])")
_LEVEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
    if text.partition("/")[0].lower() in _HUB_HOSTS:
        return _url(text, "https", text)
    if _looks_like_a_path(text):
        return LocalFile(_expanded(text))
    _check_characters(text, text)
    if "/" in text.partition("@")[0]:
        return _file(text) or _repository(text, text.rstrip("/"))
    return _catalog_name(text, catalog or load())


def _looks_like_a_path(text: str) -> bool:
    return text in (".", "..") or text.startswith(("/", "./", "../", "~")) or text.lower().endswith(".gguf")


def _expanded(text: str) -> Path:
    with suppress(RuntimeError):  # no such user
        return Path(text).expanduser()
    return Path(text)


def _file(text: str) -> LocalFile | None:
    with suppress(OSError):  # a component that is too long: no file
        return LocalFile(Path(text)) if Path(text).is_file() else None
    return None


def _check_characters(text: str, name: str) -> None:
    """Refuse what no name of a model has, before anything is made of it; `name` is `text` without scheme, decoded."""
    if len(text) > MAX_REFERENCE_CHARACTERS:
        _malformed(text, f"it has {len(text)} characters, and {MAX_REFERENCE_CHARACTERS} are the limit")
    if "%" in name:
        _malformed(text, "write the characters themselves, not percent codes")
    if not (text + name).isprintable():
        _malformed(text, "it has an invisible character")
    if any(part in (".", "..", "") for part in name.removesuffix("/").split("/")):
        _malformed(text, "it has an empty or dotted part in its path")


def _url(text: str, scheme: str, rest: str) -> HubFile:
    rest, _, query = rest.partition("#")[0].partition("?")
    rest = unquote(rest)
    _check_characters(text, rest)
    # Where a browser is when it shows one file of a repository.
    if shown := parse_qs(query).get("show_file_info", [""])[0]:
        _check_characters(text, shown)
    if scheme in ("hf", "huggingface"):
        return _hub_path(text, rest, shown)
    if scheme not in ("http", "https"):
        _malformed(text, f"{scheme}:// is not understood; hf:// and https:// are")
    host, _, path = rest.partition("/")
    if host.lower() not in _HUB_HOSTS:
        endpoint = os.environ.get("HF_ENDPOINT", "").partition("://")[2].strip("/")
        if not endpoint or not f"{rest}/".lower().startswith(f"{endpoint.lower()}/"):
            _malformed(text, "only files on the hub can be named by URL: https://huggingface.co/user/repo/…")
        path = rest[len(endpoint) :]  # a mirror of the hub may live below a path
    return _hub_path(text, path, shown)


def _hub_path(text: str, path: str, shown: str) -> HubFile:
    """What stands behind hf:// or the hub's host: user/repo, perhaps with a level, a revision, a file.

    `shown` is the file that the address names behind its "?", or empty.
    """
    parts = path.strip("/").split("/")
    if len(parts) < 2 or (len(parts) > 2 and parts[0] in ("datasets", "spaces")):
        _malformed(text, "a repository is user/repo")
    if len(parts) == 2 and not shown:
        return _repository(text, "/".join(parts))
    repo, _, revision = "/".join(parts[:2]).partition("@")
    rest = parts[2:]
    in_folder = rest[:1] == ["tree"]
    if len(rest) > 1 and rest[0] in ("resolve", "blob", "raw", "tree"):
        revision, rest = rest[1], rest[2:]
    if revision == "refs":  # refs/pr/7
        revision, rest = "/".join((revision, *rest[:2])), rest[2:]
    _check_repo(text, repo)
    file = shown or "/".join(rest)
    if not file or (in_folder and not shown):  # the folder of a level, perhaps
        return HubFile(repo, quants.quant_of(file), None, _revision(text, revision), repo)
    if not FILE.fullmatch(file):
        _malformed(text, "the file in the repository is not a .gguf")
    return HubFile(repo, None, file, _revision(text, revision), repo)


def _repository(text: str, path: str) -> HubFile:
    """user/repo, user/repo:LEVEL, user/repo@REVISION and both."""
    repo, quant, revision = _suffixes(text, path)
    _check_repo(text, repo)
    return HubFile(repo, quant, None, revision, repo)


def _check_repo(text: str, repo: str) -> None:
    if not is_repo(repo):
        _malformed(text, "a repository is user/repo: letters, digits, single . and -, and _")


def _suffixes(text: str, rest: str) -> tuple[str, str | None, str | None]:
    """Take the level and the revision off the end: "a/b:Q8_0@main" -> ("a/b", "Q8_0", "main")."""
    rest, at, after = rest.partition("@")
    revision = quant = None
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
        if (quant and level) or ":" in head:
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
            if any(catalog.find(shorter) for shorter, _ in _with_level(stem)):
                _malformed(text, "it names two levels")
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
    from difflib import get_close_matches

    family = name.partition(":")[0].lower()
    if family in EMBEDDED:
        _malformed(text, f"{family} has one size and one level: call it {family}")
    if not ALIAS.fullmatch(name.lower()) and not _LEVEL.fullmatch(name.replace(":", "-")):
        _malformed(text, "a name is letters, digits, . _ and -, such as qwen3:4b")
    said = f"no model or file is called '{printable(text)}'"
    if tags := [entry.tag for entry in catalog.families().get(family, ())]:
        said = f"{printable(family)} has no {printable(name.partition(':')[2])}; it has {', '.join(tags)}"
    elif near := (*get_close_matches(family, EMBEDDED, 1, 0.75), *catalog.suggest(name)):
        said += f"; near are {', '.join(near)}"
    raise NotFound(said, hint=Act("search", printable(family, 40)))


def _malformed(text: str, why: str) -> NoReturn:
    raise UsageError(f"'{printable(text)}' is not a name of a model: {why}", hint=Act("help", "pull"))
