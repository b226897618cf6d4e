"""Options that are not typed every time: `config.toml` in the user's config folder, and what a catalog recommends.

    [defaults]                  # any option of `llmrun run`, as on the command line without its dashes
    ctx-size = 8192
    stop = ["###", "END"]       # what can be repeated there is a list here

    [models."qwen3:4b"]         # for one model: a name of the catalog, user/repo, a file; with a level or for all
    temp = 0.6

The nearest wins: the command line, then `[models]` (with a level before without), `[defaults]`, the catalog's
recommendation, what is built in. A recommendation is about the model and the user's own default about the user: who
wants temp 0.2 everywhere has said so knowing nothing of ours.

What a model is called, and what is recommended for it, is known to those who have a catalog: they hand in `Names`.
Nothing is parsed or imported for a file that isn't there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmrun import paths
from llmrun.errors import Act, DiskError, Remedy, UsageError
from llmrun.options.toml import is_option_value, read_toml

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

DEFAULTS, MODELS = "defaults", "models"
Value = bool | int | float | str | list[Any]
"""What TOML can say and an option can mean; lists hold the others."""


@dataclass(frozen=True)
class Setting:
    """One value, and where it stands.

    Attributes:
        key: as it is spelled there.
        file: None: built in.
        table: "[defaults]", '[models."qwen3:4b"]', or who recommends it: the name of a catalog entry, "the file".
    """

    key: str
    value: Value
    file: Path | None
    table: str

    @property
    def where(self) -> str:
        return f"{self.file}: {self.table} {self.key}" if self.file else self.table

    @property
    def is_recommended(self) -> bool:
        """Whether nobody here has set it."""
        return not self.table.startswith("[")

    def wrong(self, what: str, hint: Remedy | None = None) -> UsageError:
        from llmrun.text import printable

        return UsageError(f"{self.file}: {self.table} {printable(self.key, 40)}: {what}", hint=hint)


class Names(Protocol):
    """What models are called."""

    def closeness(self, table: str, model: str) -> int | None:
        """How closely the name of a table means a model, the higher the closer; None: it means another."""

    def recommended(self, model: str) -> Iterable[Setting]:
        """What is recommended for a model."""


@dataclass(frozen=True)
class Settings:
    """`config.toml`, read: its tables as they stand there."""

    path: Path
    defaults: tuple[Setting, ...] = ()
    models: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Setting, ...]:
        return (*self.defaults, *(each for name in self.models for each in self.models[name]))

    def of(self, model: str, known: Mapping[str, str], names: Names) -> dict[str, Setting]:
        """Option -> its setting for a model, as the user called it. Raises `UsageError` for an option that isn't one.

        `known` has every name of an option. A model that has no name here, or a wrong one, has the defaults: to say so
        is the command's business.
        """
        recommended = tuple(names.recommended(model))
        check((*self.all, *recommended), known)
        ranked = [(names.closeness(name, model), table) for name, table in self.models.items()]
        closest_last = sorted(((rank, table) for rank, table in ranked if rank is not None), key=lambda each: each[0])
        found: dict[str, Setting] = {}
        for layer in (recommended, self.defaults, *(table for _, table in closest_last)):
            for each in layer:
                found[known[each.key]] = each
        return found


def path() -> Path:
    return paths.config() / "config.toml"


def load(file: Path | None = None) -> Settings:
    """The user's settings; none where there is no file. Raises `UsageError` for what is no such file."""
    file = file or path()
    if not file.exists():
        return Settings(file)
    return _read(file, read_toml(file, "config")[0])


def _read(file: Path, tables: Mapping[str, Any]) -> Settings:
    for name in tables:
        if name not in (DEFAULTS, MODELS):
            raise UsageError(
                f"{file}: {_shown(name)}: unknown; there are [{DEFAULTS}] and [{MODELS}.NAME]",
                hint=Act("help", "config set"),
            )
    models = tables.get(MODELS, {})
    if not isinstance(models, dict):
        raise UsageError(f'{file}: {MODELS}: must be tables, such as [{MODELS}."qwen3:4b"]')
    return Settings(
        file,
        _settings(file, f"[{DEFAULTS}]", tables.get(DEFAULTS, {})),
        {name: _settings(file, table_of(name), table) for name, table in models.items()},
    )


def table_of(model: str | None) -> str:
    """A table's name as it stands in the file."""
    return f"[{DEFAULTS}]" if model is None else f'[{MODELS}."{_shown(model)}"]'


def _shown(name: str) -> str:
    from llmrun.text import printable

    return printable(name, 60)


def _settings(file: Path, table: str, fields: object) -> tuple[Setting, ...]:
    if not isinstance(fields, dict):
        raise UsageError(f"{file}: {table}: must be a table")
    found = []
    for key, value in fields.items():
        setting = Setting(key, value, file, table)
        if isinstance(value, dict):
            # [models.qwen3.5] is TOML for two tables in each other.
            raise setting.wrong("is a table and not a value; a model's name with dots in it stands in quotes")
        if not is_option_value(value):
            raise setting.wrong("must be a number, a text, true or false, or a list of these")
        found.append(setting)
    return tuple(found)


def check(settings: Iterable[Setting], known: Mapping[str, str]) -> None:
    """Raise `UsageError` for the first that is no option, with the nearest that is one."""
    for each in settings:
        if each.key not in known:
            near = nearest(each.key, known)
            raise each.wrong(f"unknown; the nearest is {near}", hint=Act("help", "run"))


def nearest(key: str, known: Iterable[str]) -> str:
    """The option that someone who wrote `key` may have meant."""
    from difflib import get_close_matches

    names = list(known)
    plain = key.lower().lstrip("-").replace("_", "-")
    for name in names:
        if plain == name:
            return name
    beginning = [name for name in names if plain.startswith(name) or (len(plain) > 2 and name.startswith(plain))]
    return max(beginning, key=len) if beginning else get_close_matches(plain, names, 1, cutoff=0.0)[0]


# -- to write ---------------------------------------------------------------------------------------------------------


def put(
    key: str, value: Value, model: str | None = None, file: Path | None = None, *, instead_of: Iterable[str] = ()
) -> Path:
    """Set one value and leave everything else as it is, comments included. Raises `UsageError`, `DiskError`.

    `instead_of`: other spellings of the option, which would say something else.
    """

    def edit(document: TOMLDocument) -> None:
        table = _table(document, model)
        for other in instead_of:
            if other != key and other in table:
                del table[other]
        table[key] = value

    return _edit(edit, file)


def drop(key: str, model: str | None = None, file: Path | None = None, *, also: Iterable[str] = ()) -> Path:
    """Take one value out, and its table if nothing is left in it. Raises `UsageError` where it isn't set.

    `also`: other spellings of the option, any of which will do.
    """

    def edit(document: TOMLDocument) -> None:
        parent: Any = document
        name: str | None = DEFAULTS
        if model is not None:
            parent = document.get(MODELS, {})
            name = _same(parent, model)
        table: Any = parent.get(name) if name is not None else None
        there = [each for each in dict.fromkeys((key, *also)) if table is not None and each in table]
        if not there:
            raise UsageError(f"{table_of(model)} has no {_shown(key)}", hint=Act("config"))
        for each in there:
            del table[each]
        if not table.as_string().strip():
            del parent[name]
            if model is not None and not parent:
                del document[MODELS]

    return _edit(edit, file)


def _table(document: TOMLDocument, model: str | None) -> Any:
    import tomlkit

    if model is None:
        if DEFAULTS not in document:
            document[DEFAULTS] = tomlkit.table()
        return document[DEFAULTS]
    if MODELS not in document:
        document[MODELS] = tomlkit.table(is_super_table=True)
    models: Any = document[MODELS]
    name = _same(models, model)
    if name is None:
        name = model
        models[name] = tomlkit.table()
    return models[name]


def _same(tables: Iterable[str], model: str) -> str | None:
    """The name of a table as it stands there, in whatever case."""
    return next((name for name in tables if name.lower() == model.lower()), None)


def _edit(edit: Any, file: Path | None) -> Path:
    """Read, change and replace the file, one process at a time: whoever reads it sees the old or the new, whole."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    shown = file or path()
    target = Path(os.path.realpath(shown))  # a link into a folder of dotfiles stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            text = ""
            if target.exists():
                _read(shown, read_toml(target, "config", shown)[0])
                text = target.read_bytes().decode()  # line ends as they are
            try:
                document = tomlkit.parse(text)
                edit(document)
                new = tomlkit.dumps(document)
            except TOMLKitError as error:
                raise UsageError(f"{shown}: can't be edited: {error}", hint="edit it by hand") from None
            _replace(target, new, shown)
    except OSError as error:
        raise DiskError(f"{shown}: can't be written: {error.strerror}") from None
    return shown


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of all processes that change the file only this one, until the block is left. The folder itself is locked."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(target: Path, text: str, shown: Path) -> None:
    """Atomically, on the disk before it counts. A killed one leaves `config.toml.new`, which the next overwrites."""
    from llmrun.fs import fsync_folder

    new = target.with_name(f"{target.name}.new")
    with new.open("w", encoding="utf-8", newline="") as file:
        if target.exists():
            os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _read(shown, read_toml(new, "config", shown)[0])  # what one library wrote, the other has to understand
    new.replace(target)
    fsync_folder(target.parent)
