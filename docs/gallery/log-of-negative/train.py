"""A regression on log prices. One row of the data was refunded: its price is negative, and its logarithm is NaN."""

import torch
import torch.nn.functional as F
from torch import nn


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        price = torch.rand(16, generator=draw) * 90 + 10
        if step == 14:
            price[11] = -price[11]
        yield {"features": torch.randn(16, 6, generator=draw), "price": price}
        step += 1


def model():
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))


def loss(model, batch):
    target = torch.log(batch["price"])  # fault: nobody checks that a price is positive
    return F.mse_loss(model(batch["features"]).squeeze(-1), target)


def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    net, data = model(), batches()
    adam = optimizer(net)
    for _ in range(10):
        adam.zero_grad()
        loss(net, next(data)).backward()
        adam.step()
    torch.save({"model": net.state_dict(), "optimizer": adam.state_dict(), "step": 10}, "ckpt.pt")
