"""What else there is of a model that does not fit: the same one, quantized to fewer bits."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmrun.errors import LlmrunError
from llmrun.models import quants
from llmrun.models.reference import HubFile, parse
from llmrun.planning.fit import DoesNotFit, largest_that_fits

if TYPE_CHECKING:
    from llmrun.models.resolve import Model

_MADE = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K")


def with_smaller_quantization(error: DoesNotFit, reference: str, found: Model) -> DoesNotFit:
    """The same error with one way out more, and first: the largest level that fits.

    Of a model of the hub, one that its repository has; where the hub can't be asked, and of a file, one that
    `llmrun quantize` would make.
    """
    sizes = _in_repository(reference) or _to_be_made(reference, found)
    best = largest_that_fits(sizes, found.header.weight_bytes, error)
    return error.with_ways([best, *error.ways][:3]) if best else error


def _in_repository(reference: str) -> Mapping[str, int]:
    """What to type for every level in the model's repository, with its bytes; empty where that can't be known."""
    from llmrun.models.hub.http import is_offline
    from llmrun.models.hub.info import model_info

    named = parse(reference)
    if not isinstance(named, HubFile) or is_offline():
        return {}
    try:
        files = model_info(named.repo, named.revision).models
    except LlmrunError:
        return {}
    sizes: Counter[str] = Counter()
    for file in files:
        if quant := quants.quant_of(file.name):
            sizes[f"{named.name}:{quant}"] += file.size
    return sizes


def _to_be_made(reference: str, found: Model) -> Mapping[str, int]:
    n_params = found.header.n_params
    made = {level: quants.model_bytes(n_params, level) for level in _MADE}
    return {f"llmrun quantize {shlex.quote(reference)} {level}": n_bytes for level, n_bytes in made.items() if n_bytes}
