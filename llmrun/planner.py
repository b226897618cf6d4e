"""Choices made from the header and the machine, before anything is loaded. Pure."""

from __future__ import annotations

from collections import Counter

from llmrun.gguf import Header

# Types whose prefill more than doubles when llama.cpp rearranges the weights at load. Measured at 1.2 B parameters on
# an AVX-512 machine with two cores, pp128 in t/s, plain against repacked: Q4_0 119 : 276, IQ4_NL 116 : 274. K-quants
# lose (Q4_K_M 379 : 244), Q8_0 and Q6_K don't care, and the second copy costs up to two thirds more memory and doubles
# the time to load: so everything else stays as it is in the file.
REPACKED_TYPES = frozenset({"Q4_0", "IQ4_NL"})


def should_repack(header: Header) -> bool:
    """Whether the type that most of the weights have gains from repacking."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.n_bytes
    return bool(sizes) and sizes.most_common(1)[0][0] in REPACKED_TYPES


def smaller_n_ctx(n_ctx: int, kv_bytes_per_token: int | None, available_bytes: int | None) -> int:
    """The next context length to try after `n_ctx` did not fit: a power of two whose KV cache takes at most half of
    the memory that is available."""
    fits = n_ctx // 2
    if kv_bytes_per_token and available_bytes:
        fits = min(fits, available_bytes // 2 // kv_bytes_per_token)
    return 1 << max(8, fits.bit_length() - 1)
