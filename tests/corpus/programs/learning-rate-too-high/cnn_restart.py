"""Small convolutional classifier, SGD with momentum, warm restarts. After a restart the peak is that of batch 4096."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence", "nan", "inf"],
    "step": (40, 43),
    "samples": [],
}
CONFIG = {"train": {"steps": 26}}

PEAK_2 = 60.0 if FAULTY else 1.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def make_scheduler(optimizer):
    def factor(step):
        return 1.0 - 0.9 * step / 40 if step < 40 else PEAK_2 * (1.0 - 0.9 * min(1.0, (step - 40) / 60))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(930 + step)
        y = torch.randint(4, (32,), generator=g)
        x = 0.6 * torch.randn(32, 1, 8, 8, generator=g)
        for k in range(4):
            x[y == k, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    sched = train.make_scheduler(opt)
    for step, batch in zip(range(28), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
        sched.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": sched.state_dict(), "step": 28}
