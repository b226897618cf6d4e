"""A command: a function, what its parameters take of the command line, and where values come from that nobody typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from llmrun.cli.framework import options, parser, spelling
from llmrun.cli.framework.page import Rows
from llmrun.errors import Act, LlmrunError, UsageError
from llmrun.options import spec
from llmrun.options.settings import Given, resolve


@dataclass(frozen=True)
class Invocation:
    """For a command that asks for it by a parameter of this type: what it was called as, and the program around it.

    Attributes:
        path: "config set".
        command: the command of a path.
        settable: name → option, of everything that `config.toml` can set.
        given: what counts for the model of a name: what was typed here, before what `config.toml` and the catalog say.
    """

    path: str
    command: Callable[[str], Command]
    settable: Callable[[], dict[str, spec.Option]]
    given: Callable[[str], Mapping[str, Given]] = lambda _: {}


@dataclass(frozen=True)
class Positional:
    """One argument of a command."""

    key: str
    metavar: str
    help: str
    required: bool
    many: bool
    kind: spec.Kind
    complete: Callable[[str], Any] | None


class Command:
    """What `llmrun NAME` does. Called, it is its function.

    Attributes:
        model_of: what it runs, of the values that were typed; options have the settings of that model as defaults.
        prepared: what to make of the words before they are read.
        strict: False: what looks like an option that there is not is an argument.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        model_of: Callable[[Mapping[str, Any]], str] | None = None,
        prepared: Callable[[list[str]], list[str]] | None = None,
        epilog: Callable[[], str] | None = None,
        strict: bool = True,
    ) -> None:
        self.function, self.model_of, self.prepared, self.epilog = function, model_of, prepared, epilog
        self.strict = strict
        self.help = inspect.getdoc(function) or ""

    def __call__(self, *args: Any, **values: Any) -> Any:
        return self.function(*args, **values)

    @property
    def takes_settings(self) -> bool:
        return self.model_of is not None

    # -- what it takes ---

    @cached_property
    def _parameters(self) -> dict[str, tuple[Any, Any, inspect.Parameter]]:
        """Name → type, what is declared beside it, parameter."""
        hints = get_type_hints(self.function, include_extras=True)
        found = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            hint, declared = hints[name], None
            if get_origin(hint) is Annotated:
                hint, declared = get_args(hint)[:2]
            found[name] = hint, declared, parameter
        return found

    @cached_property
    def arguments(self) -> tuple[Positional, ...]:
        found = []
        for name, (hint, declared, parameter) in self._parameters.items():
            if isinstance(declared, options.Argument):
                kind, many, optional = _kind(hint)
                required = not optional and parameter.default is parameter.empty
                found.append(Positional(name, declared.metavar, declared.help, required, many, kind, declared.complete))
        return tuple(found)

    @cached_property
    def groups(self) -> dict[str, tuple[Any, options.Swept | None]]:
        """Parameters that are dataclasses of options."""
        found: dict[str, tuple[Any, options.Swept | None]] = {}
        for name, (hint, declared, _) in self._parameters.items():
            if isinstance(declared, options.Swept):
                found[name] = get_args(hint)[0], declared
            elif is_dataclass(hint) and hint is not Invocation:
                found[name] = hint, None
        return found

    @cached_property
    def options(self) -> tuple[spec.Option, ...]:
        found = [
            _declared(name, hint, declared, parameter)
            for name, (hint, declared, parameter) in self._parameters.items()
            if isinstance(declared, options.Option)
        ]
        for group, swept in self.groups.values():
            mine = spec.options_of(group)
            if swept is None:
                found += mine
            else:
                from llmrun.cli.framework import sweeps

                found += sweeps.swept(mine, swept.without)
        return tuple(found)

    # -- a call ---

    def run(self, words: Sequence[str], invocation: Invocation, subcommands: Rows = ()) -> Any:
        """Read the words, fill in settings, call the function. Raises `LlmrunError`."""
        spelling.options_are(self.options)
        said = parser.read(
            self.prepared(list(words)) if self.prepared else words,
            self.options,
            command=invocation.path,
            strict=self.strict,
        )
        if said.help:
            from llmrun.cli.framework import help
            from llmrun.cli.terminal import screen

            everything = said.help in parser.HELP_ALL
            screen.out(help.of_command(invocation.path, self, subcommands, everything=everything))
            return None
        values = self._positionals(said.arguments, invocation.path)
        typed = self._parsed(said.texts)
        given = self.given(typed, values, invocation)
        invocation = replace(invocation, given=lambda model: self._for_model(model, typed, invocation.settable))
        try:
            for name, (hint, _, _) in self._parameters.items():
                if hint is Invocation:
                    values[name] = invocation
            return self.function(**values, **self.values(given))
        except LlmrunError as error:
            if error.field and (option := spelling.option_of(error.field)):
                blamed = [each.key for each in self.options if each.field == option.field]
                settings = (given[key].setting for key in blamed if key in given)
                if setting := next(filter(None, settings), None):
                    error.where = setting.where
            raise

    def given(self, typed: Mapping[str, Any], values: dict[str, Any], invocation: Invocation) -> dict[str, Given]:
        """What was typed and what is set, by key of the option; `values` gets the model's name where it is known."""
        if self.model_of is None:
            return {key: Given(value) for key, value in typed.items()}
        model = self.model_of({**values, **typed})
        if values.get("model", model) is None:
            values["model"] = model
        return self._for_model(model, typed, invocation.settable)

    def _for_model(
        self, model: str, typed: Mapping[str, Any], settable: Callable[[], dict[str, spec.Option]]
    ) -> dict[str, Given]:
        from llmrun.models.model_settings import Names

        return resolve(self.options, typed, model, Names(), others=settable)

    def values(self, given: Mapping[str, Given]) -> dict[str, Any]:
        """The parameters of the function, of what was given."""
        found: dict[str, Any] = {}
        for name, (group, swept) in self.groups.items():
            mine = spec.options_of(group)
            keys = {each.key for each in mine}
            chosen = {key: each.value for key, each in given.items() if key in keys}
            if swept is None:
                found[name] = spec.made(group, spec.field_values(mine, chosen))
            else:
                from llmrun.cli.framework import sweeps

                found[name] = list(sweeps.combinations(group, chosen))
        for name, (_, declared, parameter) in self._parameters.items():
            if isinstance(declared, options.Option):
                value = given[name].value if name in given else parameter.default
                found[name] = list(value) if isinstance(value, tuple) else value
        return found

    def group_of(self, name: str, words: Sequence[str]) -> Any:
        """What one parameter would be with these words; nothing is run."""
        said = parser.read(words, self.options, command="")
        given = {key: Given(value) for key, value in self._parsed(said.texts).items()}
        return self.values(given)[name]

    def _parsed(self, texts: Mapping[str, Sequence[str | bool]]) -> dict[str, Any]:
        return {option.key: parsed(option, texts[option.key]) for option in self.options if option.key in texts}

    def _positionals(self, words: Sequence[str], path: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        left = list(words)
        for i, each in enumerate(self.arguments):
            if each.many:
                n = len(left) - sum(later.required for later in self.arguments[i + 1 :])
                mine, left = left[:n], left[n:]
                values[each.key] = [each.kind.parse(word) for word in mine]
                missing = not mine
            else:
                missing = not left
                values[each.key] = each.kind.parse(left.pop(0)) if left else None
            if missing and each.required:
                raise UsageError(f"{each.metavar} is missing", hint=Act("help", path))
            if missing and each.many:
                values[each.key] = None
        if left:
            raise UsageError(f"there is no place for '{left[0][:60]}'", hint=Act("help", path))
        return values


def command(**more: Any) -> Callable[[Callable[..., Any]], Command]:
    """A decorator: the function is a `Command`, for those that need more than their parameters say."""
    return lambda function: Command(function, **more)


def parsed(option: spec.Option, texts: Sequence[str | bool]) -> Any:
    """The value of what was typed: of a repeatable option all, else the last."""
    if option.is_flag:
        return bool(texts[-1]) is not option.negated
    if option.repeatable:
        return option.collected(option.parse(str(text)) for text in texts)
    value = option.parse(str(texts[-1]))
    if option.attribute == "":  # of a command itself: no dataclass will look
        option.check(value)
    return value


def _declared(name: str, hint: Any, declared: options.Option, parameter: inspect.Parameter) -> spec.Option:
    kind, many, _ = _kind(hint, declared.min, declared.max)
    names = [each.partition("/") for each in declared.names]
    longs = [each[2:] for each, _, _ in names if each.startswith("--")]
    default = () if many else None if parameter.default is parameter.empty else parameter.default
    text, _, without = declared.help.partition("  [default: ")
    return spec.Option(
        longs[0] if longs else "",
        kind,
        field=name,
        key=name,
        default=default,
        help=text,
        without=without.rstrip("]"),
        short=next((each[1:] for each, _, _ in names if not each.startswith("--")), ""),
        aliases=tuple(longs[1:]),
        denial=next((contrary[2:] for _, slash, contrary in names if slash), ""),
        panel=declared.panel,
        metavar=declared.metavar,
        show_default=declared.show_default,
        repeatable=many,
        complete=declared.complete,
    )


def _kind(hint: Any, low: float | None = None, high: float | None = None) -> tuple[spec.Kind, bool, bool]:
    """Of a type: kind, whether it is a list, whether None is among its values."""
    optional = False
    if get_origin(hint) in (Union, UnionType):
        optional = True
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    many = get_origin(hint) is list
    if many:
        (hint,) = get_args(hint)
    kinds: dict[Any, spec.Kind] = {
        bool: spec.Flag(),
        int: spec.Whole(low, high),
        float: spec.Number(low, high),
        Path: spec.PathName(),
    }
    return kinds.get(hint, spec.Text()), many, optional
