"""Sampling options one at a time, as `/set` in a chat turns them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmrun.errors import LlmrunError, UsageError
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import Option, options_of
from llmrun.options.user_config import nearest


def dials() -> tuple[Option, ...]:
    """All of them."""
    return options_of(SamplingConfig)


def find_dial(name: str) -> Option:
    """By any of its names, those in other programs among them. Raises `UsageError`, with the nearest."""
    plain = name.lstrip("-").lower().replace("_", "-")
    for dial in dials():
        if plain in (*dial.plain_names, *dial.elsewhere, dial.short):
            return dial
    near = nearest(plain, [dial.name for dial in dials()])
    raise UsageError(f"/set: there is no option {name[:40]}; the nearest is {near}", hint="/set")


def turned(config: SamplingConfig, name: str, text: str) -> SamplingConfig:
    """`config` with one option changed, as it would be typed; of a list, one value more. Raises `UsageError`."""
    dial = find_dial(name)
    try:
        if not dial.repeatable:
            value = dial.parse(text)
        elif text in ("", "none", "off"):
            value = dial.default
        else:
            value = dial.collected(
                [*(dial.parse(each) for each in dial.texts(getattr(config, dial.attribute))), dial.parse(text)]
            )
        return replace(config, **{dial.attribute: value})
    except LlmrunError as error:
        raise UsageError(
            f"/set {dial.name}: {error.message}", hint=f"/set {dial.name} on" if dial.is_flag else "/set"
        ) from None


def values_shown(config: SamplingConfig, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, value and help of every option, or of that of the name. Raises `UsageError`."""
    for dial in (find_dial(name),) if name else dials():
        value = getattr(config, dial.attribute)
        texts = dial.texts(value)
        if dial.repeatable:
            shown = ", ".join(map(repr, texts)) or "none"
        else:
            shown = texts[0] if texts else dial.without
        yield dial.name, shown, dial.help
