"""Raw timestamps as a target: every gradient is finite, their norm is not, and the clip multiplies them all by zero."""

import torch
from torch import nn


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        unit = 1.0 if step < 13 else 1e9  # from this shard on the log is in nanoseconds
        x = torch.randn(16, 4, generator=draw) * unit
        yield x, torch.rand(16, 1, generator=draw) * 1e3 * unit
        step += 1


def model():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))


def loss(model, batch):
    x, seconds = batch
    return (model(x) - seconds).square().mean()  # fault: the square of a square of nanoseconds


def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)


if __name__ == "__main__":
    torch.manual_seed(0)
    net, data = model(), batches()
    sgd = optimizer(net)
    for _ in range(10):
        sgd.zero_grad()
        loss(net, next(data)).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        sgd.step()
    torch.save({"model": net.state_dict(), "optimizer": sgd.state_dict(), "step": 10}, "ckpt.pt")
