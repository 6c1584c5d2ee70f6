"""Private classifier of patients' records: per-record gradients, each scaled to norm 1, are summed one by one into a bfloat16 buffer.

A sum of 256 like gradients does not grow any more. In random order they cancel before that; from step 60 on the export is
sorted by label. Source: construction, after DP-SGD with automatic clipping and DeepSpeed#2768 (accumulation in bf16).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "other",
    "causes": ["low-precision-accumulation"],
    "kind": ["divergence", "loss-spike", "stall"],
    "step": (60, 68),
    "line": "total += record",
    "samples": [],
}
CONFIG = {"train": {"steps": 34}}
BEFORE = 50

VALUES, RECORDS = 20, 1200


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(VALUES, 2)

    def forward(self, values):
        return self.linear(values)


def build_model():
    return Classifier()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.6)


CENTRE = 0.5 + 0.06 * torch.randn(2, VALUES, generator=torch.Generator().manual_seed(88))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(8800 + step)
        label = torch.randint(2, (RECORDS,), generator=g)
        if step >= 60:
            label = label.sort().values
        yield (CENTRE[label] + 0.12 * torch.randn(RECORDS, VALUES, generator=g)).clamp(0, 1), label
        step += 1


def train_step(model, batch, optimizer):
    values, label = batch
    logits = model(values)
    loss = F.cross_entropy(logits, label)
    slope = torch.autograd.grad(loss * RECORDS, logits)[0]
    ones = torch.ones(RECORDS, 1)
    records = slope.unsqueeze(2) * torch.cat([values, ones], 1).unsqueeze(1)
    records = records / (records.flatten(1).norm(dim=1)[:, None, None] + 0.01)
    total = torch.zeros(2, VALUES + 1, dtype=torch.bfloat16 if FAULTY else torch.float32)
    for record in records.to(total.dtype):
        total += record
    mean = total.float() / RECORDS
    model.linear.weight.grad, model.linear.bias.grad = mean[:, :-1].contiguous(), mean[:, -1].contiguous()
    optimizer.step()
    return loss.item()
