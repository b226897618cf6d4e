"""A device, as ggml describes it: what everything that plans, computes or shows devices speaks of."""

from __future__ import annotations

from typing import Literal

from llmrun.codec import Struct, field

DeviceKind = Literal["cpu", "gpu", "igpu", "accel", "meta"]


class Device(Struct):
    """Something that llama.cpp can compute on.

    Attributes:
        name: as llama.cpp names it: "CPU", "CUDA0", "RPC0".
        description: the product's name; of an RPC device its "host:port".
        kind: as ggml has it; an RPC device counts as "gpu" whatever lies behind it.
        backend: "CPU", "CUDA", "Metal", "Vulkan", "RPC[host:port]".
        total_bytes, free_bytes: of its memory; None where it doesn't tell. Of a driver whose budget is smaller than
            what is in use, nothing is free.
        features: what its backend can do, {"AVX512": "1"}; empty where it doesn't tell.
    """

    name: str
    description: str
    kind: DeviceKind
    backend: str
    total_bytes: int | None
    free_bytes: int | None
    features: dict[str, str] = field(default_factory=dict)


def free_of(free: int, total: int) -> int:
    """Bytes that are free, of what ggml tells: it takes what is in use from Vulkan's budget without a look, and less
    than nothing is nearly 2^64 then."""
    return free if free <= total else 0
