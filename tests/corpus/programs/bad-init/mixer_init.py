"""MLP-mixer on character windows, from scratch. The init of all linear layers was set to std 1."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["bad-init"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (0, 3),
    "phase": ["load", "forward"],
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}

VOCAB, CTX, DIM = 30, 8, 48


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.tokens = nn.Sequential(nn.Linear(CTX, 16), nn.GELU(), nn.Linear(16, CTX))
        self.channels = nn.Sequential(nn.Linear(DIM, 96), nn.GELU(), nn.Linear(96, DIM))

    def forward(self, x):
        x = x + self.tokens(self.n1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.n2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.Sequential(Mix(), Mix(), Mix())
        self.head = nn.Linear(DIM, VOCAB)

    def forward(self, x):
        return self.head(self.blocks(self.emb(x)).mean(1))


def build_model():
    model = Mixer()
    std = 1.0 if FAULTY else 0.02
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Embedding)):
            nn.init.normal_(m.weight, std=std)
    return model


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


RULE = torch.randint(VOCAB, (VOCAB,), generator=torch.Generator().manual_seed(6))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        x = torch.randint(VOCAB, (48, CTX), generator=g)
        yield x, RULE[x[:, -1]]
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    """The run's first checkpoint: written before step 0."""
    torch.manual_seed(0)
    model = train.build_model()
    return {"model": model.state_dict(), "step": 0}
