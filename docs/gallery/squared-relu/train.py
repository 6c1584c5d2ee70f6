"""An MLP whose activation squares: under fp16 autocast a value beyond 256 squares to infinity."""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        h = F.relu(self.up(x))
        return x + self.down(h * h)  # fault: fp16 ends at 65504, and 256 squared is beyond it


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.blocks(x))


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(8, 32, generator=draw)
        if step == 17:
            x[5] *= 600  # an outlier that nobody clipped
        yield x, torch.randint(4, (8,), generator=draw)
        step += 1


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data = Net(), batches()
    adam = optimizer(model)
    for _ in range(10):
        adam.zero_grad()
        loss(model, next(data)).backward()
        adam.step()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict(), "step": 10}, "ckpt.pt")
