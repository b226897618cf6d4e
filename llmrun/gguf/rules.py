"""The gate in front of llama.cpp: can it run what this header describes, or would it be killed by it?

llama.cpp checks much of a model with `GGML_ASSERT`, which ends the process, and some of it not at all. `check_runnable`
says no first, with a sentence instead of a stack trace, and for a remote file before gigabytes are downloaded.

Two kinds of rules, and one principle:

- what kills native code: duplicate tokens, a number of layers outside 1 to 512, a norm that is quantized, a negative
  epsilon, an unknown kind of rope scaling, experts that nothing uses ...;
- what native code refuses in an orderly way, but only after loading: unknown architectures, missing keys, wrong shapes;
- a model that llama.cpp runs must pass. So a rule is for all architectures only where llama.cpp's own loader has it for
  all; the shapes of tensors are checked for the plain decoders in `_PLAIN_DECODERS` alone, and what llama.cpp ignores
  with a warning (a padding token of -1, say) is no error here.

`scripts/mutate_headers.py --native` measures what share of the killers this stops. Weights are not looked at: what lies
in them only a checksum can tell.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from llmrun.errors import Act, BadModel, UsageError
from llmrun.gguf import reader
from llmrun.gguf.reader import Header, NumberArray, StringArray, TensorInfo, open_header, shown_name
from llmrun.text import printable

MAX_EXPERTS = 1024
"""llama.cpp's LLAMA_MAX_EXPERTS."""
MAX_HEADS = 1 << 16
MAX_WIDTH = 1 << 24
"""Of an embedding or feed-forward block, in elements: far above any model, and products of two stay within 64 bits."""
MAX_VOCAB = 1 << 24

# Architectures that do not write text, by what they do instead.
_EMBEDDING = frozenset(
    "bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert nomic-bert nomic-bert-moe"
    " t5encoder".split()
)
_DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})
_SPEECH = frozenset({"wavtokenizer-dec", "pockettts"})
_DRAFT_HEADS = frozenset({"eagle3", "dflash", "gemma4-assistant"})
_RANK_POOLING = 4
_EMBEDDING_POOLING = (1, 2, 3)  # enum llama_pooling_type
_POOLING = ("mean", "cls", "last")

ROPE_SCALING_TYPES = ("none", "linear", "yarn", "longrope")
N_POOLING_TYPES = 5
N_EXPERT_GATING_FUNCS = 5
_UNSET = 0xFFFF_FFFF  # how -1 is written in a u32


def _known_names() -> dict[str, frozenset[str]]:
    """Lists of names by title; lines that begin with # are for people."""
    text = (Path(__file__).parents[1] / "data" / "llama.cpp.txt").read_text()
    _, *parts = re.split(r"^\[(\w+)\]$", re.sub(r"^#.*", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return {title: frozenset(names.split()) for title, names in zip(parts[::2], parts[1::2], strict=True)}


_NAMES = _known_names()
ARCHITECTURES, PRE_TOKENIZERS = _NAMES["architectures"], _NAMES["pre_tokenizers"]
_WHOLE_HEAD_ROTATES = _NAMES["whole_head_rotates"]
_KEY_IS_LIKE_VALUE = _WHOLE_HEAD_ROTATES | _NAMES["key_is_like_value"]

_BPE = frozenset({"gpt2", "hybriddna", "whitespace", "gemma4"})
TOKENIZERS = _BPE | {"llama", "bert", "t5", "rwkv", "plamo2", "test", "none", "no_vocab"}

# llama.cpp asserts d_inner == 2 * n_embd for these, and that Mamba-2's heads (time_step_rank) divide it.
_INNER_IS_TWICE_EMBEDDING = frozenset({"jamba", "granitehybrid"})
_HEADS_ARE_TIME_STEPS = frozenset({"mamba2", "granitehybrid", "falcon-h1", "nemotron_h", "nemotron_h_moe"})

# Decoders of the plain kind (attn_norm, q k v, attn_output, ffn_norm, gate up down), where every shape is certain.
_PLAIN_DECODERS = frozenset({"llama", "mistral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "smollm3", "seed_oss"})
_MAY_HAVE_EXPERTS = frozenset({"llama", "mistral3"})

# No kernel multiplies with these; llama.cpp calls a null pointer or aborts. The three that are looked up, not
# multiplied: routing tables by token and a draft model's token map.
_NOT_FOR_WEIGHTS = frozenset({"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"})
_INTEGER_TENSOR = re.compile(r"(?:.*\bffn_gate_tid2eid\b.*|d2t|t2d)(?:\.weight)?")

_CONVOLUTION = re.compile(r"\.(?:ssm_conv1d(?:_[qkv])?|shortconv\.conv)\.weight$")

_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_TOKEN_TYPE_BYTE = 6


def open_adapter(path: str | os.PathLike[str], architecture: str | None) -> Header:
    """The header of a LoRA adapter for models of `architecture`. Raises NotFound, or BadModel naming the file."""
    header = open_header(path)
    named = shown_name(path)
    kind = header.metadata.get("general.type")
    if kind != "adapter":
        raise BadModel(f"{named} is not an adapter: its general.type is {printable(str(kind or 'not given'))}")
    if header.metadata.get("adapter.type") != "lora":
        raise BadModel(f"{named} is an adapter of type {printable(str(header.metadata.get('adapter.type')))}, not lora")
    if header.architecture != architecture:
        meant = printable(str(header.architecture))
        raise BadModel(f"{named} is an adapter for {meant}, the model is {printable(str(architecture))}")
    # llama.cpp looks at the other shapes, and multiplies with whatever it is.
    for tensor in header.tensors:
        if tensor.type.name in _NOT_FOR_WEIGHTS:
            raise BadModel(f"{named}: tensor {printable(tensor.name)} has type {tensor.type.name}, not one of weights")
        if len(tensor.shape) > 2 and "_exps." not in tensor.name:
            raise BadModel(f"{named}: tensor {printable(tensor.name)} has {len(tensor.shape)} dimensions, it must be 2")
    return header


def open_runnable(path: str | os.PathLike[str]) -> Header:
    """The header of a model in one file that can be run. Raises NotFound, or BadModel naming the file."""
    return open_whole([path])


def open_whole(paths: Sequence[str | os.PathLike[str]]) -> Header:
    """The header of a model that can be run, of all its files in order. Raises NotFound, or BadModel naming a file."""
    parts = [(os.fspath(path), open_header(path)) for path in paths]
    with reader.naming(shown_name(paths[0])) if len(parts) == 1 else nullcontext():
        return whole_header(parts)


def whole_header(parts: Sequence[tuple[str, Header]]) -> Header:
    """The header of a model, its parts joined and checked; `parts` are their files' names and headers, in order.

    Raises `BadModel` for parts that do not say the same as their names or that are not of one model, and for what can't
    be run.
    """
    for i, (name, header) in enumerate(parts):
        check_part(name, header, i, len(parts))
    whole = replace(parts[0][1], tensors=tuple(tensor for _, header in parts for tensor in header.tensors))
    if len(parts) > 1:
        promised, there = whole.split_tensors_count, len(whole.tensors)
        if promised not in (None, there):
            raise BadModel(f"its {len(parts)} parts have {there} tensors, the first says {promised}: not one model's")
        seen: dict[str, str] = {}
        for name, header in parts:
            for tensor in header.tensors:
                if (other := seen.setdefault(tensor.name, name)) != name:
                    both = f"tensor {printable(tensor.name)} is in both {shown_name(other)} and {shown_name(name)}"
                    raise BadModel(f"{both}: they are not parts of one model")
    check_runnable(whole)
    return whole


def check_part(name: str, header: Header, index: int, n_parts: int) -> None:
    """Whether a file is part `index` of `n_parts`, as its name has it; 0 of 1 is a model in one file."""
    no, count = header.split_no, header.split_count
    if (no, count) == (index, n_parts):
        return
    if n_parts > 1:
        says = f"{shown_name(name)} says that it is part {no + 1} of {count}"
        raise BadModel(f"{says}, its name says {index + 1} of {n_parts}")
    stem = re.sub(r"([-_.]?part[-_.]?\d+([-_.]?of[-_.]?\d+)?)?(\.gguf)?$", "", shown_name(name), flags=re.IGNORECASE)
    raise BadModel(
        f"this is part {no + 1} of {count} of a split model; its file must be named"
        f" {stem}-{no + 1:05}-of-{count:05}.gguf" + (", beside the others" if no == 0 else "; give the first part")
    )


def overridden(header: Header, values: Mapping[str, int | float | bool | str]) -> Header:
    """The header with `values` (`override_kv`) in the place of its own: what llama.cpp will see. A header is returned
    as it is where there are none.

    Raises `UsageError` for a value of another type than the model has there, which llama.cpp would pass over, and for
    what could not be run with it.
    """
    if not values:
        return header
    metadata, types = dict(header.metadata), dict(header.types)
    for key, value in values.items():
        kind = "bool" if isinstance(value, bool) else {int: "u32", float: "f32", str: "str"}[type(value)]
        there = types.setdefault(key, kind)
        if _kind_of(there) != _kind_of(kind):
            raise _bad_override(key, value, f"the model has {there} there, not {_kind_of(kind)}")
        if isinstance(value, int | float) and not _fits(value, there):
            raise _bad_override(key, value, f"{value} does not fit into {there[1:]} bits")
        # As llama.cpp assigns it: -1 is 2^32 - 1 where the number has no sign.
        metadata[key] = value % (1 << int(there[1:])) if there.startswith("u") and isinstance(value, int) else value
    changed = replace(header, metadata=metadata, types=types)
    try:
        check_runnable(changed)
    except BadModel as error:
        said = f"with that, {error.message}"
        raise UsageError(said, hint=Act("help", "run"), field="override_kv", value=values) from None
    return changed


def _bad_override(key: str, value: object, what: str) -> UsageError:
    return UsageError(f"{printable(key)}: {what}", field="override_kv", value={key: value})


def _fits(value: float, type_name: str) -> bool:
    """Whether a GGUF type has room for a number, -1 for one without a sign included."""
    if type_name.startswith("f"):
        return abs(value) < 3.4e38
    bits = int(type_name[1:]) if type_name[0] in "ui" else 1
    return -(1 << bits - 1) <= value < 1 << (bits if type_name.startswith("u") else bits - 1) or type_name == "bool"


def _kind_of(type_name: str) -> str:
    """ "u32" is an int for llama.cpp's overrides, "f64" a float; lists are none of them."""
    return {"u": "int", "i": "int", "f": "float"}.get(type_name[0], type_name)


def check_runnable(header: Header, *, with_tensors: bool = True) -> None:
    """Raises BadModel for the first thing that llama.cpp could not run.

    `with_tensors=False` leaves the tensors out, for a file that is a vocabulary only.
    """
    if header.split_no > 0:
        part = f"part {header.split_no + 1} of {header.split_count}"
        raise BadModel(f"this is {part} of a split model: give the first part")
    _check_purpose(header)
    _check_hparams(header)
    _check_vocabulary(header)
    if with_tensors:
        _check_tensors(header)


# -- the keys ------------------------------------------------------------------------------------------------------


def _check_purpose(header: Header) -> None:
    """A GGUF file holds a language model, or something that goes with one."""
    architecture = _text(header, "general.architecture", default="")
    _text(header, "general.type", default="model")
    if kind := no_model(header):
        raise BadModel(f"this is {kind}")
    kind = writes_no_text(header)
    if kind and kind not in KINDS_TO_KEEP:
        raise BadModel(f"this is {kind}: it writes no text")
    if not architecture:
        raise BadModel("key general.architecture is missing")
    if architecture not in ARCHITECTURES:
        raise BadModel(f"architecture '{printable(architecture)}' is not known to this llama.cpp")


PROJECTOR_KIND = "the image or audio part of a model (mmproj), not the language model itself"


def check_projector(header: Header) -> None:
    """Raises `BadModel` for what is not the image or audio part of a model."""
    if no_model(header) != PROJECTOR_KIND:
        raise BadModel("this is not the image or audio part of a model (mmproj), although its name says so")


def no_model(header: Header) -> str | None:
    """What a file is that only goes with a model: "a LoRA adapter, not a model"; None for a model."""
    kind, architecture = header.metadata.get("general.type"), header.architecture
    if architecture == "clip" or kind == "mmproj":
        return PROJECTOR_KIND
    if kind == "adapter":
        return "a LoRA adapter, not a model"
    if kind == "imatrix" or architecture == "imatrix":
        return "an importance matrix (imatrix), not a model"
    return None


EMBEDDING_KIND, DRAFT_KIND = "an embedding model", "a draft head, which only helps another model"
KINDS_TO_KEEP = (EMBEDDING_KIND, DRAFT_KIND)
"""Of those that write no text, the ones that are of use all the same."""


def is_encoder(header: Header) -> bool:
    """Whether a model reads its text in both directions at once, so that no token follows from those before it."""
    return header.architecture in _EMBEDDING or header.hparam("attention.causal") is False


def writes_no_text(header: Header) -> str | None:
    """What a model is that can't go on with a text, token after token; None for a language model."""
    architecture, pooling = header.architecture, header.hparam("pooling_type")
    if architecture in _DIFFUSION:
        return "a diffusion model"
    if architecture in _SPEECH:
        return "a speech model"
    classifies = header.hparam("classifier.output_labels") is not None or pooling == _RANK_POOLING
    if classifies or header.tensor("cls.weight") or header.tensor("cls.output.weight"):
        return "a reranker or classifier"
    if architecture in _DRAFT_HEADS:
        return DRAFT_KIND
    is_whole = header.split_count == 1 and header.tensors
    first_layer = any(tensor.name.startswith("blk.0.") for tensor in header.tensors)
    if header.hparam("nextn_predict_layers") and is_whole and not first_layer:
        return DRAFT_KIND
    return EMBEDDING_KIND if is_encoder(header) or pooling in _EMBEDDING_POOLING else None


def pooling_of(header: Header) -> str | None:
    """How a text becomes one vector: "mean", "cls" or "last"; None where the file does not say."""
    pooling = header.hparam("pooling_type")
    return _POOLING[pooling - 1] if isinstance(pooling, int) and pooling in _EMBEDDING_POOLING else None


def _check_hparams(header: Header) -> None:
    _integer(header, "context_length", 1, (1 << 31) - 1, required=True)
    _integer(header, "embedding_length", 1, MAX_WIDTH, required=True)
    n_layer = _integer(header, "block_count", 1, reader.MAX_LAYERS, required=True) or 0
    _integer(header, "nextn_predict_layers", 0, n_layer)
    _integer(header, "vocab_size", 0, MAX_VOCAB)
    for key, value in header.metadata.items():
        if key.startswith(f"{header.architecture}."):
            _check_no_nan(key, value)
            if key.endswith("epsilon"):
                _float(header, key, 0, 1)
    _per_layer(header, "feed_forward_length", MAX_WIDTH)
    _check_heads(header, n_layer)
    _check_rope(header)
    _check_state_space(header)
    _check_experts(header)
    pattern = header.hparam("attention.sliding_window_pattern")
    if isinstance(pattern, NumberArray) and not 0 < len(pattern) <= reader.MAX_LAYERS:
        raise BadModel(f"key {_key(header, 'attention.sliding_window_pattern')} has {len(pattern)} items")
    pooling = _integer(header, "pooling_type", 0, _UNSET)
    if pooling is not None and N_POOLING_TYPES <= pooling < _UNSET:
        raise BadModel(f"key {_key(header, 'pooling_type')} is {pooling}, it must be 0 to {N_POOLING_TYPES - 1}")


def _check_heads(header: Header, n_layer: int) -> None:
    n_head = _per_layer(header, "attention.head_count", MAX_HEADS)
    n_head_kv = _per_layer(header, "attention.head_count_kv", MAX_HEADS) or n_head
    # Without heads, as in a recurrent model, the number of key-value heads means nothing; so it does in one layer.
    for layer, (q, kv) in enumerate(zip(n_head, n_head_kv, strict=False)):
        if q and kv and q % kv:
            raise BadModel(f"layer {layer} has {q} attention heads, not a multiple of its {kv} key-value heads")
    for name in ("key_length", "value_length", "key_length_swa", "value_length_swa", "key_length_mla"):
        _integer(header, f"attention.{name}", 0, MAX_WIDTH)
    if header.architecture in _PLAIN_DECODERS and not (n_head and all(n_head) and all(n_head_kv)):
        raise BadModel(f"key {_key(header, 'attention.head_count')} or head_count_kv is missing or 0")
    n_embd, first = header.n_embd or 0, n_head[0] if n_head else 0
    if first and header.hparam("attention.key_length") is None and n_embd % first:
        raise BadModel(f"an embedding of {n_embd} elements can't be shared among {first} heads")
    if first and header.architecture in _KEY_IS_LIKE_VALUE:
        swa = header.hparam("attention.key_length_swa"), header.hparam("attention.value_length_swa")
        for k, v in ((header.n_embd_head_k, header.n_embd_head_v), swa):
            if k is not None and v is not None and k != v:
                raise BadModel(
                    f"a head's key has {k} elements and its value {v}, {header.architecture} has as many in both"
                )


def _check_rope(header: Header) -> None:
    scaling = _text(header, _key(header, "rope.scaling.type"), default="linear")
    if scaling not in ROPE_SCALING_TYPES:
        known = ", ".join(ROPE_SCALING_TYPES)
        raise BadModel(f"key {_key(header, 'rope.scaling.type')} is '{printable(scaling)}', it must be one of {known}")
    for name in ("rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor", "rope.scale_linear"):
        _float(header, _key(header, name), 0, 1e30)
    n_rot = _integer(header, "rope.dimension_count", 0, MAX_WIDTH)
    n_mla = _integer(header, "attention.key_length_mla", 0, MAX_WIDTH)
    if n_mla and n_rot is not None and n_rot >= n_mla:
        raise BadModel(f"the rope dimension count is {n_rot}, it must be less than a key's length ({n_mla})")
    _check_rope_sections(header)
    n_rot_swa = _integer(header, "rope.dimension_count_swa", 0, MAX_WIDTH)
    k, k_swa = header.n_embd_head_k, header.hparam("attention.key_length_swa")
    if not header.n_head or not header.n_head[0] or not k:
        return  # llama.cpp takes a model whose first layer has no heads for one that rotates nothing
    for rotated, of in ((n_rot, k), (n_rot_swa, k_swa)):
        if isinstance(of, int) and rotated is not None and rotated > of:
            raise BadModel(f"the rope dimension count is {rotated}, a head's key has only {of} elements")
    if header.architecture not in _WHOLE_HEAD_ROTATES or k_swa is not None:
        return
    n_rot = k if n_rot is None else n_rot
    if n_rot != k or n_rot % 2:
        raise BadModel(
            f"the rope dimension count is {n_rot}, for {header.architecture} it must be the length of a head's key "
            f"({k}) and even"
        )


def _check_rope_sections(header: Header) -> None:
    """How many pairs of a head's elements turn with time, height and width."""
    name = "rope.dimension_sections"
    sections = header.hparam(name)
    if not isinstance(sections, NumberArray) or sections.type not in ("u32", "i32"):
        return
    total = sum(int(section) for section in sections)
    if len(sections) > 4 or any(section < 0 for section in sections) or total > (header.n_embd_head_k or MAX_WIDTH):
        shown = printable(", ".join(str(section) for section in sections[:8]))
        raise BadModel(f"key {_key(header, name)} is {shown}; a head's key has {header.n_embd_head_k} elements")


def _check_state_space(header: Header) -> None:
    """The sizes of a recurrent layer: what llama.cpp divides by must not be 0, and divide."""
    for name in ("conv_kernel", "inner_size", "state_size", "time_step_rank", "group_count"):
        _integer(header, f"ssm.{name}", 0, MAX_WIDTH)
    inner, rank = header.hparam("ssm.inner_size"), header.hparam("ssm.time_step_rank")
    if not isinstance(inner, int):
        return
    if header.architecture in _INNER_IS_TWICE_EMBEDDING and inner != 2 * (header.n_embd or 0):
        raise BadModel(f"key {_key(header, 'ssm.inner_size')} is {inner}, it must be twice the embedding's length")
    if header.architecture in _HEADS_ARE_TIME_STEPS and (not isinstance(rank, int) or not rank or inner % rank):
        raise BadModel(
            f"{_key(header, 'ssm.inner_size')} is {inner}, it must be a multiple of ssm.time_step_rank, {rank}"
        )


def _check_experts(header: Header) -> None:
    n_expert = _integer(header, "expert_count", 0, MAX_EXPERTS) or 0
    n_used = max(_per_layer(header, "expert_used_count", MAX_EXPERTS), default=0)
    n_groups = _integer(header, "expert_group_count", 0, MAX_EXPERTS) or 0
    n_groups_used = _integer(header, "expert_group_used_count", 0, MAX_EXPERTS) or 0
    _integer(header, "expert_gating_func", 0, N_EXPERT_GATING_FUNCS - 1)
    if n_expert <= 1 and header.architecture in ("hunyuan-dense", "hunyuan_vl"):
        return  # llama.cpp takes one expert as none here
    if n_used > n_expert or (n_expert and not n_used):
        raise BadModel(f"the model has {n_expert} experts and uses {n_used} of them for a token")
    if n_groups and n_groups >= n_expert:
        raise BadModel(f"the model has {n_expert} experts in {n_groups} groups")
    if n_groups > 1 and (n_expert % n_groups or not 0 < n_groups_used < n_groups):
        raise BadModel(f"the model has {n_expert} experts in {n_groups} groups and uses {n_groups_used} groups")


# -- the vocabulary ------------------------------------------------------------------------------------------------


def _check_vocabulary(header: Header) -> None:
    model = _text(header, "tokenizer.ggml.model")
    if model not in TOKENIZERS:
        raise BadModel(f"tokenizer '{printable(model)}' is not known to this llama.cpp")
    if model in ("none", "no_vocab"):
        return
    pre = _text(header, "tokenizer.ggml.pre", default="")
    if model in _BPE and model != "gemma4" and pre and pre not in PRE_TOKENIZERS:
        raise BadModel(f"pre-tokenizer '{printable(pre)}' is not known to this llama.cpp")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, StringArray) or not tokens:
        raise BadModel("key tokenizer.ggml.tokens is missing or holds no tokens")
    _check_as_long(header, "tokenizer.ggml.scores", len(tokens), ("f32", "i32"))
    types = _check_as_long(header, "tokenizer.ggml.token_type", len(tokens), ("i32",))
    texts = _unique_tokens(tokens)
    if types is not None:
        _check_byte_tokens(model, tokens, types)
    if model == "llama":
        _check_all_bytes(texts)
    if model in _BPE:
        _check_merges(header, optional=pre == "kimi-k2")
    if model == "t5":
        _check_charsmap(header)
    for name in ("bos", "eos"):
        key = f"tokenizer.ggml.{name}_token_id"
        token = _integer(header, key, 0, _UNSET)
        if token is not None and len(tokens) <= token < _UNSET:
            raise BadModel(f"key {key} is {token}, but there are {len(tokens):,} tokens")


def _unique_tokens(tokens: StringArray) -> set[bytes]:
    """All token texts as llama.cpp sees them: as C strings, and with a name for those that are empty."""
    texts: set[bytes] = set()
    for i, text in enumerate(tokens.iter_raw()):
        text = text.partition(b"\0")[0] or b"[EMPTY_%d]" % i
        if text in texts:
            raise BadModel(f"token {i} ('{printable(text)}') is there twice")
        texts.add(text)
    return texts


def _check_byte_tokens(model: str, tokens: StringArray, types: NumberArray) -> None:
    """A token of type BYTE says in its text which byte it is: <0x0A>."""
    if model not in ("llama", "t5", "gemma4", "bert"):
        return
    for i, kind in enumerate(types):
        if kind == _TOKEN_TYPE_BYTE and i < len(tokens):
            if model == "bert":
                raise BadModel(f"token {i} is a byte, which a {model} tokenizer can't have")
            if not _BYTE_TOKEN.fullmatch(tokens.raw(i)):
                raise BadModel(f"token {i} ('{printable(tokens.raw(i))}') is a byte, its text must be like <0x0A>")


def _check_all_bytes(texts: set[bytes]) -> None:
    """A vocabulary with byte tokens needs all 256: text in other characters falls back to them without a question."""
    spelled = [b"<0x%02X>" % byte for byte in range(256)]
    missing = [text for byte, text in enumerate(spelled) if text not in texts and bytes([byte]) not in texts]
    if missing and not texts.isdisjoint(spelled):
        raise BadModel(f"{len(missing)} of 256 byte tokens are missing, {printable(missing[0])} first")


def _check_merges(header: Header, *, optional: bool) -> None:
    key = "tokenizer.ggml.merges"
    merges = header.metadata.get(key)
    if merges is None and optional:
        return
    if not isinstance(merges, StringArray):
        raise BadModel(f"key {key} is missing or not an array of strings")
    for i, merge in enumerate(merges.iter_raw()):
        if merge.find(b" ", 1) < 0:
            raise BadModel(f"merge {i} ('{printable(merge)}') is not two pieces with a space between them")


def _check_charsmap(header: Header) -> None:
    """u32 size of the first table, the table, then strings."""
    key = "tokenizer.ggml.precompiled_charsmap"
    charsmap = header.metadata.get(key)
    if charsmap is None:
        return
    if not isinstance(charsmap, NumberArray) or charsmap.type not in ("u8", "i8") or len(charsmap) < 4:
        raise BadModel(f"key {key} is not an array of bytes, or has fewer than 4")
    table_bytes = sum((int(charsmap[i]) & 0xFF) << 8 * i for i in range(4))
    if table_bytes + 4 >= len(charsmap):
        raise BadModel(f"key {key} has {len(charsmap):,} bytes, its table alone {table_bytes:,}")


def _check_as_long(header: Header, key: str, n_tokens: int, types: tuple[str, ...]) -> NumberArray | None:
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, NumberArray) or value.type not in types:
        raise BadModel(f"key {key} has type {header.types[key]}, it must be an array of {' or '.join(types)}")
    if len(value) < n_tokens:
        raise BadModel(f"key {key} has {len(value):,} items for {n_tokens:,} tokens")
    return value


# -- the tensors ---------------------------------------------------------------------------------------------------


def _check_tensors(header: Header) -> None:
    if not header.tensors:
        raise BadModel("the file has no tensors: a vocabulary, not a model")
    for tensor in header.tensors:
        _check_type(tensor)
    if header.architecture in _PLAIN_DECODERS:
        for tensor, shape in _expected_shapes(header):
            # Dimensions of 1 at the end say nothing.
            if (*tensor.shape, 1, 1, 1, 1)[:4] != (*shape, 1, 1, 1, 1)[:4]:
                found, expected = (" × ".join(map(str, s)) for s in (tensor.shape, shape))
                raise BadModel(f"tensor {printable(tensor.name)} has shape {found}, it must be {expected}")
        is_whole = header.split_count == 1 or len(header.tensors) == header.split_tensors_count
        if is_whole and header.hparam("nextn_predict_layers") is None:
            _check_complete(header)


def _check_type(tensor: TensorInfo) -> None:
    if _INTEGER_TENSOR.fullmatch(tensor.name):
        return
    name = tensor.type.name
    if name in _NOT_FOR_WEIGHTS:
        raise BadModel(f"tensor {printable(tensor.name)} has type {name}, with which llama.cpp can't compute")
    # Norms and biases are added and multiplied element by element, which is done in F32 only.
    # The kernel of a short convolution is read as F32 too, without a look at its type.
    element_wise = len(tensor.shape) == 1 or tensor.name.endswith((".bias", "_norm.weight"))
    if (element_wise or _CONVOLUTION.search(tensor.name)) and name != "F32":
        raise BadModel(f"tensor {printable(tensor.name)} has type {name}, it must be F32")


def _expected_shapes(header: Header) -> Iterator[tuple[TensorInfo, tuple[int, ...]]]:
    """Those tensors of a plain decoder whose shape follows from the hyperparameters, with that shape."""
    n_embd, n_vocab, n_layer = header.n_embd or 0, header.n_vocab or 0, header.n_layer or 0
    k, v = header.n_embd_head_k or 0, header.n_embd_head_v or 0
    heads, heads_kv, widths = header.n_head, header.n_head_kv, header.n_ff
    outer = {
        "token_embd.weight": (n_embd, n_vocab),
        "output.weight": (n_embd, n_vocab),
        "output_norm.weight": (n_embd,),
    }
    for tensor in header.tensors:
        layer = reader.layer_of(tensor)
        if layer is None:
            if tensor.name in outer:
                yield tensor, outer[tensor.name]
            continue
        if layer >= n_layer:
            raise BadModel(f"tensor {printable(tensor.name)} belongs to layer {layer}, there are {n_layer}")
        q_rows, k_rows, v_rows = k * heads[layer], k * heads_kv[layer], v * heads_kv[layer]
        n_ff = widths[layer] if widths else 0
        shapes = {
            "attn_norm.weight": (n_embd,),
            "attn_q.weight": (n_embd, q_rows),
            "attn_k.weight": (n_embd, k_rows),
            "attn_v.weight": (n_embd, v_rows),
            "attn_qkv.weight": (n_embd, q_rows + k_rows + v_rows),
            "attn_output.weight": (q_rows, n_embd),
            "ffn_norm.weight": (n_embd,),
            "ffn_gate.weight": (n_embd, n_ff),
            "ffn_up.weight": (n_embd, n_ff),
            "ffn_down.weight": (n_ff, n_embd),
            "ffn_gate_inp.weight": (n_embd, header.n_expert),
            "ffn_up_exps.weight": (n_embd, n_ff, header.n_expert),
            "ffn_gate_exps.weight": (n_embd, n_ff, header.n_expert),
            "ffn_down_exps.weight": (n_ff, n_embd, header.n_expert),
        }
        _, _, part = tensor.name.removeprefix("blk.").partition(".")
        if part in shapes:
            yield tensor, shapes[part]


def _check_complete(header: Header) -> None:
    """All tensors that a plain decoder can't do without. (`output` it can: the embedding is used in its place.)"""
    names = ["token_embd", "output_norm"]
    feed_forward = ["ffn_gate", "ffn_up", "ffn_down"]
    if header.n_expert and header.architecture in _MAY_HAVE_EXPERTS:
        feed_forward = ["ffn_gate_inp", "ffn_up_exps", "ffn_down_exps"]
    for layer in range(header.n_layer or 0):
        fused = header.tensor(f"blk.{layer}.attn_qkv.weight") is not None
        attention = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
        parts = ["attn_norm", *attention, "attn_output", "ffn_norm", *feed_forward]
        names += [f"blk.{layer}.{part}" for part in parts]
    for name in names:
        if header.tensor(f"{name}.weight") is None:
            raise BadModel(f"tensor {name}.weight is missing")


# -- values by key -------------------------------------------------------------------------------------------------


def _key(header: Header, name: str) -> str:
    """A hyperparameter's whole key; that of another is whole."""
    return name if name.startswith("tokenizer.") else f"{header.architecture}.{name}"


def _text(header: Header, key: str, *, default: str | None = None) -> str:
    value = header.metadata.get(key, default)
    if value is None:
        raise BadModel(f"key {key} is missing")
    if type(value) is not str:
        raise BadModel(f"key {key} has type {header.types[key]}, it must be str")
    return value


def _integer(header: Header, name: str, low: int, high: int, *, required: bool = False) -> int | None:
    value = header.metadata.get(key := _key(header, name))
    if value is None and required:
        raise BadModel(f"key {key} is missing")
    if value is None:
        return None
    if header.types[key] != "u32" or not isinstance(value, int):
        raise BadModel(f"key {key} has type {header.types[key]}, it must be u32")
    if not low <= value <= high:
        raise BadModel(f"key {key} is {value}, it must be {low} to {high}")
    return value


def _float(header: Header, key: str, low: float, high: float) -> None:
    value = header.metadata.get(key)
    if value is None or isinstance(value, NumberArray):
        return
    if header.types[key] != "f32" or not isinstance(value, float):
        raise BadModel(f"key {key} has type {header.types[key]}, it must be f32")
    if not low <= value <= high:
        raise BadModel(f"key {key} is {value:g}, it must be {low:g} to {high:g}")


def _per_layer(header: Header, name: str, high: int) -> tuple[int, ...]:
    """One number for all layers, or an array with one for each; empty where the key is missing."""
    key, n_layer = _key(header, name), header.n_layer or 0
    value = header.metadata.get(key)
    if value is None:
        return ()
    if not isinstance(value, NumberArray):
        return (_integer(header, name, 0, high) or 0,) * n_layer
    if value.type not in ("u32", "i32"):
        raise BadModel(f"key {key} has type {header.types[key]}, it must be u32 or an array of u32 or i32")
    if len(value) != n_layer:
        raise BadModel(f"key {key} has {len(value):,} items for {n_layer} layers")
    for layer, item in enumerate(value):
        if not 0 <= item <= high:
            raise BadModel(f"key {key} is {item} for layer {layer}, it must be 0 to {high}")
    return tuple(int(item) for item in value)


def _check_no_nan(key: str, value: reader.Value) -> None:
    numbers = value if isinstance(value, NumberArray) and value.type in ("f32", "f64") else [value]
    if any(isinstance(number, float) and math.isnan(number) for number in numbers):
        raise BadModel(f"key {printable(key)} holds a value that is not a number (NaN)")
