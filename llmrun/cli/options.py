"""Options that several commands share, each written once. Names and letters are llama.cpp's, defaults `config.py`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmrun.config import LoadConfig, SamplingConfig

LOAD = LoadConfig()
SAMPLING = SamplingConfig()

_NAME_HELP = "tiny, qwen3:4b, user/repo:Q4_K_M, a hub URL, or a GGUF file."
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_NAME_HELP, show_default=False)]
ModelNames = Annotated[list[str], typer.Argument(metavar="MODEL", help=_NAME_HELP, show_default=False)]
SomeModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="Names as `llmrun list` shows them.", show_default=False),
]

Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network; also HF_HUB_OFFLINE=1.")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel="Output")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show every timing.", rich_help_panel="Output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel="Output")]

_SPEED = "Memory and speed"
NCtx = Annotated[
    int,
    typer.Option(
        "-c",
        "--ctx-size",
        help="Context in tokens, prompt and answer together; 0: as much as they need.",
        rich_help_panel=_SPEED,
    ),
]
NThreads = Annotated[
    int | None,
    typer.Option("-t", "--threads", help="Threads for decoding.  [default: physical cores]", rich_help_panel=_SPEED),
]
NThreadsBatch = Annotated[
    int | None,
    typer.Option("-tb", "--threads-batch", help="Threads for prefill.  [default: as -t]", rich_help_panel=_SPEED),
]
NBatch = Annotated[
    int, typer.Option("-b", "--batch-size", help="Prompt tokens handed over at once.", rich_help_panel=_SPEED)
]
NUbatch = Annotated[
    int, typer.Option("-ub", "--ubatch-size", help="Prompt tokens computed at once.", rich_help_panel=_SPEED)
]
FlashAttn = Annotated[
    str, typer.Option("-fa", "--flash-attn", metavar="auto|on|off", help="Flash attention.", rich_help_panel=_SPEED)
]
Repack = Annotated[
    str,
    typer.Option(
        "--repack",
        metavar="auto|on|off",
        help="Rearrange the weights for this CPU at load; auto: where it is known to pay.",
        rich_help_panel=_SPEED,
    ),
]

_SAMPLING = "Sampling"
Temperature = Annotated[
    float, typer.Option("--temp", help="0 always takes the likeliest token.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[int, typer.Option("--top-k", help="Keep the K likeliest tokens; 0: all.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float, typer.Option("--top-p", help="Keep tokens up to this probability; 1: all.", rich_help_panel=_SAMPLING)
]
MinP = Annotated[
    float,
    typer.Option("--min-p", help="Keep tokens with this share of the likeliest's chance.", rich_help_panel=_SAMPLING),
]
TypicalP = Annotated[
    float, typer.Option("--typical", help="Locally typical sampling; 1: off.", rich_help_panel=_SAMPLING)
]
RepeatPenalty = Annotated[
    float, typer.Option("--repeat-penalty", help="Divide logits of tokens seen; 1: off.", rich_help_panel=_SAMPLING)
]
RepeatLastN = Annotated[
    int,
    typer.Option(
        "--repeat-last-n", help="How far the penalties look back; 0: off, -1: all.", rich_help_panel=_SAMPLING
    ),
]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", help="Off each logit of a token seen.", rich_help_panel=_SAMPLING)
]
FrequencyPenalty = Annotated[
    float,
    typer.Option("--frequency-penalty", help="Off it for every time it was seen.", rich_help_panel=_SAMPLING),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias",
        "-l",
        metavar="TOKEN±BIAS",
        help="Favour or forbid a token id: 15043+1, 15043-inf. Repeatable.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("-s", "--seed", help="Same seed, same answer.  [default: random]", rich_help_panel=_SAMPLING),
]

MaxTokens = Annotated[
    int, typer.Option("-n", "--n-predict", help="At most this many tokens; -1: until the model ends.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text. Repeatable.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")]
Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", metavar="FILE", help="Take the prompt, or more of it, from a file. Repeatable."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")]
