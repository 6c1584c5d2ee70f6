"""A critic that is updated twice before its generator, with a penalty on its slope and clamped weights; in fp16 with a
scaler; a real sample of the ninth update of the critic, in step 4, is NaN. Gradients are clipped by their largest element,
zeroed and damped by hand; two random generators are the script's own."""

import argparse
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=32)
arguments = parser.parse_args()


def mlp(*widths):
    return nn.Sequential(
        *[m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2), nn.Dropout(0.1))]
    )


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = mlp(4, arguments.width, 2), nn.BatchNorm1d(2)
        self.own = torch.Generator().manual_seed(5)

    def forward(self, z):
        return self.norm(self.net(z) + 0.01 * torch.randn(2, generator=self.own))


def slope(critic, real, fake):
    between = torch.lerp(real, fake.float(), torch.rand(8, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.float().norm(dim=1) - 1).square().mean()


def train():
    torch.manual_seed(0)
    generator, critic = Generator(), mlp(2, 8, 1)
    of_g, of_c = torch.optim.Adam(generator.parameters(), 1e-3), torch.optim.RMSprop(critic.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(of_g, 1e-3, total_steps=9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
    generator(torch.randn(8, 4))
    noise = torch.Generator().manual_seed(7)
    for update in range(12):
        real = torch.randn(8, 2)
        if update == 8:
            real[1, 0] = float("nan")
        with torch.autocast("cpu", torch.float16):
            with torch.no_grad():
                fake = generator(torch.randn(8, 4))
                fake = fake + 0.1 * torch.empty_like(fake).normal_(generator=noise)
            loss = critic(fake).mean() - critic(real).mean() + 10 * slope(critic, real, fake)
        of_c.zero_grad(set_to_none=False)
        scaler.scale(loss).backward()
        scaler.unscale_(of_c)
        clip_grad_norm_(critic.parameters(), 0.01, float("inf"), foreach=False)
        scaler.step(of_c)
        for weight in critic.parameters():
            weight.data.clamp_(-0.5, 0.5)
        if update % 2:
            critic.requires_grad_(False)
            with torch.autocast("cpu", torch.float16):
                loss = -critic(generator(torch.randn(8, 4))).mean()
            for weight in generator.parameters():
                if weight.grad is not None:
                    weight.grad.detach_().zero_()
            scaler.scale(loss).backward()
            for weight in generator.parameters():
                weight.grad.mul_(0.5)
            scaler.step(of_g)
            schedule.step()
            critic.requires_grad_(True)
        scaler.update()


if __name__ == "__main__":
    train()
