"""What a model takes and reads, computed from its header alone.

A decoded token reads every weight once, but for two kinds: of the token embedding one row only (unless the same tensor
is the output matrix too), and of a mixture of experts only the experts that are chosen. It also reads the keys and
values of every token before it. Counting the file instead overstates a model with a large vocabulary by a fifth, and a
mixture of experts many times over.

Where the bytes lie follows llama.cpp's own rules (`load_tensors` in llama-model.cpp, `llama_kv_cache`): the embedding
always in RAM, each layer with its keys and values on one device, the output as one more layer, and before all that the
patterns of `override_tensor`. Weights and memory are exact. Compute buffers are not computed here: how large they are
follows from the order in which llama.cpp's allocator meets a graph's tensors, so that it is asked (`engine/loader.py`
has it lay out a file without weights, `gguf/stub.py`, which takes milliseconds and no memory).
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

from llmrun.gguf.reader import Header, TensorInfo, layer_of
from llmrun.gguf.types import GGML_TYPES
from llmrun.options.load import LoadConfig
from llmrun.planning.kv_layout import LayerMemory, layer_memories

CPU = "CPU"
"""The name of main memory among devices; llama.cpp's own."""

_DEFAULTS = LoadConfig()

# Read by row, not whole: one row per token. They stay in RAM.
LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight", "token_types.weight")
# Not part of a layer, and with the last one: LLM_TENSOR_LAYER_OUTPUT in llama-arch.cpp.
_OUTPUT = re.compile(
    r"(?:output|cls|dense_2|dense_3|altup_proj|altup_unembd_proj|output_norm|output_hc_\w+|output_res_score|fc|d2t)\b.*"
)
# Every device with layers gets its own copy of these.
_IN_EVERY_LAYER = re.compile(r"rope_(?:freqs|factors_long|factors_short)\.weight")

_BYTES_PER_ELEMENT = {kind.name.lower(): kind.type_size / kind.block_size for kind in GGML_TYPES.values()}


# -- what a token reads ------------------------------------------------------------------------------------------------


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
        kv: keys and values; None where the header does not tell.
        state_bytes: recurrent state, the same for every token.
    """

    weight_bytes: int
    kv: tuple[KvReads, ...] | None
    state_bytes: int = 0

    def at_depth(self, n_past: int) -> int | None:
        """Bytes read to decode a token behind `n_past` others."""
        if self.kv is None:
            return None
        kv = (part.bytes_per_token * min(n_past, part.window or n_past) for part in self.kv)
        return self.weight_bytes + self.state_bytes + sum(kv)


def decode_reads(header: Header, type_k: str = "f16", type_v: str = "f16") -> DecodeReads:
    tied = header.tensor("output.weight") is None
    weights = sum(_read_of(tensor, header, tied=tied) for tensor in header.tensors)
    memories = layer_memories(header)
    if memories is None:
        return DecodeReads(weights, None)
    by_window: Counter[int | None] = Counter()
    for memory in memories:
        by_window[memory.window] += _kv_bytes(memory, type_k, type_v)
    kv = tuple(KvReads(n_bytes, window) for window, n_bytes in by_window.items() if n_bytes)
    return DecodeReads(weights, kv, 4 * sum(memory.n_state for memory in memories))


def _read_of(tensor: TensorInfo, header: Header, *, tied: bool) -> int:
    if tensor.name in LOOKED_UP:
        row = tensor.n_bytes // max(1, tensor.n_elements // tensor.shape[0])
        return row + (tensor.n_bytes if tied and tensor.name == "token_embd.weight" else 0)
    if is_experts(tensor) and header.n_expert:
        return tensor.n_bytes * header.n_expert_used // header.n_expert
    return tensor.n_bytes


def is_experts(tensor: TensorInfo) -> bool:
    return "_exps." in tensor.name


def _kv_bytes(memory: LayerMemory, type_k: str, type_v: str) -> int:
    """Of one token in one layer."""
    return round(memory.n_k * _BYTES_PER_ELEMENT[type_k] + memory.n_v * _BYTES_PER_ELEMENT[type_v])


def kv_bytes_per_token(header: Header, type_k: str = "f16", type_v: str = "f16") -> int | None:
    """Bytes of KV cache for one token over all layers, windows left out of account; None where the header can't tell.

    n_head_kv × (n_embd_head_k + n_embd_head_v) elements per layer with attention.
    """
    memories = layer_memories(header)
    return None if memories is None else sum(_kv_bytes(memory, type_k, type_v) for memory in memories)


def step_reads(header: Header, placement: Placement, n_past: float, type_k: str, type_v: str) -> dict[str, int] | None:
    """Bytes that one decode step reads behind `n_past` tokens, by the device they lie on; None where not known.

    As `DecodeReads`: weights once, one row of what is looked up, the chosen experts alone, the keys and values of all
    tokens before, or of those in the window.
    """
    memories = layer_memories(header)
    if memories is None:
        return None
    reads: Counter[str] = Counter()
    for tensor in loaded_tensors(header):
        homes = homes_of(tensor, header, placement)
        reads[homes[0][0]] += _read_of(tensor, header, tied=False)
        if tensor.name == "token_embd.weight" and header.tensor("output.weight") is None:
            reads[homes[-1][0]] += tensor.n_bytes
    for memory, device in zip(memories, placement.layers, strict=False):
        seen = min(n_past, memory.window or n_past)
        reads[device if placement.kv else CPU] += round(_kv_bytes(memory, type_k, type_v) * seen) + 4 * memory.n_state
    return dict(reads)


def flops_per_token(header: Header, n_past: float, *, outputs: float = 1.0) -> float | None:
    """Operations of one token behind `n_past` others, a multiply-add being two; None where the header does not tell.

    `outputs`: the share of tokens whose logits are computed; of a prompt they are those of the last one alone, and the
    output matrix of a small model with many words has more weights than all of its layers.

    2 for every weight that is multiplied (of experts the chosen ones; what is looked up is not), and in attention, for
    every head and every token that it looks back at, 2 for each element of the key and of the value. Norms, rotations
    and activations, far below one in a hundred, are left out (Kaplan et al. 2020, arXiv:2001.08361, table 1).
    """
    memories = layer_memories(header)
    if memories is None:
        return None
    tied = header.tensor("output.weight") is None
    flops = 0.0
    for tensor in loaded_tensors(header):
        if len(tensor.shape) < 2 or (tensor.name in LOOKED_UP and not (tied and tensor.name == "token_embd.weight")):
            continue
        share = header.n_expert_used / header.n_expert if is_experts(tensor) and header.n_expert else 1.0
        if tensor.name == ("token_embd.weight" if tied else "output.weight"):
            share = outputs
        flops += 2 * tensor.n_elements * share
    heads, k, v = header.n_head, header.n_embd_head_k or 0, header.n_embd_head_v or 0
    for memory, n_head in zip(memories, heads or (0,) * len(memories), strict=False):
        if memory.n_k:
            flops += 2 * n_head * (k + v) * min(n_past, memory.window or n_past)
    return flops


# -- where it lies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placement:
    """Where every layer lies, and how.

    Attributes:
        layers: the device of each layer, and behind them that of the output.
        overrides: (pattern, device): tensors whose name the pattern is found in lie there; the first that matches.
        kv: keys and values lie with their layer; else in RAM.
        repacked: types of matrices that are rearranged for the CPU, in a copy of their own.
        twice: the weights are there as in the file as well, with a memory of their own.
    """

    layers: tuple[str, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    kv: bool = True
    repacked: frozenset[str] = frozenset()
    twice: bool = False

    @property
    def devices(self) -> tuple[str, ...]:
        """All that hold anything, RAM first."""
        return tuple(dict.fromkeys([CPU, *self.layers, *(device for _, device in self.overrides)]))


def place_layers(n_layer: int, n_gpu_layers: int, devices: Sequence[str], shares: Sequence[float]) -> tuple[str, ...]:
    """The device of each of `n_layer` layers and of the output behind them, as llama.cpp spreads them.

    The last `n_gpu_layers` of these n_layer + 1 go to the devices, each a contiguous part in proportion to its share.
    In single precision, as there: where a share ends exactly at a layer, rounding decides.
    """
    if not devices or n_gpu_layers <= 0:
        return (CPU,) * (n_layer + 1)
    ends = [*accumulate(map(_single, shares), lambda total, share: _single(total + share))]
    normalized = [_single(end / ends[-1]) for end in ends]
    offloaded = min(n_gpu_layers, n_layer + 1)
    at = (_single(i / offloaded) for i in range(offloaded))
    placed = (sum(end <= here for end in normalized) for here in at)  # std::upper_bound
    return (*[CPU] * (n_layer + 1 - offloaded), *(devices[min(index, len(devices) - 1)] for index in placed))


def _single(value: float) -> float:
    return ctypes.c_float(value).value


@dataclass(frozen=True)
class Need:
    """Bytes on one device.

    Attributes:
        weights: of the tensors that lie there; in RAM of the mapped file and of repacked copies together.
        kv: keys, values and recurrent states; None where the header does not tell.
        compute: what llama.cpp computes in, and the logits; None where it was not asked.
    """

    weights: int = 0
    kv: int | None = 0
    compute: int | None = None

    @property
    def total(self) -> int:
        """What is known of it together."""
        return self.weights + (self.kv or 0) + (self.compute or 0)


@dataclass(frozen=True)
class Footprint:
    """What a model takes, by device.

    Attributes:
        by_device: RAM is `CPU`.
        n_ctx: tokens of context that this is for.
        repacked_bytes: of the weights in RAM, those that are rearranged and so no longer backed by the file.
        span_bytes: how much of the file is mapped: from the first tensor in RAM to the last, whatever lies between.
    """

    by_device: Mapping[str, Need] = field(default_factory=lambda: MappingProxyType({}))
    n_ctx: int = 0
    repacked_bytes: int = 0
    span_bytes: int = 0

    def with_compute(self, compute: Mapping[str, int] | None) -> Footprint:
        if compute is None:
            return self
        devices = {**dict.fromkeys(compute, Need()), **self.by_device}
        measured = {name: replace(need, compute=compute.get(name, 0)) for name, need in devices.items()}
        return replace(self, by_device=measured)

    def plus(self, other: Footprint) -> Footprint:
        """Of both together, compute buffers unknown."""
        needs = {
            name: Need(mine.weights + theirs.weights, None if None in (mine.kv, theirs.kv) else mine.kv + theirs.kv)  # type: ignore[operator]
            for name, mine in self.by_device.items()
            for theirs in [other.by_device.get(name, Need())]
        }
        repacked, span = self.repacked_bytes + other.repacked_bytes, self.span_bytes + other.span_bytes
        return Footprint(needs, self.n_ctx, repacked, span)


def footprint(
    header: Header,
    placement: Placement,
    n_ctx: int,
    config: LoadConfig = _DEFAULTS,
    adapters: Iterable[Header] = (),
    n_seq: int = 1,
) -> Footprint:
    """Weights and memory of a model (and of LoRA `adapters`) for `n_seq` sequences of `n_ctx` tokens each; compute
    buffers are left unknown."""
    if placement.twice:
        once = replace(placement, twice=False)
        as_in_the_file = replace(once, repacked=frozenset())
        adapters = list(adapters)
        # Prompts are computed with the weights as in the file one after the other.
        mine = footprint(header, once, n_ctx, config, adapters, n_seq)
        return mine.plus(footprint(header, as_in_the_file, n_ctx, config, adapters))
    weights: Counter[str] = Counter()
    repacked, in_ram = 0, []
    for tensor in loaded_tensors(header):
        for device, copied in homes_of(tensor, header, placement):
            weights[device] += tensor.n_bytes
            if copied:
                repacked += tensor.n_bytes
            elif device == CPU:
                in_ram.append(tensor)
    for tensor in (tensor for adapter in adapters for tensor in adapter.tensors):
        for device, _ in homes_of(tensor, header, placement):
            weights[device] += tensor.n_bytes
    memory = memory_by_device(header, placement, n_ctx, config)
    span = max((t.offset + t.n_bytes for t in in_ram), default=0) - min((t.offset for t in in_ram), default=0)
    if header.split_count > 1:  # every part is mapped by itself, and offsets begin anew in each
        span = sum(tensor.n_bytes for tensor in in_ram)
    kv = {device: None if memory is None else n_seq * memory.get(device, 0) for device in placement.devices}
    return Footprint({device: Need(weights[device], kv[device]) for device in kv}, n_ctx, repacked, span)


def loaded_tensors(header: Header) -> list[TensorInfo]:
    """Those that llama.cpp loads: not the layers behind the last, which predict several tokens ahead."""
    ahead = header.hparam("nextn_predict_layers")
    n_trunk = (header.n_layer or 0) - (ahead if isinstance(ahead, int) else 0)
    return [tensor for tensor in header.tensors if (layer := layer_of(tensor)) is None or layer < n_trunk]


def homes_of(tensor: TensorInfo, header: Header, placement: Placement) -> list[tuple[str, bool]]:
    """The devices where a tensor lies, several for one that is used in several places; and whether repacked there."""
    name = tensor.name
    named = _overridden(name, placement.overrides) if placement.overrides else None
    if name in LOOKED_UP:
        homes = [(named or CPU, False)]
        if name == "token_embd.weight" and header.tensor("output.weight") is None:
            device, repacked = named or placement.layers[-1], _is_repacked(tensor, placement)
            # The same tensor serves both, unless they lie in different places or one of them is rearranged.
            if device != CPU or repacked:
                homes.append((device, repacked and device == CPU))
        return list(dict.fromkeys(homes))
    if _IN_EVERY_LAYER.fullmatch(name):
        return [(device, False) for device in dict.fromkeys(placement.layers[:-1])]
    layer, n_layer, is_lfm2 = layer_of(tensor), len(placement.layers) - 1, (header.architecture or "")[:4] == "lfm2"
    if layer is None or layer >= n_layer:
        layer = n_layer if _OUTPUT.fullmatch(name) or (is_lfm2 and name == "token_embd_norm.weight") else 0
    device = named or placement.layers[layer]
    return [(device, device == CPU and _is_repacked(tensor, placement))]


# A plan asks the same of every tensor dozens of times, and `re` itself remembers 512 patterns.
_compiled = lru_cache(maxsize=1 << 14)(re.compile)


@lru_cache(maxsize=1 << 16)
def _overridden(name: str, overrides: tuple[tuple[str, str], ...]) -> str | None:
    return next((device for pattern, device in overrides if _compiled(pattern).search(name)), None)


def _is_repacked(tensor: TensorInfo, placement: Placement) -> bool:
    """A matrix, or the matrices of all experts, in rows of eight at a time: ggml-cpu's repack.cpp."""
    if tensor.type.name not in placement.repacked or len(tensor.shape) < 2 or tensor.shape[1] % 8:
        return False
    return len(tensor.shape) == 2 or is_experts(tensor)


def repackable_types(system_info: str) -> frozenset[str]:
    """The types that ggml rearranges for this CPU, by `llama_print_system_info` (ggml-cpu/repack.cpp)."""
    has = set(re.findall(r"(\S+) = 1(?=\s*(?:\||$))", system_info))
    types: set[str] = set()
    if "AVX2" in has:
        types |= {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}
    if "AVX512" in has:
        types |= {"Q2_K"}
    if "NEON" in has and has & {"DOTPROD", "MATMUL_INT8"}:
        types |= {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"}
    return frozenset(types)


def memory_by_device(
    header: Header, placement: Placement, n_ctx: int, config: LoadConfig = _DEFAULTS
) -> dict[str, int] | None:
    """Bytes of keys, values and recurrent state for one sequence; None where the header does not tell.

    llama.cpp rounds the cells up to 256. Layers with a window have cells for it and for one micro-batch.
    """
    memories = layer_memories(header)
    if memories is None:
        return None
    cells = padded_cells(n_ctx)
    ubatch = min(config.n_batch, config.n_ubatch, n_ctx)
    # Without flash attention values lie transposed, and all layers have the room of the widest.
    widest = max((memory.n_v for memory in memories), default=0) if config.flash_attn == "off" else 0
    found: Counter[str] = Counter()
    for memory, device in zip(memories, placement.layers, strict=False):
        here = cells if memory.window is None else min(cells, padded_cells(memory.window + ubatch))
        wide = replace(memory, n_v=max(memory.n_v, widest) if memory.n_v else 0)
        found[device if placement.kv else CPU] += here * _kv_bytes(wide, config.type_k, config.type_v)
        found[device if placement.kv else CPU] += 4 * memory.n_state
    return dict(found)


def padded_cells(n: int) -> int:
    """Tokens that a KV cache has room for where `n` are asked for."""
    return -(-n // 256) * 256
