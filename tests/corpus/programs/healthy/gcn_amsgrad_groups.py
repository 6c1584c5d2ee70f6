"""Graph network for node classes: Adam with amsgrad, and two groups whose rates differ by 10 and whose decay differs.

The embedding's rows get a gradient on some steps only, and the convolutions creep beside the head. Source: construction.
"""

import torch
import torch.nn.functional as F
from torch import nn

TRUTH = {"family": "gnn"}
CONFIG = {"train": {"steps": 30}}
BEFORE = 30

NODES, KINDS, CLASSES = 40, 60, 4


class GCN(nn.Module):
    def __init__(self, dim=24):
        super().__init__()
        self.kind = nn.Embedding(KINDS, dim)
        self.conv1, self.conv2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, kinds, adjacency):
        degree = adjacency.sum(1)
        spread = adjacency / (degree[:, None] * degree[None, :]).sqrt()
        h = self.kind(kinds)
        h = h + F.relu(self.conv1(spread @ h))
        h = h + F.relu(self.conv2(spread @ h))
        return self.head(self.norm(h))


def build_model():
    torch.manual_seed(18)
    return GCN()


def make_optimizer(model):
    decay = [p for n, p in model.named_parameters() if n.startswith("conv") and p.ndim > 1]
    rest = [p for n, p in model.named_parameters() if not (n.startswith("conv") and p.ndim > 1)]
    groups = [{"params": decay, "lr": 1e-3, "weight_decay": 5e-3}, {"params": rest, "lr": 1e-2, "weight_decay": 0.0}]
    return torch.optim.Adam(groups, amsgrad=True)


CLASS_OF = torch.randint(CLASSES, (KINDS,), generator=torch.Generator().manual_seed(19))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(4400 + step)
        label = torch.randint(CLASSES, (NODES,), generator=g)
        kinds = torch.randint(KINDS, (NODES,), generator=g)
        for _ in range(3):  # most nodes are of a kind that fits their class
            wrong = CLASS_OF[kinds] != label
            kinds = torch.where(wrong, torch.randint(KINDS, (NODES,), generator=g), kinds)
        same = (label[:, None] == label[None, :]).float()
        edges = torch.rand(NODES, NODES, generator=g) < 0.02 + 0.2 * same
        adjacency = (edges | edges.T | torch.eye(NODES, dtype=torch.bool)).float()
        yield kinds, adjacency, label
        step += 1


def compute_loss(model, batch):
    kinds, adjacency, label = batch
    return F.cross_entropy(model(kinds, adjacency), label)
