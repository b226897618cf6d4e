"""What an option is: declared once, beside the field of a dataclass that it sets.

    @dataclass(frozen=True)
    class LoadConfig:
        n_ctx: int | None = option(None, "ctx-size", Whole(0, MAX_CTX), short="c", help="Context in tokens.")

From this one line follow the check of the field, what the command line takes and its help says, what `config.toml` and
a chat can set, and what a bench can sweep. A name here is plain: "ctx-size" as it stands in `config.toml`; a front end
adds what its users type around it. Texts mention other options by their field, `n_ctx`, and what can be done as
`do: devices`; a front end puts its own spelling there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, get_args

from llmrun.errors import Remedy, UsageError

# The groups in which help shows options: the `panel` of each, or PANEL of its dataclass. The first is that of the few
# that a newcomer needs.
FIRST = "Options"
TEXT = "Prompt and answer"
OUTPUT = "Output"
SHAPE = "Shape of the answer"
SAMPLING = "Sampling"
OFFLOAD = "Where the layers lie"
SPEED = "Memory and speed"
MODEL = "The model"


class Kind:
    """What values an option has, and how one is written.

    `parse` and `check` raise `ValueError` with the problem alone, or a `UsageError` where there is more to say.
    """

    wanted = "a text"
    metavar = "<str>"
    toml: ClassVar[Any] = str
    """What a file of settings holds; a text stands there as it is typed."""

    def parse(self, text: str) -> Any:
        return text

    def check(self, value: Any) -> None:
        """Raise for a value of a dataclass's field."""

    def typed(self, value: Any) -> str:
        return str(value)


class Text(Kind):
    pass


class PathName(Kind):
    metavar = "<path>"

    def parse(self, text: str) -> Path:
        if not text.strip():
            raise ValueError("an empty name")
        return Path(text)


class Flag(Kind):
    wanted = "true or false"
    metavar = ""
    toml: ClassVar[Any] = bool

    def parse(self, text: str) -> bool:
        known = {"0": False, "1": True, "off": False, "on": True, "false": False, "true": True}
        if text.lower() not in known:
            raise ValueError(f"'{text[:40]}' is neither on nor off")
        return known[text.lower()]

    def typed(self, value: Any) -> str:
        return "on" if value else "off"


@dataclass(frozen=True)
class Number(Kind):
    """From `low` to `high`; NaN is in no range. Without bounds, any."""

    low: float | None = None
    high: float | None = None

    wanted = "a number"
    metavar = "<float>"
    toml: ClassVar[Any] = float

    def parse(self, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"'{text[:40]}' is not {self.wanted}") from None

    def check(self, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number")  # noqa: TRY004
        if (self.low is None or value >= self.low) and (self.high is None or value <= self.high) and value == value:
            return
        shown = "a number of that size" if isinstance(value, int) and abs(value) > 1e15 else value
        if self.high is None:
            raise ValueError(f"{shown} is less than {self.low}" if value == value else "nan is not a number")
        raise ValueError(f"{shown} is outside {self.low} to {self.high}")


@dataclass(frozen=True)
class Whole(Number):
    """2.5 tokens are never reached, and ctypes would refuse them too late."""

    wanted = "a whole number"
    metavar = "<int>"
    toml: ClassVar[Any] = int

    def parse(self, text: str) -> Any:
        if not re.fullmatch(r"[+-]?\d{1,4000}", text.strip()):
            raise ValueError(f"'{text[:40]}' is not {self.wanted}")
        return int(text)

    def check(self, value: Any) -> None:
        if not isinstance(value, int):
            raise ValueError(f"{value!r} is not a whole number")  # noqa: TRY004
        super().check(value)


class Choice(Kind):
    """One of these texts, or of those in a `Literal`."""

    def __init__(self, values: Any) -> None:
        self.values: tuple[str, ...] = get_args(values) or values
        self.metavar = "|".join(self.values)

    def check(self, value: Any) -> None:
        if value not in self.values:
            raise ValueError(f"'{str(value)[:40]}' is none of {', '.join(self.values)}")


@dataclass(frozen=True)
class Written(Kind):
    """Values with a way of their own to be written.

    Attributes:
        read: the text → the value; of an option that is repeated, a tuple of the values that one text has.
        write: the way back.
        valid: raises for a value that is out of range.
    """

    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    valid: Callable[[Any], None] = lambda _: None
    toml: Any = str  # type: ignore[misc]  # each has its own
    wanted: str = "a text"

    def parse(self, text: str) -> Any:
        return self.read(text)

    def typed(self, value: Any) -> str:
        return self.write(value)

    def check(self, value: Any) -> None:
        self.valid(value)


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: "ctx-size".
        kind: of one value.
        field: that it sets; as flat as options are: "n_gpu_layers" is `LoadConfig.offload.n_gpu_layers`.
        key: unique among the options of a command: `field`, or of one of several options for a field its own.
        attribute: the field's name in its own dataclass.
        default: of the field.
        short: "c"; `aliases` are other names, `elsewhere` what other programs call it.
        denial: the name for the contrary of a flag, where that is not "no-" and its name.
        without: the default in words, where its value says nothing: "as much as they need".
        metavar: what stands for a value; "" is that of the kind.
        repeatable: it can be given several times; the field is a tuple of the values, or a dict of pairs.
        negated: a flag that says the contrary of its field.
        swept: how a bench can vary it: "values", or "once" where the text of one value is a list already.
        means: of a second option for a field: its value → the field's.
        agrees: values of the field's own option that may stand beside it.
        example: what to give instead of a wrong value.
        complete: what has been typed of a value → what it can become, for a shell.
    """

    name: str
    kind: Kind
    field: str = ""
    key: str = ""
    attribute: str = ""
    default: Any = None
    help: str = ""
    short: str = ""
    aliases: tuple[str, ...] = ()
    denial: str = ""
    elsewhere: tuple[str, ...] = ()
    panel: str | None = None
    without: str = ""
    metavar: str = ""
    repeatable: bool = False
    negated: bool = False
    swept: str = "values"
    means: Callable[[Any], Any] | None = None
    agrees: tuple[Any, ...] = ()
    example: Remedy | None = None
    complete: Callable[[str], Any] | None = None

    @property
    def is_flag(self) -> bool:
        return isinstance(self.kind, Flag)

    @property
    def names(self) -> tuple[str, ...]:
        """As in `config.toml`, the usual first. A flag can be denied."""
        return (*self.plain_names, *self.contrary) if self.is_flag else self.plain_names

    @property
    def plain_names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    @property
    def contrary(self) -> tuple[str, ...]:
        """Names that say the contrary of a flag."""
        if not self.is_flag or not self.name:
            return ()
        if self.denial:
            return (self.denial,)
        return (self.name[3:],) if self.name.startswith("no-") else (f"no-{self.name}",)

    @property
    def wanted(self) -> str:
        return f"{self.kind.wanted}, or a list" if self.repeatable else self.kind.wanted

    def parse(self, text: str) -> Any:
        """The value of a text; raises `UsageError` about the field. Names of files may be other than UTF-8."""
        try:
            if not isinstance(self.kind, PathName) and not re.search("FILE|MODEL", self.metavar):
                text.encode()
            return self.kind.parse(text)
        except UnicodeEncodeError:
            raise self.wrong(f"'{text[:40]}' is not UTF-8", text) from None
        except ValueError as error:
            raise self.wrong(str(error), text) from None

    def check(self, value: Any) -> None:
        """Raise `UsageError` for a value of the field that is out of range; what is the default is in range."""
        if value is None and self.default is None:
            return
        for each in _items(value) if self.repeatable else (value,):
            try:
                self.kind.check(each)
            except ValueError as error:
                raise self.wrong(str(error), each) from None

    def wrong(self, problem: str, value: object = None) -> UsageError:
        return UsageError(problem, field=self.key, value=value, hint=self.example)

    def collected(self, values: Iterable[Any]) -> Any:
        """The field's value, of those that an option was repeated with."""
        every = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
        return dict(every) if isinstance(self.default, Mapping) else tuple(every)

    def texts(self, value: Any) -> list[str]:
        """How the field's value is typed: one text, or one for every time that the option is repeated."""
        if self.repeatable:
            return [self.kind.typed(each) for each in _items(value)]
        return [] if value is None else [self.kind.typed(value)]


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.items()
    return value if isinstance(value, list | tuple) else (value,)


def option(default: Any, name: str, kind: Kind, *, also: Sequence[Option] = (), **more: Any) -> Any:
    """A field of a dataclass, and the option that sets it; `also` are more options for the same field."""
    every = (Option(name, kind, default=default, **more), *also)
    if isinstance(default, Mapping):
        return field(default_factory=lambda: default, metadata={"options": every})
    return field(default=default, metadata={"options": every})


def group(options: type[Any]) -> Any:
    """A field of a dataclass that is a dataclass of options itself."""
    return field(default_factory=options, metadata={"group": options})


EMPTY: Mapping[Any, Any] = MappingProxyType({})


@cache
def options_of(options: type[Any]) -> tuple[Option, ...]:
    """All that set the fields of a dataclass and those of its groups."""
    found: list[Option] = []
    for each in fields(options):
        found += options_of(each.metadata["group"]) if "group" in each.metadata else _of_field(options, each)
    return tuple(found)


def _of_field(options: type[Any], each: Field[Any]) -> list[Option]:
    """The option that is named by a field, and then the others for it."""
    found: list[Option] = []
    for declared in each.metadata.get("options", ()):
        flat, default = (found[0].field, found[0].default) if found else (declared.field or each.name, declared.default)
        key = declared.name.replace("-", "_") if found else flat
        panel = declared.panel or getattr(options, "PANEL", None)
        found.append(replace(declared, field=flat, key=key, attribute=each.name, default=default, panel=panel))
    return found


@cache
def _own(options: type[Any]) -> Mapping[str, Option]:
    """The options that are named by fields, groups left out, by the field's name."""
    return {each.name: _of_field(options, each)[0] for each in fields(options) if "options" in each.metadata}


def check(config: Any) -> None:
    """Raise `UsageError` for the first field that is out of its range."""
    for name, each in _own(config.__class__).items():
        each.check(getattr(config, name))


def made(options: Any, values: Mapping[str, Any]) -> Any:
    """The dataclass with these values, by flat field; what is not among them is left as it is by default."""
    given = {}
    for each in fields(options):
        own = _own(options).get(each.name)
        if inner := each.metadata.get("group"):
            given[each.name] = made(inner, values)
        elif own is not None and own.field in values:
            given[each.name] = values[own.field]
    return options(**given)


def field_values(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat fields, of values by key: options that set the same field are one.

    Raises `UsageError` where two contradict each other.
    """
    by_field: dict[str, list[Option]] = {}
    for each in options:
        if each.key in values:
            by_field.setdefault(each.field, []).append(each)
    found = {}
    for flat, given in by_field.items():
        meant = [each.means(values[each.key]) if each.means else values[each.key] for each in given]
        first, last = given[0], given[-1]
        if first.repeatable:
            found[flat] = (
                dict(meant[0]) if isinstance(meant[0], Mapping) else tuple(item for items in meant for item in items)
            )
            continue
        if len(given) > 1 and values[first.key] not in last.agrees:
            typed = "".join(f" {text}" for text in first.texts(values[first.key]))
            raise UsageError(f"sets what `{first.key}`{typed} sets as well: one of the two", field=last.key)
        found[flat] = meant[-1]
    return found
