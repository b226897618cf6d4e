"""From the text of an option to the value that `config.py` checks. The spellings are llama.cpp's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from llmrun.errors import NotFound, UsageError
from llmrun.options.config import KvValue, Lora

_HINT = "llmrun run --help"

_LOGIT_BIAS = re.compile(r"(\d{1,10})([+-](?:inf|\d{1,7}(?:\.\d{1,9})?))")
_WHOLE = re.compile(r"-?\d{1,18}")


def logit_bias(text: str) -> tuple[int, float]:
    """TOKEN+BIAS or TOKEN-BIAS: "15043-1.5" is (15043, -1.5)."""
    match = _LOGIT_BIAS.fullmatch(text)
    if match is None or match[2] == "+inf":
        raise UsageError(
            f"--logit-bias: '{text[:40]}' is not TOKEN+BIAS or TOKEN-BIAS, such as 15043+1 or 15043-inf", hint=_HINT
        )
    return int(match[1]), float(match[2])


def n_gpu_layers(text: str) -> int | Literal["auto", "all"]:
    """ "auto", "all", or how many; -1 is auto, as it is for llama.cpp."""
    if text in ("auto", "-1"):
        return "auto"
    if text in ("all", "-2"):
        return "all"
    return _whole("-ngl/--n-gpu-layers", text, "auto, all, or a number of layers")


def n_cpu_moe(text: str) -> int | Literal["all"]:
    return "all" if text == "all" else _whole("-ncmoe/--n-cpu-moe", text, "all or a number of layers")


def devices(text: str | None) -> tuple[str, ...] | None:
    """Names behind commas; "none" is no device at all."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if names == ("none",):
        return ()
    if not all(names):
        raise UsageError(f"--device: '{text}' is no list of names, such as CUDA0,RPC0", hint="llmrun devices")
    if len(set(names)) < len(names):
        raise UsageError(f"--device: '{text}' names a device twice", hint="llmrun devices")
    return names


def tensor_split(text: str | None) -> tuple[float, ...]:
    """Shares behind commas or slashes: "3,1"."""
    if not text:
        return ()
    try:
        return tuple(float(share) for share in re.split("[,/]", text))
    except ValueError:
        raise UsageError(f"-ts/--tensor-split: '{text[:60]}' is no list of shares, such as 3,1", hint=_HINT) from None


def override_tensor(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """PATTERN=DEVICE, several behind commas or in options of their own."""
    found = []
    for text in texts:
        for part in _split_overrides(text):
            pattern, equals, device = part.rpartition("=")
            if not equals or not pattern or not device:
                raise UsageError(
                    f"-ot/--override-tensor: '{part[:60]}' is not PATTERN=DEVICE", hint="-ot 'ffn_.*_exps=CPU'"
                )
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


def override_kv(texts: Iterable[str]) -> dict[str, KvValue]:
    """KEY=TYPE:VALUE, TYPE being int, float, bool or str."""
    found: dict[str, KvValue] = {}
    for text in texts:
        match = re.fullmatch(r"([^=]+)=(int|float|bool|str):(.*)", text, re.DOTALL)
        if match is None:
            raise UsageError(
                f"--override-kv: '{text[:60]}' is not KEY=TYPE:VALUE, TYPE one of int, float, bool, str",
                hint="--override-kv llama.expert_used_count=int:4",
            )
        key, kind, value = match.groups()
        try:
            found[key] = _typed(kind, value)
        except (ValueError, KeyError):
            raise UsageError(f"--override-kv {key}: '{value[:40]}' is no {kind}", hint=_HINT) from None
    return found


def _typed(kind: str, value: str) -> KvValue:
    match kind:
        case "int":
            return int(value)
        case "float":
            return float(value)
        case "bool":
            return {"true": True, "false": False}[value]
        case _:
            return value


def lora(plain: Iterable[str], scaled: Iterable[str]) -> tuple[Lora, ...]:
    """Files, and FILE:SCALE. Raises `NotFound`: native code would load the model first."""
    found = [Lora(Path(text)) for text in plain]
    for text in scaled:
        path, colon, scale = text.rpartition(":")
        try:
            found.append(Lora(Path(path), float(scale)))
        except ValueError:
            raise UsageError(
                f"--lora-scaled: '{text[:60]}' is not FILE:SCALE, such as a.gguf:0.5", hint=_HINT
            ) from None
        if not colon:
            raise UsageError(f"--lora-scaled: '{text[:60]}' is not FILE:SCALE, such as a.gguf:0.5", hint=_HINT)
    for adapter in found:
        if not adapter.path.is_file():
            raise NotFound(f"--lora: there is no file '{adapter.path}'", hint=f"ls {adapter.path.parent}")
    return tuple(found)


def mebibytes(option: str, text: str) -> int:
    """A number of MiB as bytes."""
    n = _whole(option, text, "a number of MiB")
    if not 0 <= n <= 1 << 30:
        raise UsageError(f"{option}: {n} is outside 0 to {1 << 30} MiB", hint=_HINT)
    return n << 20


def _whole(option: str, text: str, wanted: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise UsageError(f"{option}: '{text[:40]}' is not {wanted}", hint=_HINT)
    return int(text)
