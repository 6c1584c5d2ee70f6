"""An RMS norm in fp16: the square of a large token is infinite, its inverse root zero, and the token is gone. No NaN."""

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.gain  # fault: x * x in fp16


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(12, 32), RMSNorm(32), nn.Linear(32, 6)
        self.half()

    def forward(self, x):
        return self.head(self.norm(self.embed(x.half()))).float()


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(4, 10, 12, generator=draw)
        if step >= 15:
            x[1, 7] *= 800  # one token of one sample, from here on
        yield x, torch.randint(6, (4, 10), generator=draw)
        step += 1


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-2)


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data = Net(), batches()
    sgd = optimizer(model)
    for _ in range(10):
        sgd.zero_grad()
        loss(model, next(data)).backward()
        sgd.step()
    torch.save({"model": model.state_dict(), "optimizer": sgd.state_dict(), "step": 10}, "ckpt.pt")
