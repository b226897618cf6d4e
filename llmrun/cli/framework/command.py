"""A command: a function, what its parameters take of the command line, and where values come from that nobody typed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from llmrun.cli.framework import options, parser, spelling
from llmrun.cli.framework.page import Rows
from llmrun.errors import Act, LlmrunError, Remedy, UsageError
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


class Command:
    """What `llmrun NAME` does.

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

    # -- what it takes ---

    @cached_property
    def _parameters(self) -> dict[str, tuple[Any, Any, Any]]:
        """Name → type, what is declared beside it, default."""
        found = {}
        # Not by typing.get_type_hints: with a default of None, Python 3.10 hides what is declared in an Optional.
        for name, parameter in inspect.signature(self.function, eval_str=True).parameters.items():
            hint, declared = parameter.annotation, None
            if get_origin(hint) is Annotated:
                hint, declared = get_args(hint)[:2]
            found[name] = hint, declared, parameter.default
        return found

    @cached_property
    def arguments(self) -> tuple[options.Argument, ...]:
        found = []
        for name, (hint, declared, default) in self._parameters.items():
            if isinstance(declared, options.Argument):
                kind, many, optional = _kind(hint)
                required = not optional and default is inspect.Parameter.empty
                found.append(replace(declared, key=name, required=required, many=many, kind=kind))
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
        found = [_declared(name, *each) for name, each in self._parameters.items() if isinstance(each[1], spec.Option)]
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
        path = invocation.path
        spelling.command_is(path, self.options)
        words = self.prepared(list(words)) if self.prepared else words
        said = parser.read(words, self.options, command=path, strict=self.strict)
        if said.help:
            from llmrun.cli.framework import help
            from llmrun.cli.terminal import screen

            screen.out(help.of_command(path, self, subcommands, everything=said.help in parser.HELP_ALL))
            return None
        values = self._positionals(said.arguments, path)
        typed = self._parsed(said.texts)

        def of_model(model: str) -> dict[str, Given]:
            from llmrun.models.model_settings import Names

            return resolve(self.options, typed, model, Names(), others=invocation.settable)

        if self.model_of is None:
            given = {key: Given(value) for key, value in typed.items()}
        else:
            model = self.model_of({**values, **typed})
            if values.get("model", model) is None:
                values["model"] = model
            given = of_model(model)
        called = replace(invocation, given=of_model)
        values |= {name: called for name, (hint, _, _) in self._parameters.items() if hint is Invocation}
        try:
            return self.function(**values, **self.values(given))
        except LlmrunError as error:
            if option := spelling.option_of(error.field or ""):
                same = [given[each.key] for each in self.options if each.field == option.field and each.key in given]
                error.where = next((each.setting.where for each in same if each.setting), error.where)
            raise

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
        for name, (_, declared, default) in self._parameters.items():
            if isinstance(declared, spec.Option):
                value = given[name].value if name in given else default
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
            n = len(left) - sum(later.required for later in self.arguments[i + 1 :]) if each.many else 1
            mine, left = left[:n], left[n:]
            if each.required and not mine:
                raise UsageError(f"{each.metavar} is missing", hint=Act("help", path))
            read = [each.kind.parse(word) for word in mine]
            values[each.key] = None if not read else read if each.many else read[0]
        if left:
            hints: list[Remedy] = [Act("help", path)]
            if any(each.metavar.strip("[]") == "PROMPT" for each in self.arguments):
                hints.insert(0, "a prompt of several words in quotes")
            raise UsageError(f"there is no place for '{left[0][:60]}'", remedies=hints)
        return values


def command(**more: Any) -> Callable[[Callable[..., Any]], Command]:
    """A decorator: the function is a `Command`, for those that need more than their parameters say."""
    return lambda function: Command(function, **more)


def parsed(option: spec.Option, texts: Sequence[str | bool]) -> Any:
    """The value of what was typed: of a repeatable option all, else the last."""
    if option.is_flag:
        return bool(texts[-1]) is not option.negated
    if option.repeatable:
        value = option.collected(option.parse(str(text)) for text in texts)
    else:
        value = option.parse(str(texts[-1]))
    if option.attribute == "":  # of a command itself: no dataclass will look
        option.check(value)
    return value


def _declared(name: str, hint: Any, declared: spec.Option, default: Any) -> spec.Option:
    kind, many, _ = _kind(hint)
    if type(declared.kind) is not spec.Text:
        kind = declared.kind
    default = () if many else None if default is inspect.Parameter.empty else default
    return replace(declared, kind=kind, field=name, key=name, default=default, repeatable=many)


def _kind(hint: Any) -> tuple[spec.Kind, bool, bool]:
    """Of a type: kind, whether it is a list, whether None is among its values."""
    optional = False
    if get_origin(hint) in (Union, UnionType):
        optional = True
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    many = get_origin(hint) is list
    if many:
        (hint,) = get_args(hint)
    kinds = {bool: spec.Flag, int: spec.Whole, float: spec.Number, Path: spec.PathName}
    return kinds.get(hint, spec.Text)(), many, optional
