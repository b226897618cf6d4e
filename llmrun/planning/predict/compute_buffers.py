"""About what llama.cpp computes in, where it can't be asked: on a machine that is not here.

Its allocator lays a graph's tensors out so that those that are not needed at once have the same bytes. What is left is,
for each token of a micro-batch, in F32, the block that takes the most:

    4 · n_embd + 3 · n_ff                         feed-forward: up, gate, their product; what goes in, its norm, what
                                                  comes out, what it is added to
    4 · n_embd + n_used · (3 · n_ff + n_embd)     the same of each expert that is chosen, and what it gives
    4 · n_embd + 2 · n_head · head                attention: queries, and what comes out
               + n_head · cells                   without flash attention: how much each looks at each
    3 · n_embd + 3 · (n_inner + n_bc)             delta net: what its convolution has
    n_embd + 6 · n_inner + 3 · n_bc               Mamba-2: its projection, convolution, and what its states give

and beside it 2 bytes a cell, for who may look at whom, of the whole context and of a window; once, the logits of the
last token. n_bc = 2 · groups · d_state.

The form is read off what llama.cpp laid out for the shapes of `data/shapes.toml`; how far it is off, of these and of
others, is in docs/prediction.md (`scripts/check_memory.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import CPU, padded_cells
from llmrun.planning.kv_layout import layer_memories, recurrent_kind
from llmrun.planning.layout import Layout

_F32, _F16 = 4, 2
_COPIES = 4
"""GGML_SCHED_MAX_COPIES of ggml."""


@dataclass(frozen=True)
class ComputeEstimate:
    """Bytes by device (`fit.Measure`)."""

    header: Header

    def __call__(self, config: LoadConfig, layout: Layout, n_ctx: int) -> Mapping[str, int]:
        header = self.header
        n_tokens = min(config.n_batch, config.n_ubatch, n_ctx)
        masks = _F16 * n_tokens * sum(self._cells(n_ctx, n_tokens))
        whole = _F32 * n_tokens * self._width(padded_cells(n_ctx) if config.flash_attn == "off" else 0) + masks
        passed, logits = _F32 * n_tokens * (header.n_embd or 0), _F32 * (header.n_vocab or 0)
        devices = layout.devices[: layout.n_gpu_layers]
        if not devices or layout.n_gpu_layers <= (header.n_layer or 0) or layout.overrides:
            return {**dict.fromkeys(devices, whole), CPU: whole + logits}
        # RAM looks up what goes in, and passes it on.
        if len(devices) == 1:
            return {devices[0]: whole - passed, CPU: 2 * passed + masks + logits}
        # Several work on several micro-batches at once, and have what they are passed in four copies.
        more, first = (_COPIES - 1) * masks - passed, devices[0]
        found = {name: whole + more + _COPIES * passed * (1 if name == first else 2) for name in devices}
        return {**found, CPU: (1 + _COPIES) * passed + _COPIES * masks + logits}

    def _width(self, n_seen: int) -> int:
        """Elements of one token that are kept at once, of each that it looks back at one a head."""
        header, n_embd = self.header, self.header.n_embd or 0
        n_ff, n_head = max(header.n_ff, default=0), max(header.n_head, default=0)
        n_ff_exp = self._int("expert_feed_forward_length") or n_ff
        n_inner, n_bc = self._int("ssm.inner_size"), 2 * self._int("ssm.group_count") * self._int("ssm.state_size")
        return max(
            4 * n_embd + 3 * n_ff,
            4 * n_embd + header.n_expert_used * (3 * n_ff_exp + n_embd),
            4 * n_embd + n_head * (2 * (header.n_embd_head_k or 0) + n_seen),
            n_embd + 6 * n_inner + 3 * n_bc if recurrent_kind(header) == "mamba2" else 3 * (n_embd + n_inner + n_bc),
        )

    def _cells(self, n_ctx: int, n_tokens: int) -> list[int]:
        """Of the whole context, and of a window; those that there are."""
        windows = {memory.window for memory in layer_memories(self.header) or () if memory.n_k}
        return [padded_cells(n_ctx if window is None else min(n_ctx, window + n_tokens)) for window in windows]

    def _int(self, name: str) -> int:
        value = self.header.hparam(name)
        return value if isinstance(value, int) else 0
