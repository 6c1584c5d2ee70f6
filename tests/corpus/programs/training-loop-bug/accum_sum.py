"""Two-layer message passing for molecules' energies. The step accumulates over micro-batches by itself; the division by
their number was lost, and the number went from 2 to 16 when the GPUs became fewer."""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "mlp",
    "causes": ["training-loop-bug", "learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (50, 55),
    "samples": [],
}
CONFIG = {"train": {"steps": 30}}


class MPNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.atom = nn.Embedding(5, 16)
        self.msg = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.read = nn.Linear(16, 1)

    def forward(self, z, adj):
        h = self.atom(z)
        for m in self.msg:
            h = h + torch.tanh(m(adj @ h))
        return self.read(h).mean((1, 2))


def build_model():
    return MPNN()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


E = torch.randn(5, generator=torch.Generator().manual_seed(39))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(390 + step)
        micro = []
        for _ in range(2 if step < 50 else 16):
            z = torch.randint(5, (8, 6), generator=g)
            a = (torch.rand(8, 6, 6, generator=g) < 0.4).float()
            a = ((a + a.transpose(1, 2)) > 0).float()
            e = (E[z] * (1 + 0.3 * (a @ E[z][..., None]).squeeze(2))).mean(1) + 2.0
            micro.append((z, a / 3, e))
        yield micro
        step += 1


def train_step(model, micro, optimizer):
    optimizer.zero_grad()
    total = 0.0
    for z, adj, e in micro:
        loss = (model(z, adj) - e).square().mean()
        (loss if FAULTY else loss / len(micro) * 2).backward()
        total += float(loss.detach())
    optimizer.step()
    return total / len(micro)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(38), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 38}
