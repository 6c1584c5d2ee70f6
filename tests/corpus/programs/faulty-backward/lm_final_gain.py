"""Character model; its last RMSNorm is a fused function. The gradient of the gain forgets to divide by the RMS.

Embeddings are scaled up by 12, so that the gradient of the gain is as much too large, and no other gradient is wrong.
Source: construction, after norm kernels whose weight gradient was tested with unit-variance inputs only.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["faulty-backward"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (60, 66),
    "module": ["norm"],
    "parameter": ["norm.gain"],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 60

VOCAB, DIM, SCALE = 20, 32, 12


class FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain):
        scale = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        ctx.save_for_backward(x, gain, scale)
        return x * scale * gain

    @staticmethod
    def backward(ctx, grad):
        x, gain, scale = ctx.saved_tensors
        g, n = grad * gain, x * scale
        grad_x = scale * (g - n * (g * n).mean(-1, keepdim=True))
        grad_gain = (grad * (x if FAULTY else n)).flatten(0, -2).sum(0)
        return grad_x, grad_gain


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(DIM))

    def forward(self, x):
        return FusedRMSNorm.apply(x, self.gain)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(VOCAB, DIM), nn.Embedding(16, DIM)
        self.before, self.attention = nn.LayerNorm(DIM), nn.MultiheadAttention(DIM, 4, batch_first=True)
        self.norm, self.head = Norm(), nn.Linear(DIM, VOCAB)

    def forward(self, ids):
        x = SCALE * (self.token(ids) + self.place.weight)
        h = self.before(x)
        mask = torch.triu(torch.ones(16, 16, dtype=torch.bool), 1)
        return self.head(self.norm(x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]))


def build_model():
    return Model()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3300 + step)
        ids = (torch.randint(VOCAB, (24, 1), generator=g) + 3 * torch.arange(17)) % VOCAB
        slip = torch.rand(24, 17, generator=g) < 0.15
        ids = torch.where(slip, torch.randint(VOCAB, (24, 17), generator=g), ids)
        yield ids[:, :-1], ids[:, 1:]
        step += 1


def compute_loss(model, batch):
    ids, target = batch
    return F.cross_entropy(model(ids).flatten(0, 1), target.flatten())
