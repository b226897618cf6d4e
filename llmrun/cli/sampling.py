"""The options of `SamplingConfig`, for every command that generates. Names are llama.cpp's, defaults `config.py`'s."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmrun import arguments
from llmrun.cli.grouped import gathered
from llmrun.cli.help import SAMPLING, TEXT
from llmrun.config import SamplingConfig

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
        logit_bias=dict(arguments.logit_bias(text) for text in logit_bias or []),
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
