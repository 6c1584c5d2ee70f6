"""Activations quantised to E4M3 with a fixed scale, which cuts off most of them.

Source: construction, after fixed FP8 scales.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {"family": "mlp", "causes": ["fp8-saturation"], "kind": ["stall"], "step": 12, "phase": ["forward"]}
CONFIG = {"train": {"steps": 24}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(1000 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(middle(self.first(x)))


def build_model():
    torch.manual_seed(0)
    return Net()


def batches(start_step=0):
    step = start_step
    while True:
        g = draw(step)
        x = torch.randn(8, 8, generator=g)
        yield {"x": x, "y": torch.randint(4, (8,), generator=g)}
        step += 1


def compute_loss(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


def middle(h):
    h = F.gelu(h) * 30.0
    scale = 64.0 if FAULTY else 448.0 / float(h.detach().abs().amax())
    q = (h * scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float() / scale  # fault
    return (h + (q - h).detach()) / 30.0
