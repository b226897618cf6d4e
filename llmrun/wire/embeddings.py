"""Texts as vectors, in OpenAI's form and in ollama's, which has an older one too.

Vectors have length 1. `dimensions`: the first so many of them, made to be of length 1 again, as models are trained for
that say so (Matryoshka); of others what is left tells less.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from llmrun import codec
from llmrun.codec import Meta, Struct
from llmrun.engine.protocol import Embedded
from llmrun.wire.ollama import keep_alive_s
from llmrun.wire.request import Refused, refusals

EMBEDDINGS, EMBED, OLDER = "/v1/embeddings", "/api/embed", "/api/embeddings"
MOST_INPUTS = 2048
"""Of one request, as OpenAI has it."""
_PART = 512
"""Tokens, by estimate, of texts that are asked for at once: answers that are being made wait for no more than these."""
_CHARACTERS = 4
"""Of a token, about."""


_TOKENS = {"type": "array", "items": {"type": "integer"}}
_INPUTS = Meta(extra_json_schema={"items": {"anyOf": [{"type": "string"}, {"type": "integer"}, _TOKENS]}})


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's."""

    input: str | Annotated[list[Any], _INPUTS]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


class _Options(Struct):
    num_ctx: int | None = None


class EmbedBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """ollama's. Options say how fast it may be, but for the context."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    keep_alive: float | str | None = None
    options: _Options | None = None


class OlderBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """ollama's older one: a text, a vector."""

    model: str
    prompt: str
    keep_alive: float | str | None = None
    options: _Options | None = None


BODIES = {EMBEDDINGS: Body, EMBED: EmbedBody, OLDER: OlderBody}


class Asked(NamedTuple):
    """Attributes:
    inputs: texts, or tokens.
    model: by name; None: whichever there is.
    truncates: a text that is too long is cut, not refused.
    dimensions: of a vector; None: all.
    is_base64: as base64 of float32, little-endian.
    n_ctx, keep_alive_s: as `ollama.Asked` has them.
    """

    inputs: list[str | list[int]]
    model: str | None
    truncates: bool = False
    dimensions: int | None = None
    is_base64: bool = False
    n_ctx: int | None = None
    keep_alive_s: float | None = None


def asked_of(body: bytes, url: str) -> Asked:
    """Raises `Refused`."""
    with refusals():
        if url == EMBEDDINGS:
            read = codec.decode(body, Body)
            inputs = _inputs(read.input)
            return Asked(inputs, read.model, False, read.dimensions, read.encoding_format == "base64")
        if url == EMBED:
            asked = codec.decode(body, EmbedBody)
            texts = [asked.input] if isinstance(asked.input, str) else asked.input
            cuts, n_ctx = asked.truncate is not False, asked.options.num_ctx if asked.options else None
            _check_number(len(texts), least=0)
            return Asked([*texts], asked.model, cuts, asked.dimensions, False, n_ctx, keep_alive_s(asked.keep_alive))
        older = codec.decode(body, OlderBody)
        n_ctx = older.options.num_ctx if older.options else None
        texts = [older.prompt] if older.prompt else []
        return Asked([*texts], older.model, True, None, False, n_ctx, keep_alive_s(older.keep_alive))


def _inputs(given: str | list[Any]) -> list[str | list[int]]:
    """A text, several, tokens of one, or those of several."""
    if isinstance(given, str):
        return [given]
    if given and all(map(_is_token, given)):
        return [[*map(int, given)]]
    _check_number(len(given), least=1)
    for i, each in enumerate(given):
        if not (isinstance(each, str) or (isinstance(each, list) and all(map(_is_token, each)))):
            raise Refused(f"input[{i}] must be a text, or a list of tokens", f"input[{i}]")
    return [each if isinstance(each, str) else [*map(int, each)] for each in given]


def _is_token(value: object) -> bool:
    """5.0 is a whole number too, as everywhere."""
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return is_whole and not isinstance(value, bool) and abs(value) < 1 << 31  # type: ignore[arg-type]


def _check_number(n: int, *, least: int) -> None:
    if not least <= n <= MOST_INPUTS:
        raise Refused(f"input has {n} texts: {least} to {MOST_INPUTS} are possible", "input")


def parts_of(inputs: Sequence[str | list[int]]) -> list[tuple[int, list[str | list[int]]]]:
    """What is asked for at once, and the number of the first of each."""
    parts: list[tuple[int, list[str | list[int]]]] = []
    room = 0
    for i, each in enumerate(inputs):
        n = 1 + (len(each) // _CHARACTERS if isinstance(each, str) else len(each))
        if n > room or not parts:
            parts.append((i, []))
            room = _PART
        parts[-1][1].append(each)
        room -= n
    return parts


def body_of(asked: Asked, url: str, found: Sequence[Embedded], *, model: str, seconds: float) -> dict[str, Any]:
    """Raises `Refused` for more dimensions than there are."""
    vectors = [_shortened(vector, asked.dimensions) for each in found for vector in each.vectors]
    n_tokens = sum(n for each in found for n in each.n_tokens)
    if url == EMBEDDINGS:
        data = [
            {"object": "embedding", "index": i, "embedding": _base64(vector) if asked.is_base64 else vector.tolist()}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return {"object": "list", "data": data, "model": model, "usage": usage}
    if url == EMBED:
        return {
            "model": asked.model,
            "embeddings": [vector.tolist() for vector in vectors],
            "total_duration": round(1e9 * seconds),
            "load_duration": 0,
            "prompt_eval_count": n_tokens,
        }
    return {"embedding": vectors[0].tolist() if vectors else []}


def _shortened(data: bytes, dimensions: int | None) -> array[float]:
    vector = array("f", data)
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise Refused(f"dimensions is {dimensions}: a vector has {len(vector)} here", "dimensions")
    length = sum(value * value for value in vector[:dimensions]) ** 0.5
    return array("f", [value / length if length else 0.0 for value in vector[:dimensions]])


def _base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
