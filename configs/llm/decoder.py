"""A dense decoder: Llama 3, Qwen2.5 and Mistral are this one with other numbers.

Grouped-query attention with rotary positions, SwiGLU, RMSNorm before each. Qwen2.5 has a bias on q, k and v, and its small
models tie the output head to the embedding; Mistral looks back through a window. Modules are named as in Hugging Face's
checkpoints of these models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers import Layer, RMSNorm, Rotary, SwiGLU, initialise


@dataclass(frozen=True)
class Config:
    dim: int = 160
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 2
    hidden: int = 448
    vocab_size: int = 256
    context: int = 64
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tied: bool = False
    #: positions that a position sees, itself included; None for all before it
    window: int | None = None


class Attention(nn.Module):
    seen: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.dim // config.n_heads
        self.groups = config.n_heads // config.n_kv_heads
        self.q_proj = nn.Linear(config.dim, config.n_heads * self.head_dim, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * self.head_dim, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.n_heads * self.head_dim, config.dim, bias=False)
        self.rotary = Rotary(self.head_dim, config.context, config.rope_theta)
        distance = torch.arange(config.context)[:, None] - torch.arange(config.context)
        seen = (distance >= 0) & (distance < (config.window or config.context))
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, T, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (part.repeat_interleave(self.groups, dim=1) for part in (self.rotary(k), v))
        seen = self.seen[: x.size(1), : x.size(1)]
        y = F.scaled_dot_product_attention(self.rotary(q), k, v, attn_mask=seen)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            Layer(config.dim, config.norm_eps, Attention(config), SwiGLU(config.dim, config.hidden))
            for _ in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        initialise(self, config.n_layers)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocab_size)."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def build_model(**sizes: int | float | bool | None) -> Decoder:
    """The model, freshly initialised; the arguments are those of Config."""
    return Decoder(Config(**sizes))  # type: ignore[arg-type]
