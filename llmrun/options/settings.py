"""What was asked for and what counts: two things, and a value of the second knows where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrun.errors import LlmrunError
from llmrun.options import user_config
from llmrun.options.spec import Option
from llmrun.options.user_config import Names, Setting


@dataclass(frozen=True)
class Given:
    """A value that counts.

    Attributes:
        setting: where it stands; None: it was given directly. What is not given at all is left as it is by default.
    """

    value: Any
    setting: Setting | None = None


def resolve(
    options: Sequence[Option],
    asked: Mapping[str, Any],
    model: str,
    names: Names,
    *,
    others: Callable[[], Mapping[str, Option]] = dict,
) -> dict[str, Given]:
    """By key, what counts for a model: what was asked for, before what `config.toml` and the catalog say.

    A setting does not count where another option for the same field was given. `others` are options that are no
    mistake in the file, although they are not among `options`. Raises `UsageError` for a setting that is wrong.
    """
    found = {key: Given(value) for key, value in asked.items()}
    settings = user_config.load()
    by_key = {each.key: each for each in options}
    known = {name: each.key for each in options for name in each.names}
    recommended = names.recommended(model)
    if any(each.key not in known for each in (*settings.all, *recommended)):
        known = {name: each.key for name, each in others().items()} | known
    said = {by_key[key].field for key in asked}
    for key, setting in settings.of(model, known, names).items():
        if key in by_key and by_key[key].field not in said:
            found[key] = Given(value_of(by_key[key], setting), setting)
    return found


def value_of(option: Option, setting: Setting) -> Any:
    """The value of a setting. Raises `UsageError` that says where it stands."""
    value = setting.value
    if option.is_flag:
        if not isinstance(value, bool):
            raise setting.wrong("must be true or false")
        return value is not option.negated if setting.key not in option.contrary else value is option.negated
    if isinstance(value, list) and option.repeatable:
        texts = [_text(option, setting, each) for each in value]
    elif isinstance(value, list):
        if option.kind.toml is not str or not value:
            raise setting.wrong(f"must be {option.wanted}")
        texts = [",".join(_text(option, setting, each) for each in value)]  # as a list within one option is written
    else:
        texts = [_text(option, setting, value)]
    try:
        made = [option.parse(text) for text in texts]
        result = option.collected(made) if option.repeatable else made[0]
        option.check(result) if option.means is None else None
    except LlmrunError as error:
        error.where = setting.where
        raise
    return result


def _text(option: Option, setting: Setting, value: object) -> str:
    """As it would be typed."""
    fits = isinstance(value, {int: int, float: int | float, str: int | float | str}.get(option.kind.toml, str))
    if isinstance(value, bool) or not fits:
        shown = f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else value
        raise setting.wrong(f"must be {option.wanted}, not {shown}")
    return str(value)


def by_name(options: Iterable[Option]) -> dict[str, Option]:
    """Every name, of `config.toml` → its option; of two options with one name the first."""
    found: dict[str, Option] = {}
    for each in options:
        for name in each.names:
            if name:
                found.setdefault(name, each)
    return found
