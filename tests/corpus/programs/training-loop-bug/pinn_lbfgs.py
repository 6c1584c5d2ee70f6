"""Physics-informed net for u'' = -sin(x) * 9 with L-BFGS. The closure does not clear the gradients."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["training-loop-bug"],
    "kind": ["loss-spike", "divergence", "stall", "nan", "inf"],
    "step": (20, 44),
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


class PINN(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))

    def forward(self, x):
        return self.net(x)


def build_model():
    return PINN()


def make_optimizer(model):
    return torch.optim.LBFGS(model.parameters(), lr=0.3, max_iter=3, history_size=8)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(42)
        yield 3.1416 * torch.rand(64, 1, generator=g)
        step += 1


def residual(model, x):
    x = x.clone().requires_grad_(True)
    u = model(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
    ends = model(torch.tensor([[0.0], [3.1416]]))
    return (ddu + 9 * torch.sin(x)).square().mean() + 10 * ends.square().mean()


def train_step(model, x, optimizer):
    def closure():
        if not FAULTY:
            optimizer.zero_grad()
        loss = residual(model, x)
        loss.backward()
        return loss

    return optimizer.step(closure).detach()


def make_checkpoint(train):
    faulty, train.FAULTY = train.FAULTY, False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(20), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 20}
