"""What a model takes and reads, computed from its header alone.

A decoded token reads every weight once, but for two kinds: of the token embedding one row only (unless the same tensor
is the output matrix too), and of a mixture of experts only the experts that are chosen. It also reads the keys and
values of every token before it. Counting the file instead overstates a model with a large vocabulary by a fifth, and a
mixture of experts many times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmrun.gguf import Header, TensorInfo

# Read by row, not whole: one row per token.
_LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")


@dataclass(frozen=True)
class KvReads:
    """Keys and values of the layers that look equally far back.

    Attributes:
        bytes_per_token: of all these layers together.
        window: tokens that they look back (sliding window); None is all.
    """

    bytes_per_token: int
    window: int | None = None


@dataclass(frozen=True)
class DecodeReads:
    """Bytes read to decode one token.

    Attributes:
        weight_bytes: weights, the same for every token.
        kv: keys and values; None where the header does not tell (recurrent and latent-attention models keep something
            else, some architectures keep their windows to themselves).
    """

    weight_bytes: int
    kv: tuple[KvReads, ...] | None

    def at_depth(self, n_past: int) -> int | None:
        """Bytes read to decode a token behind `n_past` others."""
        if self.kv is None:
            return None
        return self.weight_bytes + sum(
            part.bytes_per_token * (n_past if part.window is None else min(n_past, part.window)) for part in self.kv
        )


def decode_reads(header: Header) -> DecodeReads:
    tied = header.tensor("output.weight") is None
    weights = sum(_read_of(tensor, header, tied=tied) for tensor in header.tensors)
    return DecodeReads(weights, _kv_reads(header))


# Architectures whose header names a window: every n-th layer looks back all the way, the others no further than it.
# From the loaders of llama.cpp (src/models/*.cpp, set_swa_pattern). Others with a window say in the header which layers
# have it, or it stays unknown. The second kind never uses one, whatever the header says.
_FULL_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2}
_NO_WINDOW = frozenset({"llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi3", "mistral3"})


def _kv_reads(header: Header) -> tuple[KvReads, ...] | None:
    per_layer = _kv_bytes_per_layer(header, 2)
    if per_layer is None:
        return None
    window = header.hparam("attention.sliding_window")
    if not isinstance(window, int) or window <= 0 or header.architecture in _NO_WINDOW:
        return (KvReads(sum(per_layer)),)
    slides = _sliding_layers(header, len(per_layer))
    if slides is None:
        return None
    windowed = sum(n for n, slide in zip(per_layer, slides, strict=True) if slide)
    return KvReads(sum(per_layer) - windowed), KvReads(windowed, window)


def _sliding_layers(header: Header, n_layer: int) -> list[bool] | None:
    pattern = header.hparam("attention.sliding_window_pattern")
    if isinstance(pattern, Sequence) and not isinstance(pattern, str) and len(pattern) >= n_layer:
        return [bool(slide) for slide in pattern[:n_layer]]
    every = pattern if isinstance(pattern, int) and pattern > 0 else _FULL_EVERY.get(header.architecture or "")
    return None if every is None else [layer % every < every - 1 for layer in range(n_layer)]


def _read_of(tensor: TensorInfo, header: Header, *, tied: bool) -> int:
    if tensor.name in _LOOKED_UP:
        row = tensor.n_bytes // max(1, tensor.n_elements // tensor.shape[0])
        if tied and tensor.name == "token_embd.weight":
            return tensor.n_bytes + row
        return row
    if "_exps." in tensor.name and header.n_expert:
        return tensor.n_bytes * header.n_expert_used // header.n_expert
    return tensor.n_bytes


def kv_bytes_per_token(header: Header, bytes_per_element: float = 2) -> int | None:
    """Bytes of KV cache for one token over all layers (f16 unless told otherwise), None where the header can't tell.

    n_head_kv × (n_embd_head_k + n_embd_head_v) elements per layer with attention.
    """
    per_layer = _kv_bytes_per_layer(header, bytes_per_element)
    return None if per_layer is None else sum(per_layer)


def _kv_bytes_per_layer(header: Header, bytes_per_element: float) -> list[int] | None:
    if header.hparam("ssm.state_size") is not None or header.hparam("attention.kv_lora_rank") is not None:
        return None
    head_k, head_v = header.n_embd_head_k, header.n_embd_head_v
    if head_k is None or head_v is None or not header.n_head_kv:
        return None
    return [round(n * (head_k + head_v) * bytes_per_element) for n in header.n_head_kv]
