"""Associative recall with one attention layer: which value belongs to the key asked for? Query and key projections are a
parameter group of their own, whose rate comes from a sweep."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["learning-rate-too-high", "attention-logit-growth"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (122, 130),
    "module": "attn*",
    "samples": [],
}
CONFIG = {"train": {"steps": 45}}

KEYS, VALUES, N, D = 32, 16, 8, 16


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D, bias=False) for _ in range(3))

    def forward(self, query, keys, values):
        q, k = self.q(query), self.k(keys)
        if not FAULTY:
            q, k = F.rms_norm(q, (D,)) * 1.5, F.rms_norm(k, (D,)) * 1.5
        scores = (q[:, None] @ k.transpose(1, 2)) / D**0.5
        return (scores.softmax(-1) @ self.v(values)).squeeze(1)


class Recall(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.value = nn.Embedding(KEYS, D), nn.Embedding(VALUES, D)
        self.attn = Attention()
        self.head = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, VALUES))

    def forward(self, ask, keys, values):
        return self.head(self.attn(self.key(ask), self.key(keys), self.value(values)))


def build_model():
    return Recall()


QK_RATE = 1.0 if FAULTY else 5e-3


def make_optimizer(model):
    qk = [model.attn.q.weight, model.attn.k.weight]
    rest = [p for p in model.parameters() if all(p is not w for w in qk)]
    return torch.optim.Adam([{"params": rest, "lr": 5e-3}, {"params": qk, "lr": QK_RATE}])


def make_scheduler(optimizer):
    """Query and key start slowly, and get their own rate after step 122."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, [lambda step: 1.0, lambda step: 1.0 if step >= 122 else 5e-3 / QK_RATE]
    )


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(18 + step)
        keys = torch.rand(64, KEYS, generator=g).topk(N).indices
        values = torch.randint(VALUES, (64, N), generator=g)
        at = torch.randint(N, (64, 1), generator=g)
        yield keys.gather(1, at).squeeze(1), keys, values, values.gather(1, at).squeeze(1)
        step += 1


def compute_loss(model, batch):
    ask, keys, values, answer = batch
    return F.cross_entropy(model(ask, keys, values), answer)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    opt = train.make_optimizer(model)
    sched = train.make_scheduler(opt)
    for step, batch in zip(range(110), train.batches()):
        opt.zero_grad()
        train.compute_loss(model, batch).backward()
        opt.step()
        sched.step()
    return {"model": model.state_dict(), "optimizer": opt.state_dict(), "scheduler": sched.state_dict(), "step": 110}
