"""Memory network: a query reads a set of key-value slots by cosine attention with a learnable temperature.

Swin v2 and CLIP clamp exp(logit_scale) "to prevent training instability". Here it is free and has a rate of its own, so
that it runs away and with it the gradient of W_q and W_k. Source: Swin v2, CLIP; here as construction.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "memory",
    "causes": ["attention-logit-growth"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (22, 28),
    "samples": [],
}
CONFIG = {"train": {"steps": 22}}
BEFORE = 15

ROWS, SLOTS, PIXELS, VALUES, DIM = 192, 10, 16, 6, 32
LR, LR_SCALE, MAX_SCALE = 0.07, 2.0, 10.0


class MemoryNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Sequential(nn.Linear(PIXELS, 48), nn.ReLU(), nn.Linear(48, DIM))
        self.to_k = nn.Sequential(nn.Linear(PIXELS, 48), nn.ReLU(), nn.Linear(48, DIM))
        self.value = nn.Embedding(VALUES, DIM)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.read = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 48), nn.ReLU(), nn.Linear(48, VALUES))

    def forward(self, keys, values, query):
        q, k = F.normalize(self.to_q(query), dim=-1), F.normalize(self.to_k(keys), dim=-1)
        scale = self.logit_scale
        if not FAULTY:
            scale = scale.clamp(max=math.log(MAX_SCALE))
        weights = torch.softmax(scale.exp() * (q @ k.transpose(-2, -1)), dim=-1)
        return self.read(weights @ self.value(values))


def build_model():
    return MemoryNet()


def make_optimizer(model):
    rest = [p for n, p in model.named_parameters() if n != "logit_scale"]
    return torch.optim.SGD([{"params": rest}, {"params": [model.logit_scale], "lr": LR_SCALE}], lr=LR, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(52_000 + step)
        keys = torch.randn(ROWS, SLOTS, PIXELS, generator=g)
        values = torch.randint(VALUES, (ROWS, SLOTS), generator=g)
        asked = torch.randint(SLOTS, (ROWS, 4), generator=g)
        query = keys.gather(1, asked[..., None].expand(-1, -1, PIXELS)) + 0.3 * torch.randn(
            ROWS, 4, PIXELS, generator=g
        )
        yield {"keys": keys, "values": values, "query": query, "label": values.gather(1, asked)}
        step += 1


def compute_loss(model, batch):
    logits = model(batch["keys"], batch["values"], batch["query"])
    return F.cross_entropy(logits.flatten(0, 1), batch["label"].flatten(), label_smoothing=0.02)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
