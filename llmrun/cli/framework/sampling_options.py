"""The options of `SamplingConfig`, for every command that generates. Names are llama.cpp's, defaults `config.py`'s."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from llmrun.cli.framework.help import SAMPLING, TEXT
from llmrun.cli.framework.option_groups import gathered
from llmrun.errors import UsageError
from llmrun.options import parse
from llmrun.options.config import SamplingConfig
from llmrun.options.user_config import nearest

_DEFAULT = SamplingConfig()


def _panel(*names: str, help: str, panel: str | None = SAMPLING, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _config(
    max_tokens: Annotated[
        int, _panel("-n", "--n-predict", help="At most this many tokens; -1: until the model ends.", panel=None)
    ] = _DEFAULT.max_tokens,
    temp: Annotated[
        float, _panel("--temp", help="0 always takes the likeliest token.", panel=None)
    ] = _DEFAULT.temperature,
    stop: Annotated[
        list[str] | None,
        _panel("--stop", metavar="TEXT", help="End the answer before this text. Repeatable.", panel=TEXT),
    ] = None,
    ignore_eos: Annotated[
        bool, _panel("--ignore-eos", help="Go on when the model would end.", panel=TEXT)
    ] = _DEFAULT.ignore_eos,
    seed: Annotated[int | None, _panel("-s", "--seed", help="Same seed, same answer.  [default: random]")] = None,
    top_k: Annotated[int, _panel("--top-k", help="Keep the K likeliest tokens; 0: all.")] = _DEFAULT.top_k,
    top_p: Annotated[float, _panel("--top-p", help="Keep tokens up to this probability; 1: all.")] = _DEFAULT.top_p,
    min_p: Annotated[
        float, _panel("--min-p", help="Keep tokens with this share of the likeliest's chance.")
    ] = _DEFAULT.min_p,
    typical: Annotated[float, _panel("--typical", help="Locally typical sampling; 1: off.")] = _DEFAULT.typical_p,
    repeat_penalty: Annotated[
        float, _panel("--repeat-penalty", help="Divide logits of tokens seen; 1: off.")
    ] = _DEFAULT.repeat_penalty,
    repeat_last_n: Annotated[
        int, _panel("--repeat-last-n", help="How far the penalties look back; 0: off, -1: all.")
    ] = _DEFAULT.repeat_last_n,
    presence_penalty: Annotated[
        float, _panel("--presence-penalty", help="Off each logit of a token seen.")
    ] = _DEFAULT.presence_penalty,
    frequency_penalty: Annotated[
        float, _panel("--frequency-penalty", help="Off it for every time it was seen.")
    ] = _DEFAULT.frequency_penalty,
    logit_bias: Annotated[
        list[str] | None,
        _panel(
            "--logit-bias",
            "-l",
            metavar="TOKEN±BIAS",
            help="Favour or forbid a token id: 15043+1, 15043-inf. Repeatable.",
        ),
    ] = None,
) -> SamplingConfig:
    return SamplingConfig(
        logit_bias=dict(parse.logit_bias(text) for text in logit_bias or []),
        repeat_last_n=repeat_last_n,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        top_k=top_k,
        typical_p=typical,
        top_p=top_p,
        min_p=min_p,
        temperature=temp,
        seed=None if seed == -1 else seed,  # llama.cpp's word for "random"
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )


with_sampling = gathered("sampling", _config)
"""A decorator: the command gets these options, and their values as one `SamplingConfig` called `sampling`."""


# -- one at a time, in the middle of a chat ---------------------------------------------------------------------------

_ELSEWHERE = {"temperature": "temp", "num-predict": "n-predict", "max-tokens": "n-predict", "typical-p": "typical"}
"""What other programs call them."""
_FIELDS = {"temp": "temperature", "typical": "typical_p"}
"""Parameters that are called otherwise than the field of `SamplingConfig`."""


@dataclass(frozen=True)
class Dial:
    """One option: its name without dashes, other names of it, the parameter, what it takes, its help."""

    name: str
    aliases: tuple[str, ...]
    param: str
    kind: type
    is_list: bool
    help: str


def dials() -> list[Dial]:
    """All of them, in the order of the help."""
    hints = get_type_hints(_config, include_extras=True)
    found = []
    for param in inspect.signature(_config).parameters:
        annotation, option = get_args(hints[param])
        if get_origin(annotation) in (Union, UnionType):
            (annotation,) = (each for each in get_args(annotation) if each is not NoneType)
        is_list = get_origin(annotation) is list
        kind = get_args(annotation)[0] if is_list else annotation
        # Of `Annotated[..., Option("-n", "--n-predict")]` Typer takes the first for the default until it reads it.
        names = [each for each in (option.default, *(option.param_decls or ())) if isinstance(each, str)]
        names.sort(key=lambda each: not each.startswith("--"))
        plain = [each.lstrip("-") for each in names]
        found.append(Dial(plain[0], tuple(plain[1:]), param, kind, is_list, option.help.partition("  [")[0]))
    return found


def turned(config: SamplingConfig, name: str, text: str) -> SamplingConfig:
    """`config` with one option changed, as it would be typed. Raises `UsageError`."""
    dial = find_dial(name)
    values = {each.param: _value_of(config, each) for each in dials()}
    if dial.is_list:
        values[dial.param] = [] if text in ("", "none", "off") else [*values[dial.param], text]
    elif dial.kind is bool:
        if text.lower() not in ("true", "false", "on", "off"):
            raise UsageError(f"/set {dial.name}: '{text[:40]}' is neither on nor off", hint=f"/set {dial.name} on")
        values[dial.param] = text.lower() in ("true", "on")
    elif dial.param == "seed" and text in ("none", "random"):
        values[dial.param] = None
    else:
        try:
            values[dial.param] = dial.kind(text)
        except ValueError:
            wanted = "a whole number" if dial.kind is int else "a number"
            raise UsageError(f"/set {dial.name}: '{text[:40]}' is not {wanted}", hint="/set") from None
    return _config(**values)


def find_dial(name: str) -> Dial:
    """Raises `UsageError`, with the nearest."""
    plain = name.lstrip("-").lower().replace("_", "-")
    plain = _ELSEWHERE.get(plain, plain)
    known = dials()
    for dial in known:
        if plain in (dial.name, *dial.aliases):
            return dial
    near = nearest(plain, [dial.name for dial in known])
    raise UsageError(f"/set: there is no option {name[:40]}; the nearest is {near}", hint="/set")


def values_shown(config: SamplingConfig) -> Iterator[tuple[str, str, str]]:
    """Name, value and help of every option."""
    for dial in dials():
        value = _value_of(config, dial)
        if isinstance(value, list):
            shown = ", ".join(repr(each) for each in value) or "none"
        elif value is None:
            shown = "random"
        else:
            shown = ("on" if value else "off") if isinstance(value, bool) else str(value)
        yield dial.name, shown, dial.help


def _value_of(config: SamplingConfig, dial: Dial) -> Any:
    """As it would be typed."""
    if dial.param == "logit_bias":
        return [f"{token}{bias:+g}" for token, bias in config.logit_bias.items()]
    value = getattr(config, _FIELDS.get(dial.param, dial.param))
    return list(value) if isinstance(value, tuple) else value
