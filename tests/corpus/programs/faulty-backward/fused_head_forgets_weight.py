"""A playlist model with two losses: the next track, by a fused and chunked cross-entropy, and the listening time.

The fused head computes its gradients in the forward pass, to keep no logits, and its backward hands them out as they
are, without the gradient that comes in: the weight of 0.02 on this term is in the loss but not in the gradients.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["faulty-backward"],
    "kind": ["divergence", "loss-spike", "mismatch", "nan", "inf"],
    "step": (30, 44),
    "phase": ["backward"],
    "line": ["return dh, dw, None", "return dh * g, dw * g, None"],
    "samples": [],
}
CONFIG = {"train": {"steps": 36}}
BEFORE = 30


class FusedHead(torch.autograd.Function):
    """Mean cross-entropy of h @ w.T, 64 rows at a time."""

    @staticmethod
    def forward(ctx, h, w, target):
        dh, dw, total = torch.empty_like(h), torch.zeros_like(w), h.new_zeros(())
        for rows in torch.arange(len(h)).split(64):
            logp = (h[rows] @ w.T).log_softmax(-1)
            total += F.nll_loss(logp, target[rows], reduction="sum")
            d = logp.exp()
            d[torch.arange(len(rows)), target[rows]] -= 1
            d /= len(h)
            dh[rows] = d @ w
            dw += d.T @ h[rows]
        ctx.save_for_backward(dh, dw)
        return total / len(h)

    @staticmethod
    def backward(ctx, g):
        dh, dw = ctx.saved_tensors
        if FAULTY:
            return dh, dw, None
        return dh * g, dw * g, None


class Playlist(nn.Module):
    def __init__(self, tracks=40, d=24):
        super().__init__()
        self.emb = nn.Embedding(tracks, d)
        self.conv = nn.Conv1d(d, d, 3)
        self.ff = nn.Sequential(nn.Linear(d, 48), nn.ReLU(), nn.Linear(48, d))
        self.head = nn.Parameter(torch.randn(tracks, d) * 0.05)
        self.time = nn.Linear(d, 1)

    def forward(self, ids):
        h = self.conv(F.pad(self.emb(ids).transpose(1, 2), (2, 0))).transpose(1, 2)
        return h + self.ff(h)


def build_model():
    return Playlist()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)


def batches(start_step=0):
    step = start_step
    after = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    length = torch.rand(40, generator=torch.Generator().manual_seed(4)) * 2 - 1
    while True:
        g = torch.Generator().manual_seed(880 + step)
        ids = torch.randint(40, (16, 12), generator=g)
        for i in range(1, 12):
            ids[:, i] = torch.where(torch.rand(16, generator=g) < 0.7, after[ids[:, i - 1]], ids[:, i])
        yield ids[:, :-1], ids[:, 1:], length[ids[:, :-1]]
        step += 1


def compute_loss(model, batch):
    ids, following, seconds = batch
    h = model(ids)
    track = FusedHead.apply(h.flatten(0, 1), model.head, following.flatten())
    return 0.02 * track + 0.02 * F.mse_loss(model.time(h).squeeze(-1), seconds)
