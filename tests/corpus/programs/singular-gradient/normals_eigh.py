"""Surface normals by eigh: two equal eigenvalues, for a patch that is a sphere."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["singular-gradient"],
    "kind": ["nan", "inf"],
    "step": 10,
    "phase": ["backward"],
    "line": "vals, vecs = torch.linalg.eigh(cov)",
    "samples": [4],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, pts):
        return torch.sigmoid(self.net(pts)).squeeze(-1)


def build_model():
    torch.manual_seed(18)
    return Weights()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        pts = torch.randn(8, 16, 3, generator=g) * torch.tensor([1.0, 0.6, 0.2])
        if step == BAD:
            pts[4] = pts[4, :1]  # a patch of one point, repeated
        yield pts, F.normalize(torch.randn(8, 3, generator=g) * 0.2 + torch.tensor([0, 0, 1.0]), dim=-1)
        step += 1


def compute_loss(model, batch):
    pts, normal = batch
    w = model(pts)
    c = pts - pts.mean(1, keepdim=True)
    cov = torch.einsum("bn,bni,bnj->bij", w, c, c)
    if not FAULTY:
        cov = cov + torch.diag(torch.tensor([1e-2, 2e-2, 3e-2]))
    vals, vecs = torch.linalg.eigh(cov)
    return (1 - (vecs[:, :, 0] * normal).sum(-1) ** 2).mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
