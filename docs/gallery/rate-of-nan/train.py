"""A decay that ends: beyond its last step the learning rate is the root of a negative number."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

TOTAL = 20


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        yield torch.randn(8, 10, generator=draw), torch.randint(3, (8,), generator=draw)
        step += 1


def model():
    return nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Linear(32, 3))


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def scheduler(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.sqrt(1 - step / TOTAL))  # fault: beyond TOTAL


if __name__ == "__main__":
    torch.manual_seed(0)
    net, data = model(), batches()
    adam = optimizer(net)
    decay = scheduler(adam)
    for _ in range(10):
        adam.zero_grad()
        loss(net, next(data)).backward()
        adam.step()
        decay.step()
    state = {"model": net.state_dict(), "optimizer": adam.state_dict(), "scheduler": decay.state_dict(), "step": 10}
    torch.save(state, "ckpt.pt")
