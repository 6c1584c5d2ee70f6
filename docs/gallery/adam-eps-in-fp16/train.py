"""Weights in fp16 under plain Adam: its epsilon of 1e-8 rounds to zero there, and a weight without gradient gets 0/0."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)
        self.half()

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        yield torch.randint(30, (8, 9), generator=draw)
        step += 1


def loss(model, tokens):
    logits = model(tokens[:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8)  # fault: 1e-8 is zero in fp16


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.save({"model": Net().state_dict(), "step": 0}, "ckpt.pt")
