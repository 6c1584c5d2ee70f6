"""Word vectors (skip-gram with sampled negatives) and Adam; the run goes on from a checkpoint that a full disk cut up.

A page of zeros lies in the second moments of the vectors, their first moments are as they were: rows without a
gradient move by m / eps. Source: construction, after sparse files left by writes that failed.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "embedding",
    "causes": ["poisoned-state", "adam-v-collapse", "optimizer-state"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (40, 42),
    "phase": ["load", "update", "forward"],
    "module": ["centre"],
    "parameter": ["centre.weight"],
    "samples": [],
}
CONFIG = {"train": {"steps": 16}}

WORDS, DIM, TOPICS = 400, 16, 8


class SkipGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.centre, self.context = nn.Embedding(WORDS, DIM), nn.Embedding(WORDS, DIM)
        for table in (self.centre, self.context):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, word, near, far):
        c = self.centre(word)
        return (c * self.context(near)).sum(1), torch.einsum("bd,bkd->bk", c, self.context(far))


def build_model():
    return SkipGram()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(70 + step)
        topic = torch.randint(TOPICS, (64,), generator=g)
        word, near = (topic + TOPICS * torch.randint(WORDS // TOPICS, (64,), generator=g) for _ in range(2))
        yield word, near, torch.randint(WORDS, (64, 4), generator=g)
        step += 1


def compute_loss(model, batch):
    positive, negative = model(*batch)
    return -(F.logsigmoid(positive).mean() + F.logsigmoid(-negative).mean())


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    for _, batch in zip(range(40), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
    if train.FAULTY:
        second = opt.state[model.centre.weight]["exp_avg_sq"]
        second.view(-1)[1024:2048] = 0  # 4096 bytes
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "step": 40}
