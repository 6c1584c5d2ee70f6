"""Two networks with an optimizer each; a real sample of step 4 is NaN."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


def mlp(*widths):
    return nn.Sequential(*[m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.LeakyReLU(0.2))])


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(4, 32, 2)

    def forward(self, z):
        return self.net(z)


def train():
    torch.manual_seed(0)
    generator, discriminator = Generator(), mlp(2, 8, 1)
    of_g = torch.optim.Adam(generator.parameters(), 1e-3)
    of_d = torch.optim.Adam(discriminator.parameters(), 1e-3)
    one, zero = torch.ones(8, 1), torch.zeros(8, 1)
    for step in range(6):
        real = torch.randn(8, 2)
        if step == 4:
            real[1, 0] = float("nan")
        fake = generator(torch.randn(8, 4))
        of_d.zero_grad()
        loss = F.binary_cross_entropy_with_logits(discriminator(real), one)
        loss = loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zero)
        loss.backward()
        of_d.step()
        of_g.zero_grad()
        F.binary_cross_entropy_with_logits(discriminator(fake), one).backward()
        of_g.step()


if __name__ == "__main__":
    train()
