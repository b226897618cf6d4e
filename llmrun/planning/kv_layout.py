"""What each layer of a model keeps of the tokens behind it, from the header alone.

A layer with attention keeps keys and values of every token, or of those in its window; one with latent attention (MLA)
keeps one compressed vector per token; a recurrent one keeps a state whose size does not depend on the tokens at all.
Which layer does what, the header tells only in part: the rest are habits of each architecture, which llama.cpp has in
its loaders (src/models/*.cpp, `llama_model::create_memory`). They stand here as tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmrun.gguf.reader import Header
from llmrun.gguf.rules import is_encoder
from llmrun.gguf.types import GGML_TYPES

_BLOCK_SIZES = {kind.name.lower(): kind.block_size for kind in GGML_TYPES.values()}


@dataclass(frozen=True)
class LayerMemory:
    """One layer's memory, in elements.

    Attributes:
        n_k, n_v: elements of keys and of values per token (n_head_kv × head length); 0 for a layer without attention.
        window: how many tokens it looks back; None is all of them.
        n_state: elements of recurrent state, convolution included, always F32.
    """

    n_k: int = 0
    n_v: int = 0
    window: int | None = None
    n_state: int = 0


# Their caches have parts of their own (an indexer's keys, compressed histories, layers that stand for several).
_OF_THEIR_OWN = frozenset(
    """deepseek32 deepseek4 dflash dots3note eagle3 gemma4-assistant glm-dsa glm5-next hrm_text hy_v4 kimi-k3 minimax-m3
    nanbeige qwen4exp""".split()
)
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# Of these, the layers without key-value heads are recurrent, the others have attention.
_RECURRENT_WITHOUT_HEADS = frozenset("jamba granitehybrid lfm2 lfm2moe kimi-linear plamo2 bailingmoe3".split())
_NEMOTRON = frozenset({"nemotron_h", "nemotron_h_moe"})  # a layer there is attention, or recurrent, or feed-forward
# Every n-th layer has attention, the others are recurrent; n unless the header has full_attention_interval.
_ATTENTION_EVERY = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}


@dataclass(frozen=True)
class _Windows:
    """Which layers have a window: of every `every` one looks back all the way, the first or the last of them.

    `default` is the window where the header has none; `fixed` whatever it has.
    """

    every: int | None
    first: bool = False
    default: int | None = None
    fixed: bool = False


# The architectures that have windows. All others look back all the way, whatever their header says.
_WINDOWS = {
    **dict.fromkeys("afmoe cohere2 exaone-moe mellum muse-glimmer olmo2".split(), _Windows(4)),
    **dict.fromkeys("cohere2moe laguna".split(), _Windows(4, first=True)),
    **dict.fromkeys("gemma4 granite_swa maple mimo2 spark2_5 step35".split(), _Windows(None)),
    "exaone4": _Windows(4, default=4096),  # the one with 64 layers alone
    "gemma2": _Windows(2, default=4096),
    "gemma3": _Windows(6),
    "gemma3n": _Windows(5),
    "gpt-oss": _Windows(2),
    "llama4": _Windows(4, default=8192, fixed=True),  # chunks, not a window that slides
    "plamo3": _Windows(8),
    "smallthinker": _Windows(4, first=True, default=4096, fixed=True),
}
_ALL_ATTENTION_SLIDES = frozenset({"lfm2", "lfm2moe"})  # where there is a window at all


def layer_memories(header: Header) -> tuple[LayerMemory, ...] | None:
    """One for each layer; None where the header does not tell (see `_OF_THEIR_OWN`)."""
    arch, n_layer = header.architecture or "", header.n_layer
    if arch in _OF_THEIR_OWN or not n_layer:
        return None
    if is_encoder(header):
        return (LayerMemory(),) * n_layer  # a text is computed at once, and nothing is remembered of it
    windows = _windows(header, arch, n_layer)
    state = _state_elements(header)
    recurrent = _recurrent_layers(header, arch, n_layer)
    if windows is None or recurrent is None or (any(recurrent) and not state):
        return None
    both = arch == "falcon-h1"
    own_kv = _layers_with_own_kv(header, arch, n_layer)
    made = []
    for layer in range(n_layer):
        attends = (not recurrent[layer] or both) and layer < own_kv and not _only_feeds_forward(header, arch, layer)
        kv = _kv_elements(header, layer, windows[layer]) if attends else (0, 0)
        if kv is None:
            return None
        made.append(LayerMemory(*kv, windows[layer] if any(kv) else None, state if recurrent[layer] else 0))
    return tuple(made)


def heads_of(header: Header, layer: int) -> tuple[int, int]:
    """A layer's heads of queries, and of keys and values; one of these at least."""
    heads, heads_kv = header.n_head or (0,), header.n_head_kv
    return heads[min(layer, len(heads) - 1)], heads_kv[min(layer, len(heads_kv) - 1)] or 1


RECURRENT_KINDS = ("mamba2", "delta-net", "short-conv")
"""How recurrent layers compute."""
_KINDS = {
    **dict.fromkeys("qwen3next qwen35 qwen35moe kimi-linear minimax-01".split(), "delta-net"),
    **dict.fromkeys("lfm2 lfm2moe".split(), "short-conv"),
}


def recurrent_kind(header: Header) -> str:
    """Of the recurrent layers of a model, or the one that is most like it."""
    return _KINDS.get(header.architecture or "", "mamba2")


def kv_type_problem(header: Header, type_k: str, type_v: str) -> tuple[str, str] | None:
    """The field of a type that this model's KV cache can't have, and why; None where it can have both.

    As `llama_init_from_model` (llama-context.cpp) has it, with one difference: without flash attention it takes keys
    whose heads are not whole blocks, and computes nonsense with them (no answer at all, with heads of 80 and q8_0).
    """
    if (_is_latent(header) or header.architecture == "deepseek4") and type_k != type_v:
        return "type_k", f"keys and values of this model are one (MLA) and have one type, not {type_k} and {type_v}"
    windows = _windows(header, header.architecture or "", header.n_layer or 0) or [None, 1]  # unknown: with and without
    for field, kind, length, of_windows in (
        ("type_k", type_k, header.n_embd_head_k or 0, "attention.key_length_swa"),
        ("type_v", type_v, header.n_embd_head_v or 0, "attention.value_length_swa"),
    ):
        block = _BLOCK_SIZES[kind]
        for head in dict.fromkeys(length if window is None else _int(header, of_windows, length) for window in windows):
            if head % block:
                return field, f"{kind} has blocks of {block} values, and the heads of this model have {head}"
    return None


def _is_latent(header: Header) -> bool:
    """Multi-head latent attention: keys and values are one compressed vector."""
    return bool(_int(header, "attention.key_length_mla") and _int(header, "attention.value_length_mla"))


def _int(header: Header, name: str, default: int = 0) -> int:
    value = header.hparam(name)
    return value if isinstance(value, int) else default


def _layers_with_own_kv(header: Header, arch: str, n_layer: int) -> int:
    """The layers behind these use the cache of one before, or predict several tokens ahead and are not run at all."""
    if arch == "gemma3n":
        return 20
    if arch == "gemma4":
        return n_layer - _int(header, "attention.shared_kv_layers")
    return n_layer - _int(header, "nextn_predict_layers")


def _recurrent_layers(header: Header, arch: str, n_layer: int) -> list[bool] | None:
    if arch in _RECURRENT or arch == "falcon-h1":
        return [True] * n_layer
    every = _ATTENTION_EVERY.get(arch)
    if every is not None:
        told = header.hparam("attention.recurrent_layers")
        if isinstance(told, Sequence) and not isinstance(told, str):
            return [bool(one) for one in told[:n_layer]] if len(told) >= n_layer else None
        every = _int(header, "full_attention_interval", every)
        trunk = n_layer - _int(header, "nextn_predict_layers")
        return [layer < trunk and (layer + 1) % every != 0 for layer in range(n_layer)] if every > 0 else None
    if arch not in _RECURRENT_WITHOUT_HEADS | _NEMOTRON:
        return [False] * n_layer
    heads = header.n_head_kv
    if len(heads) != n_layer:
        return None
    return [heads[layer] == 0 and not _only_feeds_forward(header, arch, layer) for layer in range(n_layer)]


def _only_feeds_forward(header: Header, arch: str, layer: int) -> bool:
    widths = header.n_ff
    return arch in _NEMOTRON and layer < len(widths) and widths[layer] > 0


def _state_elements(header: Header) -> int:
    """Elements of one recurrent layer's state, `n_embd_r() + n_embd_s()` of llama.cpp's llama-hparams.cpp."""
    n_embd, n_head = header.n_embd or 0, (header.n_head or (0,))[0]
    if head := _int(header, "wkv.head_size"):
        return n_embd * (_int(header, "token_shift_count", 2) + head)
    if cached := _int(header, "shortconv.l_cache"):
        return n_embd * (cached - 1) + _int(header, "ssm.state_size") * _int(header, "ssm.inner_size")
    conv = max(0, _int(header, "ssm.conv_kernel") - 1)
    if head := _int(header, "kda.head_dim"):
        return 3 * (conv or 3) * n_head * head + head * head * n_head
    inner, size = _int(header, "ssm.inner_size"), _int(header, "ssm.state_size")
    convolution = conv * (inner + 2 * _int(header, "ssm.group_count") * size)
    head = header.n_embd_head_k or 0
    return convolution + (head * head * n_head if header.architecture == "minimax-01" else size * inner)


def _kv_elements(header: Header, layer: int, window: int | None) -> tuple[int, int] | None:
    """Elements of keys and of values per token in a layer with attention; None where the header does not tell."""
    heads, k, v = header.n_head_kv, header.n_embd_head_k, header.n_embd_head_v
    if layer >= len(heads) or k is None or v is None:
        return None
    if _is_latent(header):
        return k * heads[layer], 0  # the values are a part of the keys
    if window is not None:
        k, v = _int(header, "attention.key_length_swa", k), _int(header, "attention.value_length_swa", v)
    return k * heads[layer], v * heads[layer]


def _windows(header: Header, arch: str, n_layer: int) -> list[int | None] | None:
    """The window of every layer; None where that can't be known."""
    told = header.hparam("attention.sliding_window")
    window = told if isinstance(told, int) and told > 0 else None
    if arch in _ALL_ATTENTION_SLIDES:
        return [window] * n_layer
    habit = _WINDOWS.get(arch)
    if habit is None or (arch == "exaone4" and n_layer != 64) or (arch == "llama4" and told == 0):
        return [None] * n_layer
    if window is None or habit.fixed:
        # smallthinker has its fixed window only where the header has one, the others have their default in any case.
        window = habit.default if window or arch != "smallthinker" else None
    slides = _sliding(header, habit, n_layer) if window else [False] * n_layer
    return None if slides is None else [window if slide else None for slide in slides]


def _sliding(header: Header, habit: _Windows, n_layer: int) -> list[bool] | None:
    pattern = header.hparam("attention.sliding_window_pattern")
    if isinstance(pattern, Sequence) and not isinstance(pattern, str):
        return [bool(slide) for slide in pattern[:n_layer]] if len(pattern) >= n_layer else None
    every = pattern if isinstance(pattern, int) and not isinstance(pattern, bool) else habit.every
    if every is None:
        return None
    trunk = n_layer - _int(header, "nextn_predict_layers")
    full = 0 if habit.first else every - 1
    return [layer < trunk and (every == 0 or layer % every != full) for layer in range(n_layer)]
