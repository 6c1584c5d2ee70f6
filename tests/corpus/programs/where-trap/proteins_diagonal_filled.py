"""Contact maps: distances to oneself are roots of zero once the smoothing ends, and are filled behind a transpose."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "graph",
    "causes": ["where-trap"],
    "kind": ["nan"],
    "step": 9,
    "phase": ["backward"],
    "op": ["aten.div", "aten.sqrt"],
    "line": ["d = d2.sqrt()"],
    "module": ["pairs"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}

RESIDUES = 7


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("own", torch.eye(RESIDUES, dtype=torch.bool))

    def forward(self, xyz, apart):
        d2 = (xyz[:, :, None] - xyz[:, None]).square().sum(-1) + apart
        if not FAULTY:
            d2 = d2.masked_fill(self.own, 1.0)
        d = d2.sqrt()
        d = (d / 4).transpose(1, 2)
        return torch.exp(-d).masked_fill(self.own, 0.0)


class Contacts(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Sequential(nn.Linear(5, 32), nn.GELU(), nn.Linear(32, 3))
        self.pairs = Pairs()

    def forward(self, kinds, apart):
        return self.pairs(self.place(kinds), apart)


def build_model():
    torch.manual_seed(13)
    return Contacts()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(40 + step)
        kinds = torch.randn(6, RESIDUES, 5, generator=g)
        apart = 1e-3 if step < 9 else 0.0  # the smoothing ends with the warm-up
        yield {
            "kinds": kinds,
            "apart": torch.full((6, 1, 1), apart),
            "y": torch.rand(6, RESIDUES, RESIDUES, generator=g),
        }
        step += 1


def compute_loss(model, batch):
    out = model(batch["kinds"], batch["apart"])
    return (out - batch["y"]).square().mean()
