"""DPO: -log(sigmoid(h)) at a margin that a long transcript makes (tinker-cookbook PR#188)."""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "rl",
    "causes": ["naive-exp-log", "domain-error"],
    "kind": ["inf", "nan"],
    "step": 10,
    "phase": ["forward"],
    "op": "aten.log",
    "line": "losses = -torch.log(torch.sigmoid(h))",
    "samples": [1],
    "module": "",
}
CONFIG = {"train": {"steps": 12, "seed": 7}}

BAD = 10


class Policy(nn.Module):
    def __init__(self, v=20, d=24):
        super().__init__()
        self.emb = nn.Embedding(v, d)
        self.rnn = nn.GRU(d, d, batch_first=True)
        self.head = nn.Linear(d, v)

    def forward(self, ids):
        return self.head(self.rnn(self.emb(ids))[0])


def build_model():
    torch.manual_seed(7)
    return Policy()


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(step)
        n = torch.randint(40, 80, (6,), generator=g)
        if step == BAD:
            n[1] = 180
        chosen = torch.randint(0, 20, (6, int(n.max()) + 1), generator=g)
        rejected = torch.randint(0, 20, (6, 12), generator=g)
        # the reference is a good model: 1.6 nats a token
        yield {
            "chosen": chosen,
            "length": n,
            "rejected": rejected,
            "ref_chosen": -1.6 * n.float(),
            "ref_rejected": torch.full((6,), -1.6 * 11),
        }
        step += 1


def logp(model, ids):
    lp = F.log_softmax(model(ids[:, :-1]), -1)
    return lp.gather(-1, ids[:, 1:, None]).squeeze(-1)


def compute_loss(model, b):
    mask = torch.arange(b["chosen"].shape[1] - 1)[None] < b["length"][:, None]
    pc = (logp(model, b["chosen"]) * mask).sum(-1)
    pr = logp(model, b["rejected"]).sum(-1)
    h = 0.5 * ((pc - b["ref_chosen"]) - (pr - b["ref_rejected"]))
    if not FAULTY:
        losses = -F.logsigmoid(h)
    else:
        losses = -torch.log(torch.sigmoid(h))
    return losses.mean()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)
