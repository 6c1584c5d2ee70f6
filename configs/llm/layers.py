"""What today's decoders share: RMSNorm, rotary positions, SwiGLU, and the spread that weights start with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # in fp32: the square of 256 is the first that fp16 cannot hold
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).type_as(x) * self.weight.type_as(x)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """A pre-norm layer around the attention and the MLP of its model."""

    def __init__(self, dim: int, norm_eps: float, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dim, norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(dim, norm_eps)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Rotary(nn.Module):
    """Turns each pair (i, i + half) of a head's channels by an angle that grows with the position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, context: int, theta: float) -> None:
        super().__init__()
        rates = theta ** (-torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(context).float(), rates)  # (context, dim / 2)
        # in fp32: bf16 has no 257
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.float().chunk(2, dim=-1)  # (B, heads, T, dim / 2)
        cos, sin = self.cos[: x.size(-2)], self.sin[: x.size(-2)]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).type_as(x)


def initialise(model: nn.Module, n_layers: int) -> None:
    """Matrices normal with 0.02; those that add to the residual stream, twice a layer, less by the root of that."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers) if into_stream else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
