"""The network in PyTorch: the `llama` architecture of GGUF, at the size of a demo.

Per layer: RMS norm, causal attention with grouped KV heads and rotary positions, RMS norm, SwiGLU feed-forward. The
token embedding is also the output matrix. Names of the parameters follow the tensor names of GGUF.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. Every row length is a multiple of 256, so every K-quant can store every matrix."""

    n_vocab: int = 2048
    n_ctx: int = 1024
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 512
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.n_embd // self.n_head


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        n_kv = shape.n_head_kv * shape.head_dim
        self.shape = shape
        self.attn_norm = nn.RMSNorm(shape.n_embd, eps=shape.norm_eps)
        self.attn_q = nn.Linear(shape.n_embd, shape.n_embd, bias=False)
        self.attn_k = nn.Linear(shape.n_embd, n_kv, bias=False)
        self.attn_v = nn.Linear(shape.n_embd, n_kv, bias=False)
        self.attn_output = nn.Linear(shape.n_embd, shape.n_embd, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.n_embd, eps=shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.ffn_up = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.ffn_down = nn.Linear(shape.n_ff, shape.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: (rows, tokens, n_embd); cos, sin: (tokens, head_dim / 2)."""
        x = x + self._attend(self.attn_norm(x), cos, sin)
        y = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(y)) * self.ffn_up(y))

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, tokens, _ = x.shape
        s = self.shape
        q = rotate(self.attn_q(x).view(rows, tokens, s.n_head, s.head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.attn_k(x).view(rows, tokens, s.n_head_kv, s.head_dim), cos, sin).transpose(1, 2)
        v = self.attn_v(x).view(rows, tokens, s.n_head_kv, s.head_dim).transpose(1, 2)
        groups = s.n_head // s.n_head_kv
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_output(y.transpose(1, 2).reshape(rows, tokens, s.n_embd))


class Tiny(nn.Module):
    """The whole network; `forward` gives hidden states, `logits` turns chosen ones into scores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.output_norm = nn.RMSNorm(shape.n_embd, eps=shape.norm_eps)
        angles = torch.outer(
            torch.arange(shape.n_ctx, dtype=torch.float32),
            shape.rope_base ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim),
        )
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = "attn_output" in name or "ffn_down" in name  # the two that write to the residual stream
                nn.init.normal_(parameter, std=0.02 / (2 * shape.n_layer) ** 0.5 if last else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (rows, n) ids, each row from position 0 -> (rows, n, n_embd)."""
        x = self.token_embd(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.blk:
            x = layer(x, cos, sin)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (n, n_embd) -> (n, n_vocab)."""
        return functional.linear(hidden, self.token_embd.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of x (rows, tokens, heads, head_dim) by their position: RoPE as `llama` models store it."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
