"""The child that runs a user's functions: a Python file, its public functions as tools, and calls of them.

It imports nothing of llama.cpp. What the file prints goes to the log, as all that a child says; what it raises, an exit
included, is an answer.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, get_type_hints

import msgspec

from llmrun.engine import protocol
from llmrun.engine.child import bootstrap
from llmrun.engine.child.inbox import Outbox
from llmrun.engine.protocol import CallFunction, Failed, Functions, FunctionSpec, LoadFunctions, Returned

_MODULE = "llmrun_tools"
"""What the file is called as a module: no name that it, or what it imports, could want."""


class Unusable(Exception):
    """The file can't be run, or has what can't be a tool."""


class Function(NamedTuple):
    """`arguments`: decodes them, to an object that has those that were given."""

    spec: FunctionSpec
    call: Callable[..., Any]
    arguments: msgspec.json.Decoder[Any]

    def called(self, arguments: str) -> str:
        """What came of it; raises whatever it raises."""
        given = self.arguments.decode(arguments)
        values = {
            name: value for name in given.__struct_fields__ if (value := getattr(given, name)) is not msgspec.UNSET
        }
        result = self.call(**values)
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
        return result if isinstance(result, str) else msgspec.json.encode(result).decode()


def loaded(path: Path) -> list[Function]:
    """Raises `Unusable` with the line."""
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module
    sys.path.insert(0, str(path.parent))
    try:
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    except BaseException as error:  # noqa: BLE001  # whatever it is, `sys.exit` too
        raise Unusable(f"{_line_of(error, path)}{_in_words(error)}") from None
    named = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    values = {name: getattr(module, name, None) for name in named}
    mine = {name: each for name, each in values.items() if inspect.isfunction(each) and each.__module__ == _MODULE}
    if not mine:
        raise Unusable("there is no function in it whose name begins without _")
    return [_function(name, each) for name, each in mine.items()]


def _line_of(error: BaseException, path: Path) -> str:
    """ "line 12: ", where the file itself has one."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    return f"line {lines[-1]}: " if lines and lines[-1] else ""


def _in_words(error: BaseException) -> str:
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _function(name: str, function: FunctionType) -> Function:
    where = f"line {inspect.unwrap(function).__code__.co_firstlineno}: {name}"
    about = (inspect.getdoc(function) or "").strip()
    if not about:
        raise Unusable(f"{where} has no docstring, which tells the model what it does; _{name} would be no tool")
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # noqa: BLE001  # of whatever stands there
        raise Unusable(f"{where}: {_in_words(error)}") from None
    fields: list[Any] = []
    defaults: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        which = f"{where}({parameter.name})"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise Unusable(f"{which}: {parameter} can't be given by name")
        if parameter.name not in hints:
            raise Unusable(f"{which} has no type, such as {parameter.name}: str")
        hint = hints[parameter.name]
        try:
            msgspec.json.schema(hint)
        except (TypeError, RecursionError):
            raise Unusable(f"{which}: {inspect.formatannotation(hint)} is no type that JSON has") from None
        if parameter.default is parameter.empty:
            fields.append((parameter.name, hint))
        else:
            fields.append((parameter.name, hint | msgspec.UnsetType, msgspec.UNSET))
            defaults[parameter.name] = parameter.default
    try:
        arguments = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)
        parameters = _schema(arguments, defaults)
    except (TypeError, ValueError) as error:
        raise Unusable(f"{where}: {error}") from None
    spec = FunctionSpec(name, " ".join(about.split("\n\n")[0].split()), parameters)
    return Function(spec, function, msgspec.json.Decoder(arguments))


def _schema(arguments: type, defaults: dict[str, Any]) -> dict[str, Any]:
    """Of an object, with the types that it names beside it."""
    (reference,), types = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    schema = types.pop(reference["$ref"].rpartition("/")[2])
    del schema["title"]
    for name, default in defaults.items():
        try:
            schema["properties"][name]["default"] = msgspec.to_builtins(default, str_keys=True)
        except TypeError:  # no data: it is left to the function
            continue
    return {**schema, **({"$defs": types} if types else {})}


def main() -> None:
    inbox, descriptor = bootstrap.begin()
    outbox = Outbox(descriptor)
    functions: dict[str, Function] = {}
    for line in inbox:
        number, message = protocol.decode(line)
        try:
            if isinstance(message, LoadFunctions):
                found = loaded(Path(message.path))
                functions = {each.spec.name: each for each in found}
                outbox.send(number, Functions([each.spec for each in found]))
            elif isinstance(message, CallFunction):
                outbox.send(number, Returned(functions[message.name].called(message.arguments)))
        except Unusable as error:
            outbox.send(number, Failed("usage", str(error)))
        except BaseException as error:  # noqa: BLE001
            outbox.send(number, Returned(_in_words(error)))
