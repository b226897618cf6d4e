"""A running server in the place of a model that is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmrun.cli.loading import api_keys
from llmrun.cli.loading.tuned import TuningArguments
from llmrun.errors import Act, Change, NotFound, UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.settings import Given
from llmrun.options.spec import options_of

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.engine.interface import Engine
    from llmrun.models.resolve import Model

AUTO = "auto"


@dataclass(frozen=True)
class Asked:
    """A server to ask.

    Attributes:
        answers: as a server can make them: what `config.toml` says of loading is not about it.
    """

    address: str
    key: str | None
    answers: AnswerOptions

    def opened(self, reference: str) -> tuple[Model, Engine]:
        """Its model of that name. Raises `NotFound` with those that it has."""
        from llmrun.models.resolve import Model
        from llmrun.server.client import Client
        from llmrun.server.remote import opened

        form = self.answers.output_format
        engine = opened(Client(self.address, self.key), reference, [form] if form else [])
        return Model(engine.name, Path(), engine.header), engine


def asked(
    server: str | None, key_file: Path | None, given: Mapping[str, Given], answers: AnswerOptions
) -> Asked | None:
    """None without a server. Raises `UsageError` for what was typed that is about loading, and can't be had there."""
    if server is None:
        if key_file is not None:
            raise UsageError("--api-key-file: no server is asked", hint="--server URL")
        return None
    address = _only_one() if server == AUTO else _address(server)
    about_loading = [each.key for each in (*options_of(LoadConfig), *options_of(TuningArguments))]
    why = dict.fromkeys(about_loading, f"is about loading the model, which is done at {address}")
    why |= dict.fromkeys(("chat_template", "special"), f"can't be asked of {address}")
    for key, problem in why.items():
        if key in given and given[key].setting is None:
            raise UsageError(problem, field=key, hint=Change({key: None}))
    keys = api_keys.read(key_file)
    return Asked(address, keys[0] if keys else None, replace(answers, chat_template=None, special=False))


def _address(typed: str) -> str:
    from llmrun.server.client import address_of

    return address_of(typed)


def _only_one() -> str:
    from llmrun.server.serve import all_running

    found = all_running()
    if not found:
        raise NotFound("--server auto: no server runs", hint=Act("serve", "MODEL"))
    if len(found) > 1:
        there = ", ".join(f"{each.address} ({', '.join(each.models)})" for each in found)
        raise UsageError(f"--server auto: {len(found)} servers run: {there}", hint=Change({"server": found[0].address}))
    return found[0].address
