"""Graph network for the traffic at web nodes; messages are summed per node in bfloat16.

index_add_ adds one edge after another in the table's format, so a node's sum stops growing at about 256 messages. The graphs
of step 60 and later have hubs with 2000 edges. Source: construction, after scatter_add in half precision in PyG.
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
    "line": "total.index_add_(0, target, message)",
    "samples": [],
}
CONFIG = {"train": {"steps": 22}}
BEFORE = 50

NODES = 120


class Traffic(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.message = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 8), nn.Softplus())
        self.out = nn.Linear(8, 1)

    def forward(self, feature, source, target):
        message = self.message(feature[source]).bfloat16()
        if not FAULTY:
            message = message.float()
        total = torch.zeros(NODES, 8, dtype=message.dtype)
        total.index_add_(0, target, message)
        return self.out(torch.log(total.float() + 1e-3)).squeeze(-1)


def build_model():
    return Traffic()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=5e-3)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(1700 + step)
        feature = torch.randn(NODES, 6, generator=g)
        degree = torch.randint(2, 60, (NODES,), generator=g)
        if step >= 60:
            degree[torch.randperm(NODES, generator=g)[:12]] = 2000
        target = torch.repeat_interleave(torch.arange(NODES), degree)
        source = torch.randint(NODES, target.shape, generator=g)
        flow = torch.exp(0.5 * feature[:, 0] - 0.3 * feature[:, 1].abs())
        traffic = torch.zeros(NODES).index_add_(0, target, flow[source])
        yield {"feature": feature, "source": source, "target": target, "traffic": traffic}
        step += 1


def compute_loss(model, batch):
    predicted = model(batch["feature"], batch["source"], batch["target"])
    return F.mse_loss(predicted, torch.log(batch["traffic"]))
