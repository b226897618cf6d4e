"""`llmrun config`: what is set, where it stands, and a way to change it that leaves comments alone."""

from __future__ import annotations

import inspect
import json
import re
from typing import Annotated, Any

import typer

from llmrun.cli.framework import options
from llmrun.cli.framework.help import Command, Group
from llmrun.cli.framework.user_settings import Option, all_options, converted, model_commands, spellings
from llmrun.cli.terminal import screen, tables
from llmrun.errors import UsageError
from llmrun.options import user_config
from llmrun.options.user_config import Setting

app = typer.Typer(cls=Group, invoke_without_command=True, rich_markup_mode=None)

_Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="For one model, such as qwen3:4b.", show_default=False)
]
_Key = Annotated[
    str, typer.Argument(metavar="KEY", help="An option of `llmrun run` without its dashes.", show_default=False)
]


@app.callback()
def config(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="What counts for this model.", show_default=False)
    ] = None,
    path: Annotated[bool, typer.Option("--path", help="Print where the file is, or would be.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also what is built in.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show what is set, and where.

    The command line comes first, then config.toml's part for the model, its [defaults], what the model's makers
    recommend, and what is built in.
    """
    if ctx.invoked_subcommand is not None:
        return
    if path:
        screen.out(f"{user_config.path()}\n")
        return
    here = user_config.load()
    known = spellings(ctx)
    if model is None:
        user_config.check(here.all, known)
        found = list(here.all)
    else:
        found = list(here.of(model, known).values())
    named = all_options(ctx)
    for each in found:
        converted(named[known[each.key]], ctx, each)
    if everything:
        set_for_all = {known[each.key] for each in (found if model else here.defaults)}
        found += [_built_in(option) for name, option in named.items() if name not in set_for_all]
    if as_json:
        screen.out_json(_as_document(here, model, found))
        return
    screen.note(f"{here.path}{'' if here.path.exists() else ' (not there)'}")
    if found:
        rows = [(each.key, _shown(each.value), _origin(here, each)) for each in found]
        tables.show((tables.Column("OPTION"), tables.Column("VALUE"), tables.Column("FROM")), rows)
    else:
        screen.note("nothing is set; set something with: llmrun config set temp 0.6")


@app.command("set", cls=Command, context_settings={"ignore_unknown_options": True})
def set_(
    ctx: typer.Context,
    key: _Key,
    values: Annotated[
        list[str],
        typer.Argument(metavar="VALUE...", help="Several where the option can be repeated.", show_default=False),
    ],
    model: _Model = None,
) -> None:
    """Set an option for every run, or for one model."""
    key = key.lstrip("-")
    _check_model(model)
    known = spellings(ctx)
    if key not in known:
        raise UsageError(
            f"{key}: no option; the nearest is {user_config.nearest(key, known)}", hint="llmrun run --help"
        )
    option = all_options(ctx)[known[key]]
    value = _typed(option, key, values)
    setting = Setting(key, value, user_config.path(), user_config.table_of(model))
    _check(ctx, option, converted(option, ctx, setting))
    file = user_config.put(key, value, model, instead_of=option.spellings)
    screen.note(f"{file}: {setting.table} {key} = {_shown(value)}")


@app.command("unset", cls=Command)
def unset(ctx: typer.Context, key: _Key, model: _Model = None) -> None:
    """Take an option out of the file."""
    key = key.lstrip("-")
    known = spellings(ctx)  # what isn't known can be taken out as well: it is in nobody's way then
    also = all_options(ctx)[known[key]].spellings if key in known else ()
    file = user_config.drop(key, model, also=also)
    screen.note(f"{file}: {user_config.table_of(model)} {key} is not set any more")


def _check_model(model: str | None) -> None:
    if model is not None:
        from llmrun.models.catalog import parse

        parse(model)


def _typed(option: Option, key: str, values: list[str]) -> user_config.Value:
    """What was typed, as TOML has it. Raises `UsageError`."""
    if option.is_list:
        return [_one(option, key, text) for text in values]
    if len(values) > 1:
        raise UsageError(
            f"{key}: {len(values)} values, and it takes one", hint=f"llmrun config set {key} '{' '.join(values)}'"
        )
    value: user_config.Value = _one(option, key, values[0])
    return value


def _one(option: Option, key: str, text: str) -> Any:
    try:
        if option.kind is bool:
            return {"true": True, "on": True, "false": False, "off": False}[text.lower()]
        if option.kind is float and re.fullmatch(r"[+-]?\d+", text):
            return int(text)  # written as it was typed
        return option.kind(text)
    except (ValueError, KeyError):
        what = Option(option.param, option.kind, is_list=False).wanted
        raise UsageError(f"{key}: '{text[:40]}' is not {what}", hint=f"llmrun config set {key} --help") from None


def _check(ctx: typer.Context, option: Option, value: object) -> None:
    """Raise what every run with this value would: now, and not at the next run.

    `value` is as the command gets it. What groups of options are made into has the checks (`cli/grouped.py`).
    """
    for command in model_commands(ctx).values():
        for make in getattr(command.callback, "makes", ()):
            usual = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
            if option.param.name in usual:
                make(**{**usual, option.param.name: value})


def _built_in(option: Option) -> Setting:
    default = option.param.default
    return Setting(option.name, "" if default is None else default, None, "built in")


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
