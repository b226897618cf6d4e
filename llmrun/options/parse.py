"""From the text of an option to the value that its dataclass checks, and back. The spellings are llama.cpp's.

What is wrong is a `ValueError` with the problem alone, which the option makes a `UsageError` of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from llmrun.errors import NotFound

KvValue = int | float | bool | str

_LOGIT_BIAS = re.compile(r"(\d{1,10})([+-](?:inf|\d{1,7}(?:\.\d{1,9})?))")
_OF_KIND: dict[str, Callable[[str], KvValue]] = {
    "int": int,
    "float": float,
    "bool": {"true": True, "false": False}.__getitem__,
    "str": str,
}
MAX_PARALLEL = 256
"""As many sequences as llama.cpp knows (LLAMA_MAX_SEQ)."""
MAX_CONNECTIONS = 16
"""To a server, for one file."""
_WHOLE = re.compile(r"-?\d{1,18}")


def logit_bias(text: str) -> tuple[tuple[int, float]]:
    """TOKEN+BIAS or TOKEN-BIAS: "15043-1.5" is (15043, -1.5)."""
    match = _LOGIT_BIAS.fullmatch(text)
    if match is None or match[2] == "+inf":
        raise ValueError(f"'{text[:40]}' is not TOKEN+BIAS or TOKEN-BIAS, such as 15043+1 or 15043-inf")
    return ((int(match[1]), float(match[2])),)


def check_bias(token: int, bias: float) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < 1 << 31:
        raise ValueError(f"token {token!r} is outside 0 to {(1 << 31) - 1}")
    if isinstance(bias, bool) or not isinstance(bias, int | float):
        raise ValueError(f"{bias!r} is not a number")  # noqa: TRY004
    if bias != -math.inf and not -1e6 <= bias <= 1e6:
        raise ValueError(f"bias {bias} is outside -1e6 to 1e6")


def n_gpu_layers(text: str) -> int | Literal["auto", "all"]:
    """ "auto", "all", or how many; -1 is auto, as it is for llama.cpp."""
    if text in ("auto", "-1"):
        return "auto"
    if text in ("all", "-2"):
        return "all"
    return _whole(text, "auto, all, or a number of layers")


def parallel(text: str) -> int | None:
    """How many answers side by side; None for "auto"."""
    if text == "auto":
        return None
    n = _whole(text, "auto or a number of answers")
    if not 1 <= n <= MAX_PARALLEL:
        raise ValueError(f"{n} is not from 1 to {MAX_PARALLEL}")
    return n


def connections(text: str) -> int | None:
    """How many connections a file is fetched over; None for "auto"."""
    if text == "auto":
        return None
    n = _whole(text, "auto or a number of connections")
    if not 1 <= n <= MAX_CONNECTIONS:
        raise ValueError(f"{n} is not from 1 to {MAX_CONNECTIONS}")
    return n


def draft(text: str) -> str:
    """What to guess by. A number is how many with llama.cpp's tools, and must not become a model's name."""
    if not text.strip():
        raise ValueError("it says neither auto, off or lookup nor which model")
    if re.fullmatch(r"[+-]?\d+", text):
        raise ValueError(f"'{text[:40]}' says how many, which is another option: draft-max")
    return text


def n_cpu_moe(text: str) -> int | Literal["all"]:
    return "all" if text == "all" else _whole(text, "all or a number of layers")


def devices(text: str) -> tuple[str, ...]:
    """Names behind commas or slashes; "none" is no device at all."""
    names = tuple(name.strip() for name in re.split("[,/]", text))
    if names == ("none",):
        return ()
    if not all(names):
        raise ValueError(f"'{text}' is not a list of names, such as CUDA0,RPC0")
    if len(set(names)) < len(names):
        raise ValueError(f"'{text}' names a device twice")
    return names


def tensor_split(text: str) -> tuple[float, ...]:
    """Shares behind commas or slashes: "3,1"."""
    if not text:
        return ()
    try:
        return tuple(float(share) for share in re.split("[,/]", text))
    except ValueError:
        raise ValueError(f"'{text[:60]}' is not a list of shares, such as 3,1") from None


def override_tensor(text: str) -> tuple[tuple[str, str], ...]:
    """PATTERN=DEVICE, several behind commas."""
    found = []
    for part in _split_overrides(text):
        pattern, equals, device = part.rpartition("=")
        if not equals or not pattern or not device:
            raise ValueError(f"'{part[:60]}' is not PATTERN=DEVICE")
        found.append((pattern, device))
    return tuple(found)


def _split_overrides(text: str) -> Iterator[str]:
    """At the commas that end a device's name; those inside a pattern, as in {1,2}, are its own."""
    begin = 0
    for comma in re.finditer(",", text):
        if re.search(r"=[\w.:]+$", text[begin : comma.start()]):
            yield text[begin : comma.start()]
            begin = comma.end()
    yield text[begin:]


# A name that does not match is taken apart in every way there is: with a repeated group these double with each letter,
# with repetitions behind each other they are multiplied by its length.
_MOST_REPEATS = 4


def check_pattern(pattern: str) -> None:
    """Raise unless Python and C++ (ECMAScript) read the pattern alike: both will."""
    _n_bytes(pattern)
    shown = f"'{pattern[:60]}'"
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{shown} is not a regular expression: {error}") from None
    plain = re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", pattern)
    if re.search(r"\)[*+{]", plain) or len(re.findall(r"[*+{]", plain)) > _MOST_REPEATS:
        raise ValueError(f"{shown} could take for ever: none of * + {{}} behind a group, and at most {_MOST_REPEATS}")
    if not pattern or len(pattern) > 500 or re.search(r"\(\?(?![:=!])|\\[AZ]|\[\[|[*+?}]\+", pattern):
        raise ValueError(f"{shown} is not a pattern that llama.cpp reads as well (ECMAScript)")


def override_kv(text: str) -> tuple[tuple[str, KvValue]]:
    """KEY=TYPE:VALUE, TYPE being int, float, bool or str."""
    match = re.fullmatch(r"([^=]+)=(int|float|bool|str):(.*)", text, re.DOTALL)
    if match is None:
        raise ValueError(f"'{text[:60]}' is not KEY=TYPE:VALUE, TYPE one of int, float, bool, str")
    key, kind, value = match.groups()
    try:
        return ((key, _OF_KIND[kind](value)),)
    except (ValueError, KeyError):
        raise ValueError(f"{key}: '{value[:40]}' is not {'an' if kind == 'int' else 'a'} {kind}") from None


def written_override(pair: tuple[str, KvValue]) -> str:
    key, value = pair
    kind = {bool: "bool", int: "int", float: "float", str: "str"}[type(value)]
    return f"{key}={kind}:{str(value).lower() if isinstance(value, bool) else value}"


def check_override(key: str, value: KvValue) -> None:
    # Of the size of `key` and `val_str` in llama_model_kv_override, which are copied without a look.
    n_bytes = _n_bytes(key)
    if not 0 < n_bytes < 128:
        raise ValueError(f"a key has 1 to 127 bytes, '{key[:40]}' has {n_bytes}")
    if isinstance(value, str) and (n_bytes := _n_bytes(value)) > 127:
        raise ValueError(f"{key}: a text has at most 127 bytes, this has {n_bytes}")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{key}: the number does not fit into 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key}: {value} is not a finite number")


def _n_bytes(text: str) -> int:
    """Of its UTF-8. A command line can hold bytes that are none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"'{text[:40]}' is not UTF-8") from None


def adapter_file(text: str) -> Path:
    """Raises `NotFound`: native code would load the model first."""
    path = Path(text)
    if not path.is_file():
        raise NotFound(f"there is no file '{path}'", field="lora", value=text, hint=f"ls {path.parent}")
    return path


def scaled_file(text: str) -> tuple[Path, float]:
    """FILE:SCALE. Raises `NotFound`."""
    try:
        path, scale = text.rsplit(":", 1)
        strength = float(scale)
    except ValueError:
        raise ValueError(f"'{text[:60]}' is not FILE:SCALE, such as a.gguf:0.5") from None
    return adapter_file(path), strength


def mebibytes(text: str) -> int:
    """A number of MiB as bytes."""
    n = _whole(text, "a number of MiB")
    if not 0 <= n <= 1 << 30:
        raise ValueError(f"{n} is outside 0 to {1 << 30} MiB")
    return n << 20


def _whole(text: str, wanted: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"'{text[:40]}' is not {wanted}")
    return int(text)
