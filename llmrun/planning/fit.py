"""What a model takes at the least, by its header alone, before anything is chosen or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmrun.gguf.reader import Header
from llmrun.planning.footprint import CPU, Placement, footprint

_N_CTX = 4096


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of weights and of the KV cache in f16; without compute buffers, which only llama.cpp knows.

    Attributes:
        n_ctx: tokens of context.
        kv_bytes: None where the header does not tell.
    """

    n_ctx: int
    weight_bytes: int
    kv_bytes: int | None

    @property
    def total_bytes(self) -> int:
        """What is known of it together."""
        return self.weight_bytes + (self.kv_bytes or 0)


def estimate(header: Header, n_ctx: int = _N_CTX) -> MemoryEstimate:
    """What the model takes in RAM with so many tokens of context, or as many as it was trained for if that is less."""
    n_ctx = min(n_ctx, header.n_ctx_train or n_ctx)
    need = footprint(header, Placement((CPU,) * ((header.n_layer or 0) + 1)), n_ctx).by_device[CPU]
    return MemoryEstimate(n_ctx, need.weights, need.kv)


def largest_that_fits(sizes: Mapping[str, int], weight_bytes: int, *, needed: int, free: int) -> tuple[str, int] | None:
    """Of models of these bytes by name, the largest smaller one that fits, or the smallest; with the bytes then needed.

    Attributes:
        weight_bytes: of the model that does not fit.
        needed, free: bytes with that one, and there.
    """
    other = needed - weight_bytes
    smaller = {other + n_bytes: name for name, n_bytes in sizes.items() if n_bytes < 0.98 * weight_bytes}
    if not smaller:
        return None
    best = max((total for total in smaller if total <= free), default=min(smaller))
    return smaller[best], best
