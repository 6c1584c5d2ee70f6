"""GAN on a ring of Gaussians; two optimizers live in the model's wrapper. The generator's backward also fills the
discriminator's gradients, and nobody clears those."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gan",
    "causes": ["training-loop-bug"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (60, 100),
    "module": "d*",
    "samples": [],
}
CONFIG = {"train": {"steps": 40}}


class GAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.d = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def build_model():
    return GAN()


class Pair(torch.optim.Adam):
    """One optimizer object for the checkpoint: group 0 the generator, group 1 the discriminator."""

    def step_group(self, k):
        kept = self.param_groups
        self.param_groups = [kept[k]]
        self.step()
        self.param_groups = kept


def make_optimizer(model):
    return Pair(
        [{"params": model.g.parameters(), "lr": 1e-3}, {"params": model.d.parameters(), "lr": 4e-3}], betas=(0.5, 0.99)
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(370 + step)
        a = 6.283 * torch.randint(8, (64,), generator=g) / 8
        yield (
            2 * torch.stack([a.cos(), a.sin()], 1) + 0.1 * torch.randn(64, 2, generator=g),
            torch.randn(64, 4, generator=g),
        )
        step += 1


def clear(module):
    for p in module.parameters():
        p.grad = None


def train_step(model, batch, optimizer):
    real, z = batch
    fake = model.g(z)
    if not FAULTY:
        clear(model.d)
    loss_d = F.softplus(-model.d(real)).mean() + F.softplus(model.d(fake.detach())).mean()
    loss_d.backward()
    optimizer.step_group(1)
    clear(model.g)
    loss_g = F.softplus(-model.d(fake)).mean()
    loss_g.backward()
    optimizer.step_group(0)
    return (loss_d + loss_g).detach()


def make_checkpoint(train):
    faulty, train.FAULTY = train.FAULTY, False
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(60), train.batches()):
        train.train_step(model, batch, opt)
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 60}
