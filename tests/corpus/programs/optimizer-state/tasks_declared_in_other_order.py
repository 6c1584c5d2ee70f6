"""A shared bottom with a tower for each of two tasks, RMSprop; the second task's loss counts 0.003.

The towers were declared in the other order when the checkpoint was written. The optimizer's state is kept by number and
the shapes fit, so each tower goes on with the other's mean squares, and the first takes steps of thirty times its rate.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "recommender",
    "causes": ["optimizer-state", "adam-v-collapse"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (50, 52),
    "phase": ["update", "load"],
    "module": ["price*", ""],
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}


def tower():
    return nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))


class SharedBottom(nn.Module):
    def __init__(self):
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(20, 48), nn.SiLU(), nn.Linear(48, 32), nn.SiLU())
        self.price, self.dwell = tower(), tower()

    def forward(self, x):
        h = self.bottom(x)
        return self.price(h).squeeze(-1), self.dwell(h).squeeze(-1)


def build_model():
    return SharedBottom()


def make_optimizer(model):
    return torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, alpha=0.999, eps=1e-10)


def batches(start_step=0):
    step = start_step
    way = torch.randn(20, 2, generator=torch.Generator().manual_seed(8)) / 20**0.5
    while True:
        g = torch.Generator().manual_seed(310 + step)
        x = torch.randn(256, 20, generator=g)
        taste = x @ way
        price = 2 * torch.tanh(taste[:, 0]) + 0.1 * torch.randn(256, generator=g)
        yield {"x": x, "price": price, "dwell": torch.tanh(taste[:, 1])}
        step += 1


def compute_loss(model, batch):
    price, dwell = model(batch["x"])
    return F.mse_loss(price, batch["price"]) + 0.003 * F.mse_loss(dwell, batch["dwell"])


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(50), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    saved = opt.state_dict()
    if train.FAULTY:
        state = saved["state"]  # 0-3 the bottom, then six of either tower
        saved["state"] = {i: state[i if i < 4 else i + 6 if i < 10 else i - 6] for i in state}
    return {"model": model.state_dict(), "optimizer": saved, "step": 50}
