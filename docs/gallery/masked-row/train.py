"""Attention with a padding mask. A sample without a single token has a row of -inf, and its softmax is 0/0."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x, keep):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.transpose(1, 2) / math.sqrt(24)
        scores = scores.masked_fill(~keep[:, None, :], -math.inf)
        return x + self.out(scores.softmax(dim=-1) @ v)  # fault: no row may be masked throughout


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attention, self.head = nn.Embedding(50, 24), Attention(), nn.Linear(24, 2)

    def forward(self, tokens, keep):
        x = self.attention(self.embed(tokens), keep)
        return self.head((x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1))


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        lengths = torch.randint(3, 13, (8,), generator=draw)
        if step == 16:
            lengths[2] = 0  # an empty document
        yield {
            "tokens": torch.randint(50, (8, 12), generator=draw),
            "keep": torch.arange(12) < lengths[:, None],
            "label": torch.randint(2, (8,), generator=draw),
        }
        step += 1


def loss(model, batch):
    return F.cross_entropy(model(batch["tokens"], batch["keep"]), batch["label"])


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data = Net(), batches()
    adam = optimizer(model)
    for _ in range(10):
        adam.zero_grad()
        loss(model, next(data)).backward()
        adam.step()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict(), "step": 10}, "ckpt.pt")
