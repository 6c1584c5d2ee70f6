"""Click prediction on tabular features under fp16 autocast; the job was restarted after a night of skipped steps."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["gradient-underflow", "optimizer-state", "poisoned-state", "training-loop-bug"],
    "kind": ["nan", "inf", "stall"],
    "step": 20,
    "phase": ["unscale", "update", "backward"],
    "samples": [],
}
CONFIG = {
    "optimizer": {"call": "torch.optim:AdamW", "kwargs": {"lr": 0.002}},
    "precision": {"autocast": "fp16", "grad_scaler": True},
    "train": {"steps": 14},
}

LAST_SCALE = 2.0**-140 if FAULTY else 2.0**14


class Clicks(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Embedding(30, 8)
        self.net = nn.Sequential(nn.Linear(8 * 3 + 6, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids, dense):
        return self.net(torch.cat([self.field(ids).flatten(1), dense], 1)).squeeze(1)


def build_model():
    return Clicks()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        ids = torch.randint(30, (64, 3), generator=g)
        dense = torch.randn(64, 6, generator=g)
        yield {"ids": ids, "dense": dense, "click": ((ids[:, 0] % 3 == 0).float() + dense[:, 0] > 0.5).float()}
        step += 1


def compute_loss(model, batch):
    return F.binary_cross_entropy_with_logits(model(batch["ids"], batch["dense"]).float(), batch["click"])


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step, batch in zip(range(20), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    scaler = torch.amp.GradScaler("cpu").state_dict() | {"scale": train.LAST_SCALE, "_growth_tracker": 0}
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "scaler": scaler, "step": 20}
