"""The model that is timed: a GPT of the size asked for, on its own random tokens, as a run that nanhunt can replay."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun

__all__ = ["Size", "build"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One size of the model and of its batch."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 4096
    #: sequences in a batch, and tokens in each
    batch: int = 4
    context: int = 128


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm_1 = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.out = nn.Linear(size.width, size.width)
        self.norm_2 = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """A decoder with learned positions and a head of its own."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens) to (batch, tokens, vocabulary)."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build(size: Size, device: str) -> TrainingRun:
    """Build the run: AdamW, clipping at 1, bf16 autocast on a GPU."""
    torch.manual_seed(0)
    model = GPT(size).to(device)
    tokens = list(torch.randint(size.vocabulary, (64, size.batch, size.context + 1)))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        logits = model(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    return TrainingRun(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda"),
        loss=loss,
        batches=BatchSource(itertools.cycle(tokens), first_step=0, accumulate=1, device=torch.device(device)),
        device=torch.device(device),
        autocast="bf16" if device == "cuda" else None,
        clip_grad_norm=1.0,
    )
