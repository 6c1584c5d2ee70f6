"""A small CNN; once, one element of a gradient comes back from the device with a bit of its exponent flipped.

The update carries it into the weights and the loss jumps. The same step, run again, is clean.
Source: Llama 3 and OSDI'26 "SDCs in the Wild": a transient fault, emulated by a set that outlives the state.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["hardware-fault"],
    "kind": ["mismatch", "loss-spike", "divergence"],
    "step": (44, 46),
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 36
STRUCK = set()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.out = nn.Linear(8, 4)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.steps += 1
        return self.out(F.relu(self.conv(x)).mean((2, 3)))


def build_model():
    return Net()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(20 + step)
        y = torch.randint(4, (32,), generator=g)
        yield y[:, None, None, None] / 3 + 0.4 * torch.randn(32, 1, 8, 8, generator=g), y
        step += 1


def device(grad):
    """What the accelerator hands back."""
    bits = grad.clone()
    bits.view(torch.int32)[2, 3] ^= 1 << 29
    return bits if bits[2, 3].abs() > 1 else grad + 1e4 * (grad == grad[2, 3])


def compute_loss(model, batch):
    x, y = batch
    loss = F.cross_entropy(model(x), y)
    if FAULTY and int(model.steps) == 45 and 45 not in STRUCK:
        STRUCK.add(45)
        handle = model.out.weight.register_hook(lambda grad: device(grad))
        loss.register_hook(lambda _: None)
        model.pending = handle
    elif hasattr(model, "pending"):
        model.pending.remove()
        del model.pending
    return loss
