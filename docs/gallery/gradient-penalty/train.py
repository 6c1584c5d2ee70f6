"""A GAN with a gradient penalty, two optimizers and a loop of its own. A dead critic has a gradient of zero norm."""

import torch
from torch import nn


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 8))
        self.critic = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 1))


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        real = torch.randn(8, 8, generator=draw)
        if step == 17:
            real[3] = -1e4 * torch.ones(8)  # far away, where every ReLU of the critic is shut
        yield real, torch.randn(8, 4, generator=draw)
        step += 1


def penalty(critic, real):
    point = real.clone().requires_grad_()
    (slope,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return (slope.square().sum(1).sqrt() - 1).square().mean()  # fault: the slope of a root at zero


def optimizer(model):
    return {
        "critic": torch.optim.Adam(model.critic.parameters(), lr=1e-3),
        "generator": torch.optim.Adam(model.generator.parameters(), lr=1e-3),
    }


def train_step(model, batch, optimizers):
    real, noise = batch
    optimizers["critic"].zero_grad()
    fake = model.generator(noise)
    critic = model.critic(fake.detach()).mean() - model.critic(real).mean() + 10 * penalty(model.critic, real)
    critic.backward()
    optimizers["critic"].step()
    optimizers["generator"].zero_grad()
    (-model.critic(fake).mean()).backward()
    optimizers["generator"].step()
    return critic.detach()


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data = GAN(), batches()
    with torch.no_grad():
        model.critic[0].weight.abs_()
        model.critic[0].bias.fill_(4.0)
    both = optimizer(model)
    for _ in range(10):
        train_step(model, next(data), both)
    state = {"model": model.state_dict(), "step": 10}
    torch.save(state | {f"{name}_optimizer": o.state_dict() for name, o in both.items()}, "ckpt.pt")
