"""What else there is of a model that does not fit: the same one, quantized to fewer bits."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmrun.errors import LlmrunError
from llmrun.models import quants
from llmrun.models.catalog import HubFile, parse
from llmrun.planning.placement import DoesNotFit

if TYPE_CHECKING:
    from llmrun.models.resolve import Model


def with_smaller_quantization(error: DoesNotFit, reference: str, found: Model) -> DoesNotFit:
    """The same error with one way out more, and first: the largest level that fits; the smallest there is where nothing
    else would fit either.

    Of a model of the hub, one that its repository has; where the hub can't be asked, and of a file, one that
    `llmrun quantize` would make.
    """
    here = found.header.weight_bytes
    smaller = {
        error.needed - here + n_bytes: typed
        for typed, n_bytes in _in_repository(reference) or _to_be_made(reference, found)
        if n_bytes < 0.98 * here
    }
    if not smaller:
        return error
    needed = max((needed for needed in smaller if needed <= error.free), default=min(smaller))
    if needed > error.free and error.ways:
        return error
    ways = [(smaller[needed], needed), *error.ways]
    return DoesNotFit(error.message, needed=error.needed, free=error.free, ways=ways[:3])


def _in_repository(reference: str) -> list[tuple[str, int]]:
    """(what to type, bytes) of every level in the model's repository; empty where that can't be known."""
    from llmrun.models import hub

    named = parse(reference)
    if not isinstance(named, HubFile) or hub.is_offline():
        return []
    try:
        files = hub.model_info(named.repo, named.revision).models
    except LlmrunError:
        return []
    sizes: dict[str, int] = {}
    for file in files:
        quant = quants.quant_of(file.name)
        if quant is not None:
            sizes[quant] = sizes.get(quant, 0) + file.size
    return [(f"{named.name}:{quant}", n_bytes) for quant, n_bytes in sizes.items()]


_MADE: Iterable[str] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")


def _to_be_made(reference: str, found: Model) -> list[tuple[str, int]]:
    made = []
    for level in _MADE:
        bits = quants.bits_per_weight(level)
        if bits is not None:
            n_bytes = round(found.header.n_params * bits / 8)
            made.append((f"llmrun quantize {shlex.quote(reference)} {level}", n_bytes))
    return made
