"""Graph network that averages over neighbours, in bfloat16; a node's degree is counted in the features' format.

The degree is a sum of ones that stops at 256. The graphs of step 60 and later have hubs with 3000 edges, whose averages
become twelve times too large. Source: construction, after the degree normalisation of graph libraries in half precision.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["low-precision-accumulation"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": 60,
    "phase": ["forward"],
    "line": "degree.index_add_(0, target, torch.ones_like(target, dtype=degree.dtype))",
    "samples": [],
}
CONFIG = {"train": {"steps": 22}}
BEFORE = 50

NODES = 120


def neighbour_mean(h, source, target):
    total = torch.zeros_like(h).index_add_(0, target, h[source])
    degree = torch.zeros(NODES, dtype=h.dtype if FAULTY else torch.float32)
    degree.index_add_(0, target, torch.ones_like(target, dtype=degree.dtype))
    return (total / degree.clamp(min=1).unsqueeze(1)).to(h.dtype)


class SAGE(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, feature, source, target):
        h = F.relu(self.enter(feature)).bfloat16()
        h = self.own(h.float()) + self.others(neighbour_mean(h, source, target).float())
        return self.out(F.relu(h)).squeeze(-1)


def build_model():
    return SAGE()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1700 + step)
        feature = torch.randn(NODES, 6, generator=g) + 0.5
        degree = torch.randint(2, 60, (NODES,), generator=g)
        if step >= 60:
            degree[torch.randperm(NODES, generator=g)[:10]] = 3000
        target = torch.repeat_interleave(torch.arange(NODES), degree)
        source = torch.randint(NODES, target.shape, generator=g)
        flow = feature[:, 0].relu() + 0.5 * feature[:, 1].abs()
        around = torch.zeros(NODES).index_add_(0, target, flow[source]) / degree
        yield {"feature": feature, "source": source, "target": target, "label": around - 0.5 * feature[:, 2]}
        step += 1


def compute_loss(model, batch):
    return F.mse_loss(model(batch["feature"], batch["source"], batch["target"]), batch["label"])
