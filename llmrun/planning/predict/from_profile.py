"""Seconds of a token and of a prompt on this machine, from the measured times of what a model's graph is made of.

    t = sum of products(type, layout, columns) + sum of attention(depth) + sum of recurrent states(tokens)
        + layers x overhead + what is outside of them

Each product is looked up as it was measured for its type, layout and number of columns; a product of experts with as
many columns as each expert gets. Nothing is fitted. docs/how-speed-is-predicted.md has what is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from llmrun.gguf.reader import Header, TensorInfo, layer_of
from llmrun.gguf.types import GGML_TYPES
from llmrun.machine.profile import Profile
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import (
    CPU,
    LOOKED_UP,
    Placement,
    homes_of,
    is_experts,
    loaded_tensors,
    padded_cells,
)
from llmrun.planning.kv_layout import heads_of, layer_memories, recurrent_kind

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
_NEAREST = {
    "F32": "F16",
    "Q4_1": "Q4_0",
    "Q5_1": "Q5_0",
    "IQ4_XS": "IQ4_NL",
    "IQ4_NL": "Q4_0",
    "MXFP4": "Q4_0",
    "Q2_K": "Q3_K",
    "Q3_K": "Q4_K",
    "Q4_K": "Q4_0",
    "Q5_K": "Q4_K",
    "Q5_0": "Q8_0",
    "Q6_K": "Q8_0",
    "BF16": "F16",
}
"""A type that takes about as long for each byte, where one was not measured."""


_BLOCK_OF_CELLS = 256
"""The KV cache is looked at in whole blocks of so many tokens."""
MEASURED_OPERATIONS = 19
"""Of a layer of the models whose overhead is measured: two norms, seven matrices, and `_OF_A_LAYER`."""
_OF_A_LAYER, _OF_ROUTING = 8, 7
_MANY = 8


@dataclass(frozen=True)
class GraphTimes:
    """Of one model, placed, on the machine of a profile.

    Attributes:
        placement: where layers lie, and which types are rearranged in RAM.
        n_threads: for decoding, and for prefill where the configuration has no number for it.
        drift: by device, how much longer things take now than when the profile was made.
    """

    header: Header
    placement: Placement
    config: LoadConfig
    profile: Profile
    n_threads: int
    drift: Mapping[str, float] | None = None

    def step_s(self, depth: int) -> float | None:
        """Seconds to decode one token behind `depth` others; None where something of it was not measured."""
        return self._batch_s(1, depth, self.n_threads, plain=False)

    def prefill_s(self, n_prompt: int) -> float | None:
        """Seconds of a prompt, in micro-batches."""
        size = min(self.config.n_ubatch, self.config.n_batch)
        total = 0.0
        for begin in range(0, n_prompt, size):
            n = min(size, n_prompt - begin)
            # Token i of a batch looks back at i more: on average at half of the batch.
            threads = self.config.n_threads_batch or self.n_threads
            taken = self._batch_s(n, begin + n / 2, threads, plain=self.placement.twice)
            if taken is None:
                return None
            total += taken
        return total

    def operations_s(self, n_tokens: int, depth: float) -> float:
        """Seconds of the products and the attention of a batch, as far as they were measured: all of it but states and
        what is between the operations."""
        products = self._products_s(n_tokens, self.n_threads, plain=False)
        return (products or 0.0) + (self._attention_s(n_tokens, depth, self.n_threads) or 0.0)

    def _batch_s(self, n_tokens: int, depth: float, n_threads: int, *, plain: bool) -> float | None:
        parts = [
            self._products_s(n_tokens, n_threads, plain=plain),
            self._attention_s(n_tokens, depth, n_threads),
            self._states_s(n_tokens, n_threads),
            self._overhead_s(n_tokens, n_threads),
        ]
        return None if None in parts else sum(filter(None, parts))

    def _products_s(self, n_tokens: int, n_threads: int, *, plain: bool) -> float | None:
        total = 0.0
        for tensor in loaded_tensors(self.header):
            is_embedding = tensor.name in LOOKED_UP
            is_output = tensor.name == "output.weight" or (tensor.name == "token_embd.weight" and self._is_tied)
            if len(tensor.shape) < 2 or (is_embedding and not is_output):
                continue
            device, repacked = homes_of(tensor, self.header, self.placement)[-1]
            rows = 1 if is_output else n_tokens  # of a prompt the logits of the last token alone are wanted
            taken = self._product_s(tensor, device, rows, n_threads, repack=repacked and not plain)
            if taken is None:
                return None
            total += taken
        return total

    @property
    def _is_tied(self) -> bool:
        return self.header.tensor("output.weight") is None

    def _product_s(
        self, tensor: TensorInfo, device: str, n_tokens: int, n_threads: int, *, repack: bool
    ) -> float | None:
        """Of one matrix, or of all experts that the tokens choose."""
        header, weights, columns = self.header, float(tensor.n_elements), float(n_tokens)
        experts = is_experts(tensor) and header.n_expert > 0
        if experts:
            # Each token takes n_used of them; several tokens meet in the same ones.
            share = header.n_expert_used / header.n_expert
            touched = 1 - (1 - share) ** n_tokens
            columns = max(1.0, n_tokens * share / touched)
            weights *= touched
        threads = None if device != CPU else n_threads
        kind: str | None = tensor.type.name
        while kind is not None:
            for of_experts in (experts, False) if experts and n_tokens == 1 else (False,):
                found = self.profile.product_s(
                    kind, weights, round(columns), threads, repack=repack, device=device, experts=of_experts
                )
                if found is not None:
                    # Few columns wait for bytes; many are multiplied with, whatever the bytes.
                    ratio = _bytes_per_weight(tensor.type.name) / _bytes_per_weight(kind) if columns < _MANY else 1.0
                    if experts and n_tokens > 1:
                        ratio *= self._experts_slower(tensor.type.name, columns, threads, repack=repack, device=device)
                    return found * ratio * self._drift(device)
            kind = _NEAREST.get(kind)
        return None

    def _experts_slower(
        self, kind: str | None, n_columns: float, threads: int | None, *, repack: bool, device: str
    ) -> float:
        """Of the type next to it of which experts were measured."""
        while kind is not None:
            found = self.profile.experts_slower(kind, n_columns, threads, repack=repack, device=device)
            if found is not None:
                return found
            kind = _NEAREST.get(kind)
        return 1.0

    def _attention_s(self, n_tokens: int, depth: float, n_threads: int) -> float | None:
        header = self.header
        memories = layer_memories(header)
        if memories is None:
            return None
        total = 0.0
        for layer, (memory, device) in enumerate(zip(memories, self.placement.layers, strict=False)):
            if not memory.n_k:
                continue
            n_head, n_head_kv = heads_of(header, layer)
            on = device if self.placement.kv else CPU
            at = min(depth, memory.window or depth) + 1
            if on == CPU and n_tokens == 1:
                at = self._attended(depth, memory.window, n_threads)
            found = self.profile.attention_s(
                self.config.type_k.upper(),
                memory.n_k // n_head_kv,
                n_head,
                n_head_kv,
                at,
                n_tokens,
                n_threads if on == CPU else None,
                device=on,
                flash=self.config.flash_attn != "off",
                latent=not memory.n_v,
            )
            if found is None:
                return None
            total += found * self._drift(on)
        return total

    def _attended(self, depth: float, window: int | None, n_threads: int) -> float:
        """The tokens before one, and itself, that take the time; of several threads what the busiest has, by as many.

        As ggml-cpu has it (`ggml_compute_forward_flash_attn_ext_f16`): llama.cpp hands over the cells in use, in whole
        blocks. Without flash attention all of them are computed; with it what is masked is left out, but from two
        blocks on each thread gets an equal part of the cells, the masked ones among them.
        """
        config, n = self.config, math.floor(depth) + 1
        most = n if window is None else padded_cells(window + min(config.n_ubatch, config.n_batch))
        held, seen = min(n, most), min(n, window or n)
        cells = padded_cells(held)
        if config.flash_attn == "off":
            return cells
        is_split = config.type_k == config.type_v and config.type_k in ("f16", "f32") and cells >= 2 * _BLOCK_OF_CELLS
        if n_threads == 1 or not is_split:
            return seen
        return n_threads * _busiest(cells, held, seen, n_threads, goes_round=held < n)

    def _states_s(self, n_tokens: int, n_threads: int) -> float | None:
        sizes = [memory.n_state for memory in layer_memories(self.header) or ()]
        kind = recurrent_kind(self.header)
        taken = [self.profile.state_s(kind, size, n_tokens, n_threads) for size in sizes if size]
        return None if None in taken else sum(filter(None, taken)) * self._drift(CPU)

    def _overhead_s(self, n_tokens: int, n_threads: int) -> float | None:
        found = self.profile.overhead(n_tokens, n_threads, self.header.n_embd or 1)
        if found is None:
            return None
        n_layers = float(len(self.placement.layers) - 1)
        if n_tokens == 1:  # threads wait for each other behind every operation, whatever it computes
            n_layers = sum(operations_by_layer(self.header)[: int(n_layers)]) / MEASURED_OPERATIONS
        return n_layers * found.layer_s + found.token_s

    def _drift(self, device: str) -> float:
        return (self.drift or {}).get(device, 1.0)


@lru_cache(maxsize=256)
def _busiest(cells: int, held: int, seen: int, n_threads: int, *, goes_round: bool) -> float:
    """Of the last `seen` of the cells that hold something, as many as the busiest of the threads gets, which share all
    cells evenly; in the mean where a window goes round in them."""
    part = -(-cells // n_threads)

    def most(begin: int) -> int:
        spans = [(begin, min(begin + seen, held)), (0, max(0, begin + seen - held))]
        return max(
            sum(max(0, min(end, low + part) - max(first, low)) for first, end in spans) for low in range(0, cells, part)
        )

    if not goes_round:
        return most(held - seen)
    begins = range(0, held, max(1, held // 64))
    return sum(map(most, begins)) / len(begins)


def operations_by_layer(header: Header) -> list[int]:
    """Operations of llama.cpp's graph for one token, by layer, those left out that only turn or cut.

    A norm is two, a matrix and a bias one each; then rotation (two), what is stored of keys and values (two),
    attention, two sums with what was there before, and the product of gate and up. A mixture has the choice of its
    experts as well (softmax, order, weights, their sum and quotient, and the product with them), and a sum for each
    expert but the first. A recurrent layer counts as one with attention: what it has more was measured as its state.
    """
    memories = layer_memories(header) or ()
    found = [_OF_A_LAYER] * (header.n_layer or 0)
    routed = set()
    for tensor in loaded_tensors(header):
        layer = layer_of(tensor)
        if layer is None:
            continue
        is_state = layer < len(memories) and memories[layer].n_state > 0
        if tensor.name.endswith("ffn_gate_inp.weight"):
            routed.add(layer)
        if not is_state:
            found[layer] += 2 if "norm" in tensor.name and tensor.name.endswith("weight") else 1
    for layer, memory in enumerate(memories):
        if memory.n_state:
            found[layer] = MEASURED_OPERATIONS
    for layer in routed:
        found[layer] += _OF_ROUTING + max(0, header.n_expert_used - 1)
    return found


def _bytes_per_weight(kind: str) -> float:
    found = _TYPES[kind]
    return found.type_size / found.block_size
