"""The core's errors in the words of the command line: a field as its option, a remedy as what to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from llmrun.errors import Act, Change, LlmrunError, Remedy

_MENTION = re.compile(r"`([a-z_]+)`")

# Field → the option as it is named in full, and its short form for hints.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "n_ctx": ("-c/--ctx-size", "-c"),
    "n_batch": ("-b/--batch-size", "-b"),
    "n_ubatch": ("-ub/--ubatch-size", "-ub"),
    "n_gpu_layers": ("-ngl/--n-gpu-layers", "-ngl"),
    "type_k": ("-ctk/--cache-type-k", "-ctk"),
    "type_v": ("-ctv/--cache-type-v", "-ctv"),
    "flash_attn": ("-fa/--flash-attn", "-fa"),
}


def message(error: LlmrunError) -> str:
    """What happened, the option that it is about first."""
    text = _MENTION.sub(lambda match: _OPTIONS[match[1]][1] if match[1] in _OPTIONS else match[0], error.message)
    return f"{_name(error.field)}: {text}" if error.field else text


def hint(error: LlmrunError) -> str | None:
    """What to type next."""
    return "  or  ".join(map(_typed, error.remedies)) or None


def _name(field: str) -> str:
    return _OPTIONS[field][0] if field in _OPTIONS else field


def _typed(remedy: Remedy) -> str:
    match remedy:
        case Change(fields):
            return _options(fields)
        case Act("help", target):
            return f"llmrun {target} --help"
        case Act(action, target, fields):
            words = ["llmrun", action, *([target if target.isupper() else shlex.quote(target)] if target else [])]
            return " ".join([*words, *([_options(fields)] if fields else [])])
        case _:
            return remedy


def _options(fields: Mapping[str, object]) -> str:
    return " ".join(
        f"leave {_OPTIONS[name][1]} out" if value is None else f"{_OPTIONS[name][1]} {shlex.quote(str(value))}"
        for name, value in fields.items()
    )
