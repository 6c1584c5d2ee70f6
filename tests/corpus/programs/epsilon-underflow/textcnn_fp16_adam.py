"""Sentence classifier (text CNN), kept wholly in half precision to save memory."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "cnn",
    "causes": ["epsilon-underflow"],
    "kind": ["nan", "inf"],
    "step": 12,
    "phase": ["update"],
    "samples": [],
}
CONFIG = {"precision": {"params": "fp16"}, "train": {"steps": 14}}
MENDED = {"precision": {"autocast": "fp16", "grad_scaler": {"init_scale": 1024}}}

VOCAB, LENGTH, CLASSES = 80, 20, 4


class TextCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(VOCAB, 24)
        self.convs = nn.ModuleList(nn.Conv1d(24, 16, k, padding=k // 2) for k in (3, 5))
        self.out = nn.Linear(32, CLASSES)

    def forward(self, tokens):
        x = self.words(tokens).transpose(1, 2)
        x = torch.cat([F.relu(conv(x)).amax(2) for conv in self.convs], 1)
        return self.out(x)


def build_model():
    return TextCNN()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1000 + step)
        y = torch.randint(CLASSES, (32,), generator=g)
        x = torch.randint(VOCAB, (32, LENGTH), generator=g)
        hot = torch.rand(32, LENGTH, generator=g) < 0.3
        x = torch.where(hot, y[:, None] * 20 + x % 20, x)
        yield x, y
        step += 1


def compute_loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).float(), y)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for step, batch in zip(range(12), train.batches()):
        opt.zero_grad()
        loss = train.compute_loss(model, batch)
        loss.backward()
        opt.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 12}
