"""A small language model, resumed from a checkpoint whose second moments were saved in 8 bits without a scale.

E5M2 makes zero of what lies below 8e-6, and that is nearly all of them; the first moments are all there.
Source: construction, after torchao's and optax's notes on moments in few bits.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["adam-v-collapse", "optimizer-state"],
    "kind": ["loss-spike", "divergence"],
    "step": (150, 153),
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


class LM(nn.Module):
    def __init__(self, vocab=24, d=24):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, d), nn.Embedding(16, d)
        self.block = nn.TransformerEncoderLayer(d, 2, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.out = nn.Linear(d, vocab)

    def forward(self, ids):
        t = ids.shape[1]
        ahead = torch.ones(t, t, dtype=torch.bool).triu(1)
        return self.out(self.block(self.tok(ids) + self.pos.weight[:t], src_mask=ahead))


def build_model():
    return LM()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    after = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    while True:
        g = torch.Generator().manual_seed(step)
        rows = [torch.randint(24, (24,), generator=g)]
        for _ in range(12):
            slip = torch.rand(24, generator=g) < 0.05
            rows.append(torch.where(slip, torch.randint(24, (24,), generator=g), after[rows[-1]]))
        yield torch.stack(rows, 1)
        step += 1


def compute_loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(150), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        for s in opt.state.values():
            s["exp_avg_sq"] = s["exp_avg_sq"].to(torch.float8_e5m2).float()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 150}
