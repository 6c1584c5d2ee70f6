"""Node classification with a two-layer graph convolution: unlabelled nodes carry the label -1.

The training mask of one sampled subgraph was built from the degree and lets an unlabelled node through; cross_entropy
ignores -100, not -1, and raises "Target -1 is out of bounds". Source: construction, after pytorch forums' most asked error.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["bad-target"],
    "kind": ["exception"],
    "step": 37,
    "phase": ["batch", "forward"],
    "op": "aten.nll_loss",
    "line": "return F.cross_entropy(logits[",
    "samples": [17],
}
CONFIG = {"train": {"steps": 14}}
BEFORE = 28

NODES, CLASSES = 36, 4
CENTRES = torch.randn(CLASSES, 10, generator=torch.Generator().manual_seed(3))


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(10, 24), nn.Linear(24, CLASSES)
        self.drop = nn.Dropout(0.2)

    def forward(self, x, adj):
        h = F.relu(adj @ self.lin1(x))
        return adj @ self.lin2(self.drop(h))


def build_model():
    return GCN()


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)


def subgraph(step):
    g = torch.Generator().manual_seed(640 + step)
    label = torch.randint(CLASSES, (NODES,), generator=g)
    x = CENTRES[label] + 1.5 * torch.randn(NODES, 10, generator=g)
    link = torch.where(label[:, None] == label[None], 0.25, 0.04)
    edge = torch.rand(NODES, NODES, generator=g) < link
    edge = edge | edge.T | torch.eye(NODES, dtype=torch.bool)
    degree = edge.sum(1).float()
    adj = edge / (degree[:, None] * degree[None]).sqrt()
    unlabelled = degree < 4
    if step == 37:
        unlabelled[17] = True
        degree[17] = 9.0
    label = label.masked_fill(unlabelled, -1)
    return {"x": x, "adj": adj, "label": label, "train": degree >= 4}


def batches(start_step=0):
    step = start_step
    while True:
        yield subgraph(step)
        step += 1


def compute_loss(model, batch):
    logits = model(batch["x"], batch["adj"])
    ignore = -100 if FAULTY else -1
    return F.cross_entropy(logits[batch["train"]], batch["label"][batch["train"]], ignore_index=ignore)
