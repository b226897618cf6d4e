"""Whether flash attention is the faster one for a model on this CPU: attention alone, with it and without, over as many
tokens as the workloads have.

With flash attention one token of an answer goes through keys and values head by head, and waits for memory at each
where the heads lie far apart; two products over all of them do not wait, but write their scores to memory in between.
Which is faster depends on the CPU, the heads and the depth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from llmrun.engine.protocol import TimeAttention
from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU, padded_cells
from llmrun.planning.kv_layout import heads_of, layer_memories
from llmrun.tuning.dials import UBATCH_WITHOUT_FLASH, Workload

_KIND, _ELEMENT_BYTES = "F16", 2
_SECONDS = 0.015
_MOST_BYTES = 128 << 20

Ask = Callable[[TimeAttention], list[float]]
"""The answer to such a question (`engine.protocol.OpTimes.seconds`)."""


@dataclass(frozen=True)
class AttentionCost:
    """Seconds that attention takes of one token in all layers: of the prompt, and of the answer."""

    prompt_s: float
    step_s: float

    def is_known(self) -> bool:
        return math.isfinite(self.prompt_s + self.step_s)


class _Layer(NamedTuple):
    head_size: int
    n_head: int
    n_head_kv: int
    window: int | None


def costs(
    header: Header, config: LoadConfig, workloads: Mapping[str, Workload], n_threads: int, ask: Ask
) -> dict[str, tuple[AttentionCost, AttentionCost]]:
    """With flash attention and without, for each workload; nothing where there is no choice: quantized keys and values
    need it, latent attention is not known without, and a model that only recurs has none."""
    layers = _layers(header)
    if not layers or config.flash_attn != "auto" or {config.type_k, config.type_v} != {"f16"}:
        return {}
    n_ubatch = min(config.n_ubatch, config.n_batch)

    def cost(work: Workload, size: int, flash: bool) -> AttentionCost:
        depth = work.n_prompt + work.n_gen // 2
        return AttentionCost(
            sum(n * _prompt_s(each, work.n_prompt, n_threads, size, flash, ask) for each, n in layers.items()),
            sum(n * _step_s(each, n, depth, n_threads, flash, ask) for each, n in layers.items()),
        )

    found = {
        name: (cost(work, n_ubatch, True), cost(work, min(n_ubatch, UBATCH_WITHOUT_FLASH), False))
        for name, work in workloads.items()
    }
    return {name: pair for name, pair in found.items() if all(map(AttentionCost.is_known, pair))}


def _layers(header: Header) -> Counter[_Layer]:
    """How many layers have which attention; none where one has another kind."""
    memories = layer_memories(header)
    found: Counter[_Layer] = Counter()
    for layer, memory in enumerate(memories or ()):
        if not memory.n_k:
            continue
        if memory.n_v != memory.n_k:
            return Counter()
        n_head, n_head_kv = heads_of(header, layer)
        found[_Layer(memory.n_k // n_head_kv, n_head, n_head_kv, memory.window)] += 1
    return found


def _step_s(layer: _Layer, n_layers: int, depth: int, n_threads: int, flash: bool, ask: Ask) -> float:
    """Of one token behind so many. Several threads share the cells in whole blocks, with flash attention as well."""
    seen = min(depth, layer.window or depth)
    cells = seen if flash and n_threads == 1 else padded_cells(seen)
    n_bytes = 2 * _ELEMENT_BYTES * layer.head_size * layer.n_head_kv * cells * n_layers
    return _asked(layer, cells, 1, n_threads, flash, min(n_bytes, _MOST_BYTES), ask)


def _prompt_s(layer: _Layer, n_prompt: int, n_threads: int, n_ubatch: int, flash: bool, ask: Ask) -> float:
    """Of one token in the mean of a prompt. Flash attention leaves out what comes behind a token; else all cells of its
    micro-batch are computed."""
    n = min(n_prompt, n_ubatch)
    seen = n_prompt // 2 if flash else padded_cells((n_prompt + n) // 2)
    cells = min(seen, layer.window + n) if layer.window else seen
    return _asked(layer, max(1, cells), n, n_threads, flash, 0, ask) / n


def _asked(layer: _Layer, cells: int, n_tokens: int, n_threads: int, flash: bool, n_bytes: int, ask: Ask) -> float:
    """Infinite where it can't be measured."""
    size, n_head, n_head_kv, _ = layer
    found = ask(
        TimeAttention(CPU, _KIND, size, n_head, n_head_kv, n_bytes, [cells], [n_tokens], [n_threads], _SECONDS, flash)
    )
    return found[0] if found else math.inf
