"""Decoder that looks up keys in its context (associative recall), bf16 autocast, attention written by hand.

The rewrite from nn.MultiheadAttention forgot 1 / sqrt(d): the scores are 8 times as large, and so is the step that an update
of W_q or W_k makes in them. They grow until the softmax is one-hot. Source: stanford-crfm/mistral#67 (scaling of q.k).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["attention-logit-growth"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (44, 54),
    "samples": [],
}
CONFIG = {"train": {"steps": 26}, "precision": {"autocast": "bf16"}}
BEFORE = 38

KEYS, VALUES, PAIRS, DIM = 12, 8, 6, 64
LR, SMOOTH = 0.04, 0.02


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.v, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        scores = q @ k.transpose(-2, -1)
        if not FAULTY:
            scores = scores / DIM**0.5
        future = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        weights = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
        return self.out(weights @ v)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.value = nn.Embedding(KEYS, DIM), nn.Embedding(VALUES + 1, DIM)
        self.ln1, self.attn = nn.LayerNorm(DIM), Attention()
        self.ln2, self.mlp = nn.LayerNorm(DIM), nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
        self.head = nn.Linear(DIM, VALUES)

    def forward(self, keys, values):
        x = self.key(keys) + self.value(values)
        x = x + self.attn(self.ln1(x))
        x = x + self.mlp(self.ln2(x))
        return self.head(x[:, -1])


def build_model():
    return Decoder()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(6000 + step)
        keys = torch.rand(64, KEYS, generator=g).argsort(1)[:, :PAIRS]
        values = torch.randint(VALUES, (64, PAIRS), generator=g)
        asked = torch.randint(PAIRS, (64, 1), generator=g)
        unknown = torch.full((64, 1), VALUES)
        yield (
            torch.cat([keys, keys.gather(1, asked)], 1),
            torch.cat([values, unknown], 1),
            values.gather(1, asked).squeeze(1),
        )
        step += 1


def compute_loss(model, batch):
    keys, values, answer = batch
    return F.cross_entropy(model(keys, values), answer, label_smoothing=SMOOTH)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = train.compute_loss(model, batch)
        loss.backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
