"""Small models of many kinds, fresh and trained, and the inspection of what they save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from nanhunt.inspection.contents import read_contents
from nanhunt.inspection.finding import Inspection
from nanhunt.inspection.judge import judge
from nanhunt.inspection.survey import survey

VOCABULARY, USED = 256, 200


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.out(F.gelu(self.fc(self.ln_2(x))))


class GPT(nn.Module):
    """Tied embeddings, a padding row, an additive mask and rotary tables as buffers, gains of exactly 1."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width, padding_idx=7), nn.Embedding(16, width)
        self.h = nn.ModuleList(Block(width) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight
        angles = torch.outer(torch.arange(512.0), 1e4 ** (-torch.arange(0, 32, 2) / 32))
        self.register_buffer("mask", torch.full((64, 64), float("-inf")).triu(1))
        self.register_buffer("tril", torch.ones(64, 64).tril().bool())
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))
        self.register_buffer("cos_cached", torch.cat([angles, angles], -1).cos())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 12,
    *,
    clip: float | None = 1.0,
    poison: Callable[[nn.Module], None] | None = None,
    loss_factor: float = 1.0,
) -> None:
    """Train a GPT on tokens that leave a fifth of the vocabulary out; `poison` and the factor act in the last step."""
    for step in range(steps):
        last = step == steps - 1
        tokens = torch.randint(0, USED, (4, 17))
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        (loss * (loss_factor if last else 1.0)).backward()
        if poison is not None and last:
            poison(model)
        if clip is not None:
            clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def trained_gpt(steps: int = 12, *, seed: int = 0, **arguments: Any) -> tuple[GPT, torch.optim.Optimizer]:
    """Return a GPT and its AdamW behind a few steps."""
    torch.manual_seed(seed)
    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    train(model, optimizer, steps, **arguments)
    return model, optimizer


def saved(model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> dict[str, Any]:
    """Return what nanoGPT's loop would save."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 12, **more}


def inspected(content: Any, folder: Path, *, reference: Any = None) -> Inspection:
    """Save contents with torch.save and inspect the file."""
    contents = read_contents(_file(content, folder / "ckpt.pt"), trust_pickle=False)
    earlier = None if reference is None else read_contents(_file(reference, folder / "old.pt"), trust_pickle=False)
    return judge(survey(contents, earlier=earlier))


def _file(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def kinds(inspection: Inspection) -> set[str]:
    """Return the kinds of the findings."""
    return {finding.kind for finding in inspection.findings}
