"""`llmrun config`: what is set, where it stands, and a way to change it that leaves comments alone."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen, tables
from llmrun.errors import UsageError
from llmrun.models.model_settings import Names
from llmrun.models.reference import parse
from llmrun.options import spec, user_config
from llmrun.options.settings import value_of
from llmrun.options.user_config import Setting

_Model = Annotated[str | None, Option("--model", metavar="NAME", help="For one model, such as qwen3:4b.")]
_Key = Annotated[str, Argument("KEY", "An option of `llmrun run` without its dashes.")]


def config(
    called: Invocation,
    model: Annotated[str | None, Option("--model", metavar="NAME", help="What counts for this model.")] = None,
    path: Annotated[bool, Option("--path", help="Print where the file is, or would be.")] = False,
    everything: Annotated[bool, Option("--all", help="Also what is built in.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what is set, and where.

    The command line comes first, then config.toml's part for the model, its [defaults], what the model's makers
    recommend, and what is built in.
    """
    if path:
        screen.out(f"{user_config.path()}\n")
        return
    here = user_config.load()
    named = called.settable()
    known = {name: option.name for name, option in named.items()}
    if model is None:
        user_config.check(here.all, known)
        found = list(here.all)
    else:
        found = list(here.of(model, known, Names()).values())
    for each in found:
        value_of(named[each.key], each)
    if everything:
        set_for_all = {known[each.key] for each in (found if model else here.defaults)}
        usual = {option.name: option for option in named.values()}
        found += [_built_in(option) for name, option in usual.items() if name not in set_for_all]
    if as_json:
        screen.out_json(_as_document(here, model, found))
        return
    screen.note(f"{here.path}{'' if here.path.exists() else ' (not there)'}")
    if found:
        rows = [(each.key, _shown(each.value), _origin(here, each)) for each in found]
        tables.show(("OPTION", "VALUE", "FROM"), rows)
    else:
        screen.note("nothing is set; set something with: llmrun config set temp 0.6")


@command(strict=False)
def set_(
    called: Invocation,
    key: _Key,
    values: Annotated[list[str], Argument("VALUE...", "Several where the option can be repeated.")],
    model: _Model = None,
) -> None:
    """Set an option for every run, or for one model."""
    key = key.lstrip("-")
    if model is not None:
        parse(model)
    named = called.settable()
    if key not in named:
        raise UsageError(
            f"{key}: not an option; the nearest is {user_config.nearest(key, named)}", hint="llmrun run --help"
        )
    option = named[key]
    value = _typed(option, key, values)
    setting = Setting(key, value, user_config.path(), user_config.table_of(model))
    value_of(option, setting)  # what every run would refuse is not written
    file = user_config.put(key, value, model, instead_of=option.names)
    screen.note(f"{file}: {setting.table} {key} = {_shown(value)}")


def unset(called: Invocation, key: _Key, model: _Model = None) -> None:
    """Take an option out of the file."""
    key = key.lstrip("-")
    named = called.settable()  # what isn't known can be taken out as well: it is in nobody's way then
    file = user_config.drop(key, model, also=named[key].names if key in named else ())
    screen.note(f"{file}: {user_config.table_of(model)} {key} is not set any more")


def _typed(option: spec.Option, key: str, values: list[str]) -> user_config.Value:
    """What was typed, as TOML has it. Raises `UsageError`."""
    if option.repeatable:
        return [_one(option, key, text) for text in values]
    if len(values) > 1:
        raise UsageError(
            f"{key}: {len(values)} values, and it takes one", hint=f"llmrun config set {key} '{' '.join(values)}'"
        )
    return _one(option, key, values[0])  # type: ignore[no-any-return]  # of the kinds that TOML has


def _one(option: spec.Option, key: str, text: str) -> Any:
    kind = option.kind.toml
    try:
        if kind is bool:
            return {"true": True, "on": True, "false": False, "off": False}[text.lower()]
        if kind is float and re.fullmatch(r"[+-]?\d+", text):
            return int(text)  # written as it was typed
        return kind(text)
    except (ValueError, KeyError):
        raise UsageError(f"{key}: '{text[:40]}' is not {option.kind.wanted}", hint="llmrun config set --help") from None


def _built_in(option: spec.Option) -> Setting:
    default = option.default
    if option.is_flag:
        return Setting(option.name, False, None, "built in")
    texts = [] if option.means or option.repeatable else option.texts(default)
    plain = isinstance(default, bool | int | float) and option.kind.toml is type(default)
    return Setting(option.name, default if plain else texts[0] if texts else "", None, "built in")


def _shown(value: user_config.Value) -> str:
    return json.dumps(value, ensure_ascii=False) if value != "" else "–"


def _origin(here: user_config.Settings, setting: Setting) -> str:
    if setting.file is None:
        return setting.table
    return setting.table if setting.file == here.path else f"{setting.file.name}, {setting.table}"


def _as_document(here: user_config.Settings, model: str | None, found: list[Setting]) -> dict[str, Any]:
    """The `--json` document; `file` is null for what is built in, a `value` for what has none."""
    return {
        "path": str(here.path),
        "exists": here.path.exists(),
        "model": model,
        "settings": [
            {
                "key": each.key,
                "value": None if each.file is None and each.value == "" else each.value,
                "file": str(each.file) if each.file else None,
                "table": each.table,
            }
            for each in found
        ],
    }
