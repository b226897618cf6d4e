"""A model's name to a loaded model, with a bar while it loads and ways out where it does not fit."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, get_args

from llmrun.cli.loading import fetch
from llmrun.cli.terminal import progress, screen
from llmrun.errors import LlmrunError
from llmrun.options.defaults import SMALL_MODEL_BYTES
from llmrun.options.load import Draft, LoadConfig

if TYPE_CHECKING:
    from llmrun.engine.interface import Engine
    from llmrun.engine.limits import Limits
    from llmrun.engine.process import Child
    from llmrun.models.resolve import Model, Use


def found(reference: str, *, quiet: bool, use: Use = "write") -> Model:
    """The model of that name, pulled where it is missing; says which level was taken where that is a surprise.

    Raises `BadModel` for one that is not good for this `use`.
    """
    from llmrun.models.resolve import find_model

    model = find_model(reference, fetch=partial(fetch.fetched, quiet=quiet), use=use)
    if model.note and not quiet:
        screen.note(model.note)
    return model


def no_template(model: Model) -> str:
    """For one without."""
    named = ", ".join(model.header.chat_templates)
    return f"{model.name} has no chat template" + (f" but those named {named}" if named else "")


def loaded(
    reference: str,
    model: Model,
    load: LoadConfig,
    child: Child | None,
    expected_tokens: int,
    least_tokens: int,
    *,
    n_seq: int = 1,
    keeps_prefixes: bool = False,
    limits: Limits | None = None,
    quiet: bool,
) -> Engine:
    """The engine; `keeps_prefixes`: what long prompts were computed to is kept on disk, for a model that is not small.

    What does not fit gets a smaller quantization among its ways out."""
    from llmrun.engine.engine import ChildEngine
    from llmrun.planning.fit import DoesNotFit

    if load.draft not in get_args(Draft):
        try:
            load = replace(load, draft=os.fspath(found(load.draft, quiet=quiet).path))
        except LlmrunError as error:
            error.message = f"the model that is to guess ahead: {error.message}"
            raise
    with progress.bar(f"loading {model.name}", shown=not quiet) as bar:
        try:
            return ChildEngine(
                model.path,
                model.header,
                load,
                limits=limits,
                on_progress=bar.update if bar else None,
                child=child,
                expected_tokens=expected_tokens,
                least_tokens=least_tokens,
                n_seq=n_seq,
                keeps_prefixes=model.name
                if keeps_prefixes and model.header.weight_bytes >= SMALL_MODEL_BYTES
                else None,
            )
        except DoesNotFit as error:
            from llmrun.cli.loading.fit_hints import with_smaller_quantization

            raise with_smaller_quantization(error, reference, model) from None
