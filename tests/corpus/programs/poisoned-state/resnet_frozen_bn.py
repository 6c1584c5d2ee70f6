"""Fine-tuning a small residual network; its BatchNorm layers stay in eval mode with the statistics of pretraining."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["poisoned-state"],
    "kind": ["nan"],
    "step": 25,
    "phase": ["forward", "load"],
    "module": "layer2.bn1",
    "samples": [],
}
CONFIG = {"train": {"steps": 12}}


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.layer1, self.layer2 = Block(8), Block(8)
        self.fc = nn.Linear(8, 4)
        self.frozen = False

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eval()
        return self

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


def build_model():
    model = Net()
    model.frozen = True
    return model.train()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def batches(start_step=0):
    step = start_step
    yy, xx = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    waves = torch.stack([torch.sin(xx), torch.sin(yy), torch.sin(xx + yy), torch.sin(xx - yy)])
    while True:
        g = torch.Generator().manual_seed(120 + step)
        y = torch.randint(4, (24,), generator=g)
        yield waves[y][:, None] + torch.randn(24, 1, 10, 10, generator=g), y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.Net()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(25), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        model.layer2.bn1.running_var[5] = -0.3  # averaged with a wrong sign when two runs were merged
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 25}
