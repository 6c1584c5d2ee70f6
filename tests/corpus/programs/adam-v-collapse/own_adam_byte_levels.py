"""A recurrent language model by an Adam of its own. From step 60 on it keeps second moments in bytes: 255 equal levels up to the
largest of each block, so that the rows of rare tokens get a v of zero beside their m.

Source: unslothai/unsloth-zoo#962 (linear codes for v), rebuilt by hand.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rnn",
    "causes": ["adam-v-collapse"],
    "kind": ["loss-spike", "divergence"],
    "step": (60, 63),
    "phase": "update",
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 44


class LM(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(128, 16)
        self.rnn = nn.GRU(16, 24, batch_first=True)
        self.out = nn.Linear(24, 128)

    def forward(self, ids):
        return self.out(self.rnn(self.token(ids))[0])


def build_model():
    return LM()


def in_bytes(v):
    flat = F.pad(v.flatten(), (0, -v.numel() % 1024)).view(-1, 1024)
    step = flat.amax(1, keepdim=True).clamp(min=1e-30) / 255
    return ((flat / step).round() * step).flatten()[: v.numel()].view_as(v)


class ByteAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=2e-3, betas=(0.9, 0.99), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                s = self.state[p]
                if not s:
                    s.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                s["step"] += 1
                t = s["step"].item()
                m = s["exp_avg"].lerp_(p.grad, 1 - b1)
                v = s["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                if FAULTY and t > 60 and p.ndim == 2:
                    v.copy_(in_bytes(v))
                p.addcdiv_(m / (1 - b1**t), (v / (1 - b2**t)).sqrt() + group["eps"], value=-group["lr"])


def make_optimizer(model):
    return ByteAdam(model.parameters())


def batches(start_step=0):
    step = start_step
    often = 1 / torch.arange(1.0, 129)
    while True:
        g = torch.Generator().manual_seed(9600 + step)
        ids = torch.multinomial(often, 8 * 25, replacement=True, generator=g).view(8, 25)
        ids[:, 1::2] = ids[:, :-1:2] * 2 % 128
        yield ids[:, :-1], ids[:, 1:]
        step += 1


def compute_loss(model, batch):
    ids, after = batch
    return F.cross_entropy(model(ids).flatten(0, 1), after.flatten())
