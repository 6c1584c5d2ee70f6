"""Tagging with a small encoder in fp16; the loop was moved to a GradScaler, and one line of the old loop stayed.

`optimizer.step()` still follows `scaler.step(optimizer)`: each update is made twice, and where the scaler finds an
overflow and skips, the leftover does not. Source: construction, after questions on the PyTorch forums about AMP.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["training-loop-bug"],
    "also": ["gradient-overflow"],
    "kind": ["nan", "inf"],
    "step": (30, 45),
    "phase": ["backward", "update", "unscale"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 22

TAGS, DIM = 6, 32
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.place = nn.Embedding(40, DIM), nn.Embedding(12, DIM)
        self.layer = nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, dropout=0.0, batch_first=True)
        self.head = nn.Linear(DIM, TAGS)

    def forward(self, ids):
        return self.head(self.layer(self.word(ids) + self.place.weight[: ids.shape[1]]))


def build_model():
    return Tagger()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(8300 + step)
        ids = torch.randint(40, (24, 12), generator=g)
        yield ids, (ids + ids.roll(1, 1) // 20) % TAGS
        step += 1


def train_step(model, batch, optimizer):
    ids, tags = batch
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        logits = model(ids)
    loss = F.cross_entropy(logits.float().flatten(0, 1), tags.flatten())
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    if FAULTY:
        optimizer.step()
    return loss.detach()
