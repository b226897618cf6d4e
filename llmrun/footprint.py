"""What a model takes and reads, computed from its header alone.

A decoded token reads every weight once, but for two kinds: of the token embedding one row only (unless the same tensor
is the output matrix too), and of a mixture of experts only the experts that are chosen. It also reads the keys and
values of every token before it. Counting the file instead overstates a model with a large vocabulary by a fifth, and a
mixture of experts many times over.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmrun.gguf import Header, TensorInfo

# Read by row, not whole: one row per token.
_LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")


@dataclass(frozen=True)
class DecodeReads:
    """Bytes read to decode one token.

    Attributes:
        weight_bytes: weights, the same for every token.
        kv_bytes_per_token: keys and values, for each token that is already in the context; None where the header
            does not tell (recurrent and latent-attention models keep something else).
    """

    weight_bytes: int
    kv_bytes_per_token: int | None

    def at_depth(self, n_past: int) -> int:
        """Bytes read to decode a token behind `n_past` others."""
        return self.weight_bytes + n_past * (self.kv_bytes_per_token or 0)


def decode_reads(header: Header) -> DecodeReads:
    tied = header.tensor("output.weight") is None
    weights = sum(_read_of(tensor, header, tied=tied) for tensor in header.tensors)
    return DecodeReads(weights, kv_bytes_per_token(header))


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
    if header.hparam("ssm.state_size") is not None or header.hparam("attention.kv_lora_rank") is not None:
        return None
    head_k, head_v = header.n_embd_head_k, header.n_embd_head_v
    if head_k is None or head_v is None or not header.n_head_kv:
        return None
    return round(sum(header.n_head_kv) * (head_k + head_v) * bytes_per_element)
