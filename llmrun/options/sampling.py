"""How the next token is chosen, and when to stop. Frozen, and checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llmrun.errors import UsageError
from llmrun.options import parse
from llmrun.options.load import MAX_CTX
from llmrun.options.spec import EMPTY, FIRST, SAMPLING, TEXT, Flag, Number, Whole, Written, check, option

MAX_SEED = (1 << 32) - 2  # 2^32 - 1 is llama.cpp's word for "pick one"
_seed = Whole(0, MAX_SEED)


def _check_stop(text: str) -> None:
    if not text:
        raise ValueError("an empty text would end every answer at once")


def _read_seed(text: str) -> int | None:
    """-1 is llama.cpp's word for a random one."""
    return None if text in ("-1", "none", "random") else _seed.parse(text)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen, and when to stop.

    The steps run in llama.cpp's own order: biases, penalties, `top_k`, `typical_p`, `top_p`, `min_p`, temperature.

    Attributes:
        logit_bias: token id -> what is added to its logit; -inf forbids the token.
        repeat_last_n: how many tokens back the three penalties look; 0 turns them off, -1 is the whole context.
        repeat_penalty: divides the logits of tokens seen; 1 is off.
        presence_penalty: taken off the logit of every token seen; 0 is off.
        frequency_penalty: taken off the logit of a token seen, once for each time; 0 is off.
        top_k: keep the k likeliest tokens; 0 is off.
        typical_p: keep tokens of typical information up to this probability; 1 is off.
        top_p: keep the likeliest tokens up to this probability; 1 is off.
        min_p: keep tokens with at least this share of the likeliest token's probability; 0 is off.
        temperature: flattens (> 1) or sharpens (< 1) the choice; 0 is greedy: always the likeliest token.
        seed: of the random choice; None picks one, which the result reports.
        max_tokens: at most so many tokens are generated; -1: until the model ends or the context is full.
        stop: texts that end the answer and are not part of it.
        ignore_eos: go on when the model would end.
    """

    PANEL: ClassVar[str] = SAMPLING

    max_tokens: int = option(
        -1,
        "n-predict",
        Whole(-1, MAX_CTX),
        short="n",
        panel=FIRST,
        elsewhere=("num-predict", "max-tokens"),
        help="At most this many tokens; -1: until the model ends.",
    )
    temperature: float = option(
        0.8, "temp", Number(0, 100), panel=FIRST, elsewhere=("temperature",), help="0 always takes the likeliest token."
    )
    stop: tuple[str, ...] = option(
        (),
        "stop",
        Written(str, valid=_check_stop),
        panel=TEXT,
        metavar="TEXT",
        help="End the answer before this text. Repeatable.",
        repeatable=True,
    )
    ignore_eos: bool = option(False, "ignore-eos", Flag(), panel=TEXT, help="Go on when the model would end.")
    seed: int | None = option(
        None,
        "seed",
        Written(_read_seed, valid=_seed.check, toml=int, wanted=_seed.wanted),
        short="s",
        metavar="<int>",
        help="Same seed, same answer.",
        without="random",
    )
    top_k: int = option(40, "top-k", Whole(0, 1 << 24), help="Keep the K likeliest tokens; 0: all.")
    top_p: float = option(0.95, "top-p", Number(0.0, 1), help="Keep tokens up to this probability; 1: all.")
    min_p: float = option(0.05, "min-p", Number(0.0, 1), help="Keep tokens with this share of the likeliest's chance.")
    typical_p: float = option(
        1.0, "typical", Number(0.0, 1), elsewhere=("typical-p",), help="Locally typical sampling; 1: off."
    )
    repeat_penalty: float = option(
        1.0, "repeat-penalty", Number(0.01, 100), help="Divide logits of tokens seen; 1: off."
    )
    repeat_last_n: int = option(
        64, "repeat-last-n", Whole(-1, MAX_CTX), help="How far the penalties look back; 0: off, -1: all."
    )
    presence_penalty: float = option(0.0, "presence-penalty", Number(-100, 100), help="Off each logit of a token seen.")
    frequency_penalty: float = option(
        0.0, "frequency-penalty", Number(-100, 100), help="Off it for every time it was seen."
    )
    logit_bias: Mapping[int, float] = option(
        EMPTY,
        "logit-bias",
        Written(parse.logit_bias, lambda pair: f"{pair[0]}{pair[1]:+g}", lambda pair: parse.check_bias(*pair)),
        short="l",
        metavar="TOKEN±BIAS",
        help="Favour or forbid a token id: 15043+1, 15043-inf. Repeatable.",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        stop: Any = self.stop
        if isinstance(stop, str):  # a str is a sequence of str, one letter each
            raise UsageError(f"a tuple of texts is wanted, such as ({stop!r},)", field="stop", value=stop)
        check(self)
