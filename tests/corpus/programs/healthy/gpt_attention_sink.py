"""Small language model whose heads rest on the first token: it takes 95 % of the attention, with scores of 30 to 60.

So do pretrained language models: the first token is a sink, its scores are large and do not grow.
Source: construction, after the attention sinks that StreamingLLM describes.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "transformer"}
CONFIG = {"train": {"steps": 14, "clip_grad_norm": 1.0}}
BEFORE = 40

VOCAB, DIM, HEADS, LENGTH = 24, 32, 2, 20


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.up, self.down = nn.Linear(DIM, 64), nn.Linear(64, DIM)

    def heads(self, x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = self.heads(self.q(h)), self.heads(self.k(h)), self.heads(self.v(h))
        scores = q @ k.transpose(-1, -2) / (DIM // HEADS) ** 0.5
        late = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(late, float("-inf")).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VOCAB)
        with torch.no_grad():  # as a pretrained model has it: one large channel marks the first token
            self.embed.weight[0, 0] = 30.0
            for block in self.blocks:
                block.q.bias[:: DIM // HEADS] = 12.0
                block.k.bias[:: DIM // HEADS] = 14.0
                block.k.weight[:: DIM // HEADS, 0] = 0.62
                block.v.weight[:, 0] = 0.0

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build_model():
    torch.manual_seed(14)
    return GPT()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(310 + step)
        ids = torch.zeros(16, LENGTH, dtype=torch.long)
        ids[:, 1] = torch.randint(1, VOCAB, (16,), generator=g)
        for t in range(2, LENGTH):
            jump = torch.randint(1, 4, (16,), generator=g)
            ids[:, t] = (ids[:, t - 1] * 5 + jump) % (VOCAB - 1) + 1
        yield ids
        step += 1


def compute_loss(model, ids):
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
