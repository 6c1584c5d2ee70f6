"""Meta-SGD (MAML with learned inner rates) on sine tasks. After 40 iterations the inner loop goes from 2 to 10 steps.

The meta-gradient is a product of ten Jacobians now, and plain SGD on it has no clipping. Source: construction, after the
instabilities that "How to train your MAML" (Antoniou et al. 2019) describes.
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "meta",
    "causes": ["gradient-explosion", "learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (41, 43),
    "samples": [],
}
CONFIG = {"train": {"steps": 13}}
MENDED = {"train": {"steps": 13, "clip_grad_norm": 0.5}}
BEFORE = 33

DEEPER = 40


class MetaSGD(nn.Module):
    """A small net whose weights are adapted for all tasks at once: one copy per task in the first dimension."""

    def __init__(self, d=24):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, d), nn.Tanh(), nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 1))
        self.rates = nn.ParameterList([torch.full_like(p, 0.15) for p in self.net.parameters()])

    @staticmethod
    def predict(weights, x):
        w1, b1, w2, b2, w3, b3 = weights
        h = torch.tanh(x @ w1.mT + b1.unsqueeze(1))
        h = torch.tanh(h @ w2.mT + b2.unsqueeze(1))
        return h @ w3.mT + b3.unsqueeze(1)

    def adapted(self, x, y, inner_steps):
        weights = [p.expand(len(x), *p.shape) for p in self.net.parameters()]
        for _ in range(inner_steps):
            loss = (self.predict(weights, x) - y).square().mean((1, 2)).sum()
            grads = torch.autograd.grad(loss, weights, create_graph=True)
            weights = [w - rate * g for w, rate, g in zip(weights, self.rates, grads)]
        return weights


def build_model():
    return MetaSGD()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        amplitude = 0.5 + 2 * torch.rand(6, 1, 1, generator=g)
        phase = 3 * torch.rand(6, 1, 1, generator=g)
        x = 6 * torch.rand(6, 20, 1, generator=g) - 3
        yield x, amplitude * torch.sin(x + phase), 2 if step < DEEPER else 10
        step += 1


def compute_loss(model, batch):
    x, y, inner_steps = batch
    weights = model.adapted(x[:, :10], y[:, :10], inner_steps)
    return (model.predict(weights, x[:, 10:]) - y[:, 10:]).square().mean()


def make_checkpoint(train):
    """With two inner steps, training needs no clip."""
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
