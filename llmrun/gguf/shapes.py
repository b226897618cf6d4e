"""Shapes of published models: which tensors a model has and what its header says, without a weight.

A `Shape` is a plain decoder of the llama family; what an architecture does differently is one of its small parts:

    part            architectures here                      what it decides
    --------------  --------------------------------------  --------------------------------------------------------
    window          gemma2 gemma3 gpt-oss cohere2 llama4    layers that see (and keep) only the last n_swa tokens
    experts         llama qwen3moe gpt-oss llama4 ...       fields n_expert, n_ff_exp, n_ff_shexp, n_dense_lead
    recurrent       granitehybrid mamba2 qwen35 qwen3next   Mamba2, DeltaNet or ShortConv in all layers that are not
                    lfm2                                    in attn_layers: a state of fixed size in place of keys
    mla             deepseek2                               one compressed row per token in place of keys and values

What changes neither tensors nor memory (soft caps, scales, rope scaling) stands as it is in `keys`. Keys are those that
llama.cpp's converter writes for the model: what it leaves out (gemma3's pattern of windows, llama4's window) is left
out here too, and llama.cpp has it in its code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llmrun.options.toml import read_toml

Value = str | bool | int | float | tuple[int, ...] | tuple[bool, ...]
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Sliding-window (in llama4: chunked) attention.

    Attributes:
        n_swa: tokens that a layer with a window sees.
        period: every so-many-th layer sees all tokens: layers period-1, 2·period-1 ... Not in the header.
    """

    n_swa: int
    period: int


@dataclass(frozen=True)
class Mamba2:
    """A state-space layer. Sizes are llama.cpp's: `ssm.*` in the header.

    Attributes:
        d_conv: taps of the convolution.
        d_inner: elements of the inner vector, 2 · n_embd.
        d_state: elements of state for each of those.
        n_head: `ssm.time_step_rank`; d_inner / n_head elements each.
        n_group: heads of a group share B and C.
    """

    d_inner: int
    n_head: int
    d_state: int = 128
    n_group: int = 1
    d_conv: int = 4

    @property
    def n_conv(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_inner + 2 * self.n_group * self.d_state

    @property
    def n_state(self) -> int:
        """Elements (f32) that a layer keeps for a sequence. llama-hparams.cpp: n_embd_r() + n_embd_s()."""
        return (self.d_conv - 1) * self.n_conv + self.d_state * self.d_inner


@dataclass(frozen=True)
class DeltaNet(Mamba2):
    """A gated delta net (linear attention) in the same keys.

    `d_state` is the length of a head, `n_group` the number of key heads, `n_head` of value heads; d_inner is their
    product, d_state · n_head. The state has the formula of Mamba-2.
    """


@dataclass(frozen=True)
class ShortConv:
    """A gated short convolution over the embedding.

    Attributes:
        n_embd: channels.
        l_cache: taps; l_cache - 1 past inputs are kept.
    """

    n_embd: int
    l_cache: int = 3

    @property
    def n_state(self) -> int:
        """Elements (f32) that a layer keeps for a sequence."""
        return (self.l_cache - 1) * self.n_embd


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention. llama.cpp keeps one row of kv_lora_rank + n_rot elements per token and layer.

    Attributes:
        kv_lora_rank: elements of the compressed keys and values.
        n_rot: elements of the part of a key that rotates; all heads share it.
        n_nope: elements of a head's key that don't.
        n_value: elements of a head's value.
        q_lora_rank: of the compressed query; 0 is a full matrix.
    """

    kv_lora_rank: int = 512
    n_rot: int = 64
    n_nope: int = 128
    n_value: int = 128
    q_lora_rank: int = 0


@dataclass(frozen=True)
class Shape:
    """A decoder-only language model.

    Attributes:
        n_ff: width of the feed-forward layer; of one expert in a mixture, unless `n_ff_exp` says otherwise.
        n_head: 0 is a model without attention.
        n_head_kv: fewer than `n_head` is grouped-query attention.
        arch: GGUF architecture.
        tied: the output matrix is the token embedding.
        n_expert, n_expert_used: 0 is dense.
        head_dim: elements of a head; None is n_embd / n_head, and not in the header.
        rope_freq_base: 0 is not in the header.
        n_rot: elements of a head that rotate; None is all, and not in the header (except llama's).
        n_ff_exp: width of one expert where it is not n_ff.
        n_ff_shexp: width of the shared experts together, which every token uses.
        n_dense_lead: the first layers, which have no experts.
        attn_layers: layers with attention; the others are `recurrent`. None is all. Those beyond n_layer don't count.
        n_nextn: layers behind the last that predict the token after the next (of qwen35 one at most).
        longrope: factors of rotation for long and short contexts, as tensors.
        keys: more of the header, without the architecture's name in front; goes before what follows from the shape.
    """

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    arch: str = "llama"
    n_ctx_train: int = 8192
    tied: bool = False
    n_expert: int = 0
    n_expert_used: int = 0
    head_dim: int | None = None
    rope_freq_base: float = 500_000.0
    n_rot: int | None = None
    n_ff_exp: int | None = None
    n_ff_shexp: int = 0
    n_dense_lead: int = 0
    attn_layers: tuple[int, ...] | None = None
    window: Window | None = None
    recurrent: Mamba2 | ShortConv | None = None
    mla: Mla | None = None
    n_nextn: int = 0
    longrope: bool = False
    keys: Mapping[str, Value] = field(default_factory=dict)

    @property
    def n_embd_head(self) -> int:
        return self.head_dim or (self.n_embd // self.n_head if self.n_head else 0)

    @property
    def n_params(self) -> int:
        return sum(math.prod(dims) for _, dims in tensors(self))

    def attends(self, layer: int) -> bool:
        """Whether the layer keeps keys and values, not a recurrent state."""
        return self.attn_layers is None or layer in self.attn_layers

    def slides(self, layer: int) -> bool:
        """Whether the layer sees a window only."""
        return self.window is not None and (layer + 1) % self.window.period != 0

    def routes(self, layer: int) -> bool:
        """Whether the layer's feed-forward part is a mixture of experts."""
        return self.n_expert > 0 and layer >= self.n_dense_lead


# -- tensors -------------------------------------------------------------------------------------------------------

_NORMS_QK = frozenset({"qwen3", "qwen3moe", "qwen3next", "qwen35", "gemma3", "lfm2"})
_BIASES_QKV = frozenset({"qwen2", "gpt-oss"})
_GATES_ATTENTION = frozenset({"qwen3next", "qwen35"})  # q carries a gate of its own size
_NORMS_TWICE = frozenset({"gemma2", "gemma3"})  # in front of attention and feed-forward, and behind
# What the norm in front of the feed-forward layer is called where it isn't ffn_norm.
_FFN_NORM = {"gpt-oss": "post_attention_norm", "qwen3next": "post_attention_norm", "qwen35": "post_attention_norm"}


def tensors(shape: Shape) -> Iterator[tuple[str, Dims]]:
    """Names and shapes of all tensors, in ggml's order of dimensions (row length first)."""
    d = shape.n_embd
    yield "token_embd.weight", (d, shape.n_vocab)
    if shape.longrope:
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", ((shape.n_rot or shape.n_embd_head) // 2,)
    for i in range(shape.n_layer):
        for name, dims in _layer(shape, i):
            yield f"blk.{i}.{name}", dims
    for i in range(shape.n_layer, shape.n_layer + shape.n_nextn):
        for name, dims in _next_layer(shape):
            yield f"blk.{i}.{name}", dims
    yield ("token_embd_norm.weight" if shape.arch == "lfm2" else "output_norm.weight"), (d,)
    if not shape.tied:
        yield "output.weight", (d, shape.n_vocab)


def _layer(shape: Shape, layer: int) -> Iterator[tuple[str, Dims]]:
    yield "attn_norm.weight", (shape.n_embd,)
    if not shape.attends(layer):
        match shape.recurrent:
            case DeltaNet() as net:
                yield from _delta_net(shape, net)
            case Mamba2() as mamba:
                yield from _mamba2(shape, mamba)
            case ShortConv() as conv:
                yield from _short_conv(conv)
    elif shape.mla:
        yield from _latent_attention(shape, shape.mla)
    else:
        yield from _attention(shape)
    if shape.routes(layer):
        yield from _mixture(shape)
    elif shape.n_ff:
        yield from _feed_forward(shape)


def _next_layer(shape: Shape) -> Iterator[tuple[str, Dims]]:
    """One with attention, over the hidden state and the next token's embedding together."""
    d = shape.n_embd
    yield "attn_norm.weight", (d,)
    yield from _attention(shape)
    yield from _feed_forward(shape)
    yield "nextn.eh_proj.weight", (2 * d, d)
    for name in ("enorm", "hnorm", "shared_head_norm"):
        yield f"nextn.{name}.weight", (d,)


def _attention(shape: Shape) -> Iterator[tuple[str, Dims]]:
    d, head = shape.n_embd, shape.n_embd_head
    q, kv = shape.n_head * head, shape.n_head_kv * head
    if shape.arch == "phi3":
        yield "attn_qkv.weight", (d, q + 2 * kv)
    else:
        for name, width in (("q", 2 * q if shape.arch in _GATES_ATTENTION else q), ("k", kv), ("v", kv)):
            yield f"attn_{name}.weight", (d, width)
            if shape.arch in _BIASES_QKV:
                yield f"attn_{name}.bias", (width,)
    if shape.arch in _NORMS_QK:
        yield "attn_q_norm.weight", (head,)
        yield "attn_k_norm.weight", (head,)
    yield "attn_output.weight", (q, d)
    if shape.arch == "gpt-oss":
        yield "attn_output.bias", (d,)
        yield "attn_sinks.weight", (shape.n_head,)
    if shape.arch in _NORMS_TWICE:
        yield "post_attention_norm.weight", (d,)


def _latent_attention(shape: Shape, mla: Mla) -> Iterator[tuple[str, Dims]]:
    """The query is full or compressed; keys and values are compressed together, and spread by k_b and v_b."""
    d, n_head, rank = shape.n_embd, shape.n_head, mla.kv_lora_rank
    q = n_head * (mla.n_nope + mla.n_rot)
    if mla.q_lora_rank:
        yield "attn_q_a.weight", (d, mla.q_lora_rank)
        yield "attn_q_a_norm.weight", (mla.q_lora_rank,)
        yield "attn_q_b.weight", (mla.q_lora_rank, q)
    else:
        yield "attn_q.weight", (d, q)
    yield "attn_kv_a_mqa.weight", (d, rank + mla.n_rot)
    yield "attn_kv_a_norm.weight", (rank,)
    yield "attn_k_b.weight", (mla.n_nope, rank, n_head)
    yield "attn_v_b.weight", (rank, mla.n_value, n_head)
    yield "attn_output.weight", (n_head * mla.n_value, d)


def _mamba2(shape: Shape, ssm: Mamba2) -> Iterator[tuple[str, Dims]]:
    yield "ssm_in.weight", (shape.n_embd, ssm.d_inner + ssm.n_conv + ssm.n_head)
    yield "ssm_conv1d.weight", (ssm.d_conv, ssm.n_conv)
    yield "ssm_conv1d.bias", (ssm.n_conv,)
    yield "ssm_dt.bias", (ssm.n_head,)
    yield "ssm_a", (1, ssm.n_head)
    yield "ssm_d", (1, ssm.n_head)
    yield "ssm_norm.weight", (ssm.d_inner // ssm.n_group, ssm.n_group)
    yield "ssm_out.weight", (ssm.d_inner, shape.n_embd)


def _delta_net(shape: Shape, net: DeltaNet) -> Iterator[tuple[str, Dims]]:
    d = shape.n_embd
    yield "attn_qkv.weight", (d, net.n_conv)
    yield "attn_gate.weight", (d, net.d_inner)
    yield "ssm_conv1d.weight", (net.d_conv, net.n_conv)
    yield "ssm_dt.bias", (net.n_head,)
    yield "ssm_a", (net.n_head,)
    if shape.arch == "qwen3next":
        yield "ssm_ba.weight", (d, 2 * net.n_head)
    else:
        yield "ssm_beta.weight", (d, net.n_head)
        yield "ssm_alpha.weight", (d, net.n_head)
    yield "ssm_norm.weight", (net.d_state,)
    yield "ssm_out.weight", (net.d_inner, d)


def _short_conv(conv: ShortConv) -> Iterator[tuple[str, Dims]]:
    yield "shortconv.conv.weight", (conv.l_cache, conv.n_embd)
    yield "shortconv.in_proj.weight", (conv.n_embd, 3 * conv.n_embd)
    yield "shortconv.out_proj.weight", (conv.n_embd, conv.n_embd)


def _feed_forward(shape: Shape) -> Iterator[tuple[str, Dims]]:
    d = shape.n_embd
    if shape.arch != "cohere2":  # whose attention and feed-forward layers share a norm
        yield f"{_FFN_NORM.get(shape.arch, 'ffn_norm')}.weight", (d,)
    fused = shape.arch == "phi3"  # gate and up in one
    if not fused:
        yield "ffn_gate.weight", (d, shape.n_ff)
    yield "ffn_down.weight", (shape.n_ff, d)
    yield "ffn_up.weight", (d, 2 * shape.n_ff if fused else shape.n_ff)
    if shape.arch in _NORMS_TWICE:
        yield "post_ffw_norm.weight", (d,)


def _mixture(shape: Shape) -> Iterator[tuple[str, Dims]]:
    d, width, n_expert = shape.n_embd, shape.n_ff_exp or shape.n_ff, shape.n_expert
    yield f"{_FFN_NORM.get(shape.arch, 'ffn_norm')}.weight", (d,)
    yield "ffn_gate_inp.weight", (d, n_expert)
    matrices = {"gate": (d, width), "down": (width, d), "up": (d, width)}
    for name, (row, n_rows) in matrices.items():
        yield f"ffn_{name}_exps.weight", (row, n_rows, n_expert)
    if shape.arch == "gpt-oss":
        yield "ffn_gate_inp.bias", (n_expert,)
        for name, (_, n_rows) in matrices.items():
            yield f"ffn_{name}_exps.bias", (n_rows, n_expert)
    if shape.n_ff_shexp:
        if shape.arch == "qwen3next":
            yield "ffn_gate_inp_shexp.weight", (d,)
        yield "ffn_gate_shexp.weight", (d, shape.n_ff_shexp)
        yield "ffn_down_shexp.weight", (shape.n_ff_shexp, d)
        yield "ffn_up_shexp.weight", (d, shape.n_ff_shexp)


# -- the header ----------------------------------------------------------------------------------------------------

_HEADS_PER_LAYER = frozenset({"granitehybrid", "lfm2"})  # head_count_kv is an array, 0 where a layer is recurrent
_EXPERTS_ARE_FF = frozenset({"llama", "granitehybrid"})  # the width of an expert is feed_forward_length


def hparams(shape: Shape) -> dict[str, Value]:
    """The header's hyperparameters, without the architecture's name in front."""
    keys: dict[str, Value] = {
        "block_count": shape.n_layer + shape.n_nextn,
        "context_length": shape.n_ctx_train,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "vocab_size": shape.n_vocab,
    }
    if shape.n_head:
        per_layer = tuple(shape.n_head_kv if shape.attends(i) else 0 for i in range(shape.n_layer))
        keys["attention.head_count_kv"] = per_layer if shape.arch in _HEADS_PER_LAYER else shape.n_head_kv
    if shape.n_nextn:
        keys["nextn_predict_layers"] = shape.n_nextn
    if shape.head_dim is not None:
        keys |= {"attention.key_length": shape.head_dim, "attention.value_length": shape.head_dim}
    n_rot = shape.n_rot or (shape.n_embd_head if shape.arch == "llama" else None)
    if n_rot is not None:
        keys["rope.dimension_count"] = n_rot
    if shape.rope_freq_base:
        keys["rope.freq_base"] = shape.rope_freq_base
    if "attention.layer_norm_epsilon" not in shape.keys:
        keys["attention.layer_norm_rms_epsilon"] = 1e-5
    if shape.window and shape.arch != "llama4":  # there it is llama.cpp's code that knows it
        keys["attention.sliding_window"] = shape.window.n_swa
    return {**keys, **_expert_keys(shape), **_recurrent_keys(shape), **_mla_keys(shape), **shape.keys}


def _expert_keys(shape: Shape) -> dict[str, Value]:
    if not shape.n_expert:
        return {}
    width = shape.n_ff_exp or shape.n_ff
    keys: dict[str, Value] = {"expert_count": shape.n_expert, "expert_used_count": shape.n_expert_used}
    if shape.arch not in _EXPERTS_ARE_FF:
        keys["expert_feed_forward_length"] = width
    if shape.arch == "deepseek2":
        keys["leading_dense_block_count"] = shape.n_dense_lead
        keys["expert_shared_count"] = shape.n_ff_shexp // width
    elif shape.n_ff_shexp and shape.arch != "llama4":  # whose shared expert is as wide as the others
        keys["expert_shared_feed_forward_length"] = shape.n_ff_shexp
    return keys


def _recurrent_keys(shape: Shape) -> dict[str, Value]:
    match shape.recurrent:
        case Mamba2() as ssm:
            keys: dict[str, Value] = {
                "ssm.conv_kernel": ssm.d_conv,
                "ssm.inner_size": ssm.d_inner,
                "ssm.state_size": ssm.d_state,
                "ssm.time_step_rank": ssm.n_head,
                "ssm.group_count": ssm.n_group,
            }
            if isinstance(ssm, DeltaNet):
                keys["attention.recurrent_layers"] = (
                    *(not shape.attends(i) for i in range(shape.n_layer)),
                    *[False] * shape.n_nextn,
                )
            return keys
        case ShortConv() as conv:
            return {"shortconv.l_cache": conv.l_cache}
    return {}


def _mla_keys(shape: Shape) -> dict[str, Value]:
    """As llama.cpp computes it: one key-value head, whose key is the compressed row and whose value a part of that."""
    if (mla := shape.mla) is None:
        return {}
    keys: dict[str, Value] = {
        "attention.kv_lora_rank": mla.kv_lora_rank,
        "attention.key_length": mla.kv_lora_rank + mla.n_rot,
        "attention.value_length": mla.kv_lora_rank,
        "attention.key_length_mla": mla.n_nope + mla.n_rot,
        "attention.value_length_mla": mla.n_value,
        "rope.dimension_count": mla.n_rot,
    }
    if mla.q_lora_rank:
        keys["attention.q_lora_rank"] = mla.q_lora_rank
    return keys


# -- the shapes ----------------------------------------------------------------------------------------------------

_PARTS: Mapping[str, tuple[str, type]] = {
    "window": ("window", Window),
    "mla": ("mla", Mla),
    "mamba2": ("recurrent", Mamba2),
    "delta_net": ("recurrent", DeltaNet),
    "short_conv": ("recurrent", ShortConv),
}
"""Tables of `shapes.toml`, and what they are to a `Shape`."""


def _shape(fields: Mapping[str, Any]) -> Shape:
    made = {_PARTS[name][0]: _PARTS[name][1](**fields[name]) for name in fields.keys() & _PARTS.keys()}
    return Shape(**{name: _frozen(value) for name, value in fields.items() if name not in _PARTS}, **made)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


_DATA = Path(__file__).parents[1] / "data" / "shapes.toml"
SHAPES = {name: _shape(fields) for name, fields in read_toml(_DATA, "list of shapes")[0].items()}


def small(shape: Shape, n_layer: int | None = None, n_embd: int = 256, n_vocab: int = 512) -> Shape:
    """The same structure in a few megabytes, for tests: everything that costs bytes shrinks, all else stays.

    `n_layer` is by default just enough for two layers from where all kinds of layers have occurred. `n_embd` is a
    multiple of 32. Windows, a head's length where it is not n_embd / n_head, the ranks of MLA, the length of a state
    and the context stay what they are.
    """
    if n_layer is None:
        kinds = [(shape.attends(i), shape.slides(i), shape.routes(i)) for i in range(shape.n_layer)]
        n_layer = min(shape.n_layer, 2 + max(kinds.index(kind) for kind in set(kinds)))
    n_head = min(shape.n_head, 4)
    n_head_kv = n_head if shape.n_head_kv == shape.n_head else min(shape.n_head_kv, 2)
    head_dim, n_rot = shape.head_dim, shape.n_rot
    if n_head and shape.n_head * shape.n_embd_head == shape.n_embd:
        head_dim = head_dim and n_embd // n_head
        n_rot = n_rot and n_rot * n_embd // n_head // shape.n_embd_head
    n_ff, n_ff_exp = min(shape.n_ff, n_embd), shape.n_ff_exp and n_embd
    recurrent = shape.recurrent
    match recurrent:
        case DeltaNet():
            per_key = recurrent.n_head // recurrent.n_group
            recurrent = replace(recurrent, n_head=2 * per_key, n_group=2, d_inner=2 * per_key * recurrent.d_state)
        case Mamba2():
            n_heads = 2 * n_embd * recurrent.n_head // recurrent.d_inner
            recurrent = replace(recurrent, n_head=n_heads, d_inner=2 * n_embd)
        case ShortConv():
            recurrent = replace(recurrent, n_embd=n_embd)
    # A small deepseek2 has a compressed query: that it has none llama.cpp believes of V2-Lite's 26 or 27 layers only.
    mla = shape.mla and replace(shape.mla, q_lora_rank=n_embd)
    # Eight stay eight: llama.cpp's quantizer makes rules of its own for that number.
    n_expert, n_expert_used = 8 if shape.n_expert == 8 else min(shape.n_expert, 4), min(shape.n_expert_used, 2)
    n_ff_shexp = shape.n_ff_shexp // (shape.n_ff_exp or shape.n_ff or 1) * (n_ff_exp or n_ff)
    shape = replace(shape, n_layer=n_layer, n_embd=n_embd, n_vocab=n_vocab, recurrent=recurrent, mla=mla)
    shape = replace(shape, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim, n_rot=n_rot)
    return replace(
        shape, n_ff=n_ff, n_ff_exp=n_ff_exp, n_ff_shexp=n_ff_shexp, n_expert=n_expert, n_expert_used=n_expert_used
    )
