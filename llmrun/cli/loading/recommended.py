"""Sampling that nobody has asked for: what the catalog recommends for a model, else what its file does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmrun import units
from llmrun.errors import UsageError
from llmrun.options.sampling import SamplingConfig
from llmrun.options.settings import Given, value_of
from llmrun.options.spec import Option, field_values, made, options_of
from llmrun.options.user_config import Setting

if TYPE_CHECKING:
    from llmrun.gguf.reader import Header

Chosen = Callable[[str], Mapping[str, Given]]
"""By key of the option, what counts for a model: what was typed, what `config.toml` says, what the catalog says."""

_PREFIX = "general.sampling."
_FIELDS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
}
_THE_FILE = "the file"


def sampling_of(
    chosen: Mapping[str, Given], header: Header, usual: SamplingConfig | None = None
) -> tuple[SamplingConfig, list[str]]:
    """How tokens are sampled, and a sentence for everything in it that was recommended.

    `usual`: a server's own habits, in which all that is recommended is counted already.
    """
    options = {each.key: each for each in options_of(SamplingConfig)}
    given, said = {key: each for key, each in chosen.items() if key in options}, []
    if usual is not None:
        asked = {key: each.value for key, each in given.items() if not (each.setting and each.setting.is_recommended)}
        return replace(usual, **field_values(options.values(), asked)), []
    for name, value in sorted(header.metadata.items()):
        _, is_one, what = name.partition(_PREFIX)
        if not is_one:
            continue
        option = options.get(_FIELDS.get(what, ""))
        try:
            if option is not None:
                given.setdefault(option.key, Given(*_of_file(option, value)))
            elif value:  # 0 is off
                said.append(f"{_THE_FILE} recommends {what} too, which is not among the options here")
        except UsageError as error:
            said.append(f"{_THE_FILE} recommends {what} {value}, which is left out: {error.message}")
    config = made(SamplingConfig, field_values(options.values(), {key: each.value for key, each in given.items()}))
    return config, [*_recommended(given, options), *said]


def _of_file(option: Option, value: Any) -> tuple[Any, Setting]:
    if isinstance(value, float):
        value = units.of_single(value)
        value = int(value) if option.kind.toml is int and value.is_integer() else value
    if option.key == "top_k" and value == -1:  # how transformers and llama.cpp say all
        value = 0
    setting = Setting(option.name, value, None, _THE_FILE)
    return value_of(option, setting), setting


def _recommended(given: Mapping[str, Given], options: Mapping[str, Option]) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for key, each in given.items():
        if each.setting is not None and each.setting.is_recommended:
            source = _THE_FILE if each.setting.table == _THE_FILE else f"the catalog for {each.setting.table}"
            found.setdefault(source, []).append(" ".join([options[key].name, *options[key].texts(each.value)]))
    for source, values in found.items():
        yield f"sampling as {source} recommends: {', '.join(values)}"
