"""A small DeepSeek-V3: latent attention and a mixture of experts, arXiv 2412.19437, section 2.1.

Queries, keys and values come out of narrow latent vectors; the keys' rotary part is one for all heads. Each token goes
through a shared expert and the few routed ones with the largest sigmoid affinity. Balance is kept without a loss: a bias
on each expert's affinity, which counts for the choice only, goes up while the expert has less than its share.

Left out: the balance loss within a sequence, multi-token prediction, groups of experts that are limited to some nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.layers import Layer, RMSNorm, Rotary, SwiGLU, initialise


@dataclass(frozen=True)
class Config:
    dim: int = 256
    n_layers: int = 2
    n_heads: int = 4
    q_latent: int = 128
    kv_latent: int = 128
    #: channels of a head with and without a rotary position, and of its values
    rope_dim: int = 16
    nope_dim: int = 32
    v_dim: int = 32
    #: layers from the first whose feed-forward part is dense
    dense_layers: int = 1
    hidden: int = 512
    n_experts: int = 8
    experts_per_token: int = 2
    expert_hidden: int = 128
    routed_scaling: float = 2.5
    bias_speed: float = 0.001
    vocab_size: int = 256
    context: int = 64
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6


class LatentAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        qk_dim = config.nope_dim + config.rope_dim
        self.q_a_proj = nn.Linear(config.dim, config.q_latent, bias=False)
        self.q_a_layernorm = RMSNorm(config.q_latent, config.norm_eps)
        self.q_b_proj = nn.Linear(config.q_latent, config.n_heads * qk_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.dim, config.kv_latent + config.rope_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_latent, config.norm_eps)
        self.kv_b_proj = nn.Linear(config.kv_latent, config.n_heads * (config.nope_dim + config.v_dim), bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.v_dim, config.dim, bias=False)
        self.rotary = Rotary(config.rope_dim, config.context, config.rope_theta)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        q = self._by_head(self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))))  # (B, heads, T, nope + rope)
        latent = self.kv_a_proj_with_mqa(x)
        k_rope = self.rotary(latent[..., c.kv_latent :].unsqueeze(1)).expand(-1, c.n_heads, -1, -1)
        kv = self._by_head(self.kv_b_proj(self.kv_a_layernorm(latent[..., : c.kv_latent])))
        k = torch.cat([kv[..., : c.nope_dim], k_rope], dim=-1)
        v = kv[..., c.nope_dim :]
        q = torch.cat([q[..., : c.nope_dim], self.rotary(q[..., c.nope_dim :])], dim=-1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.config.n_heads, -1).transpose(1, 2)


class Experts(nn.Module):
    bias: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.dim, config.n_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(config.dim, config.expert_hidden) for _ in range(config.n_experts))
        self.shared_experts = SwiGLU(config.dim, config.expert_hidden)
        self.register_buffer("bias", torch.zeros(config.n_experts))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)  # (N, dim)
        chosen, weights = self._route(tokens)
        routed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            token, rank = (chosen == index).nonzero(as_tuple=True)
            part = expert(tokens[token]) * weights[token, rank, None]
            routed = routed.index_add(0, token, part.type_as(routed))
        out: Tensor = self.shared_experts(x) + routed.view_as(x)
        return out

    def _route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen experts of each token (N, experts_per_token), and their weights."""
        with torch.autocast(tokens.device.type, enabled=False):
            affinity = self.gate(tokens.float()).sigmoid()  # (N, n_experts)
        chosen = (affinity + self.bias).topk(self.config.experts_per_token, dim=-1).indices
        weights = affinity.gather(1, chosen)
        if self.training:
            load = torch.bincount(chosen.flatten(), minlength=self.config.n_experts).float()
            self.bias += self.config.bias_speed * (load.mean() - load).sign()
        return chosen, weights / weights.sum(-1, keepdim=True) * self.config.routed_scaling


def layer(config: Config, index: int) -> Layer:
    """Return a layer: the first ones are dense."""
    mlp = SwiGLU(config.dim, config.hidden) if index < config.dense_layers else Experts(config)
    return Layer(config.dim, config.norm_eps, LatentAttention(config), mlp)


class DeepSeek(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(layer(config, index) for index in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        initialise(self, config.n_layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocab_size)."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def build_model(**sizes: int | float) -> DeepSeek:
    """The model, freshly initialised; the arguments are those of Config."""
    return DeepSeek(Config(**sizes))  # type: ignore[arg-type]
