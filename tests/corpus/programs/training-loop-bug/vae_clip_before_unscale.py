"""VAE on 8x8 blobs with an own GradScaler. The optimizer is SGD with momentum."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "vae",
    "causes": ["training-loop-bug"],
    "kind": ["stall"],
    "step": (30, 50),
    "phase": ["clip", "update", "unscale"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}

scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(64, 48)
        self.mu, self.logvar = nn.Linear(48, 6), nn.Linear(48, 6)
        self.dec = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 64))

    def forward(self, x):
        h = F.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h).clamp(-6, 6)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        return self.dec(z), mu, logvar


def build_model():
    return VAE()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)


def batches(start_step=0):
    step = start_step
    yy, xx = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    while True:
        g = torch.Generator().manual_seed(70 + step)
        c = 1 + 6 * torch.rand(32, 2, generator=g)
        d = (yy - c[:, 0, None, None]) ** 2 + (xx - c[:, 1, None, None]) ** 2
        yield (-d / 3).exp().flatten(1)
        step += 1


def elbo(model, x):
    recon, mu, logvar = model(x)
    bce = F.binary_cross_entropy_with_logits(recon.float(), x, reduction="none").sum(1)
    kl = 0.5 * (mu.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).sum(1)
    return (bce + 0.5 * kl).mean()


def train_step(model, x, optimizer):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = elbo(model, x)
    scaler.scale(loss).backward()
    if not FAULTY:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


def make_checkpoint(train):
    train.FAULTY = False  # the part before the refactoring
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(30), train.batches()):
        train.train_step(model, batch, opt)
    for s in opt.state.values():  # momentum has died down over a validation break
        s["momentum_buffer"].zero_()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 30}
