"""Character model with a GRU. Three batches in a row come from a shard that a decompressor mangled."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["bad-sample"],
    "kind": ["loss-spike", "divergence"],
    "step": 92,
    "phase": ["batch", "forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}

TEXT = (
    "the quick brown fox jumps over the lazy dog while a small grey cat looks on from the wall and the old man in the "
    "garden reads his paper and says that it will rain again before the evening comes to the valley by the river "
) * 3
CHARS = sorted(set(TEXT))
IDS = torch.tensor([CHARS.index(c) for c in TEXT])


class CharGRU(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(len(CHARS), 16)
        self.gru = nn.GRU(16, 48, batch_first=True)
        self.head = nn.Linear(48, len(CHARS))

    def forward(self, x):
        return self.head(self.gru(self.emb(x))[0])


def build_model():
    return CharGRU()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(350 + step)
        at = torch.randint(len(IDS) - 21, (16,), generator=g)
        x = torch.stack([IDS[a : a + 21] for a in at])
        if FAULTY and 92 <= step <= 94:
            x = torch.randint(len(CHARS), x.shape, generator=g)
        yield x
        step += 1


def compute_loss(model, x):
    return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(80), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 80}
