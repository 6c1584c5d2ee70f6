"""Keyword spotting on filterbank frames; each frame attends to the frames around it, padding excluded.

A frame deep in the padding of a short clip has no neighbour left. Its NaN is multiplied by the pooling mask's zero.
Source: construction, after sliding-window attention with -inf biases.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "audio",
    "causes": ["fully-masked-softmax"],
    "kind": ["nan"],
    "step": 20,
    "phase": ["forward"],
    "module": ["blocks.0"],
    "op": ["aten._softmax"],
    "line": ["att = torch.softmax(scores + bias[:, None], -1)"],
    "samples": [7],
}
CONFIG = {"train": {"steps": 16}}
BEFORE = 13

WINDOW = 4


class LocalBlock(nn.Module):
    def __init__(self, d, heads=2):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.ff = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def forward(self, x, bias):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3 * self.heads, -1).transpose(1, 2).chunk(3, 1)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * (d // self.heads) ** -0.5
        att = torch.softmax(scores + bias[:, None], -1)
        x = x + self.proj((att @ v).transpose(1, 2).reshape(b, t, d))
        return x + self.ff(x)


class Spotter(nn.Module):
    def __init__(self, mels=10, d=24, words=4):
        super().__init__()
        self.front = nn.Conv1d(mels, d, 3, padding=1)
        self.blocks = nn.ModuleList(LocalBlock(d) for _ in range(2))
        self.head = nn.Linear(d, words)

    def forward(self, frames, length):
        x = F.relu(self.front(frames)).transpose(1, 2)
        t = torch.arange(x.shape[1])
        real = t < length[:, None]
        near = (t[:, None] - t).abs() <= WINDOW
        allowed = near & real[:, None, :]
        if not FAULTY:
            allowed = allowed | torch.eye(len(t), dtype=torch.bool)
        bias = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
        for block in self.blocks:
            x = block(x, bias)
        pooled = (x * real.unsqueeze(-1)).sum(1) / length[:, None]
        return self.head(pooled)


def build_model():
    return Spotter()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


WORD = torch.randn(4, 10, 6, generator=torch.Generator().manual_seed(77))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(660 + step)
        y = torch.randint(4, (10,), generator=g)
        length = torch.randint(20, 25, (10,), generator=g)
        length[0] = 24
        if step == 20:
            length[7] = 14
        frames = 0.5 * torch.randn(10, 10, 24, generator=g)
        frames[:, :, 3:9] += WORD[y]
        frames = frames * (torch.arange(24) < length[:, None, None])
        yield frames, length, y
        step += 1


def compute_loss(model, batch):
    frames, length, y = batch
    return F.cross_entropy(model(frames, length), y)
