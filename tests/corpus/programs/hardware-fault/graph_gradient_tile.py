"""Message passing on random graphs; once, a tile of a weight's gradient is written back with the wrong exponent.

Eight by eight elements of the product in the backward pass are 2^10 times too large. The forward pass of that step is
right, the loss jumps with the next one. Source: construction, after a defective matrix unit (SDCs in training).
"""

import torch
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["hardware-fault"],
    "kind": ["loss-spike", "divergence", "mismatch"],
    "step": (41, 42),
    "phase": ["backward", "update", "forward"],
    "parameter": ["update.weight"],
    "samples": [],
}
CONFIG = {"train": {"steps": 20}}
BEFORE = 30

_unit = {"at": {41}}


class Rounds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.message = nn.Linear(6, 24), nn.Linear(24, 24)
        self.update, self.readout = nn.Linear(48, 24), nn.Linear(24, 1)
        self.register_buffer("seen", torch.tensor(-1))
        self.update.weight.register_hook(self._write_back)

    def _write_back(self, grad):
        if FAULTY and int(self.seen) in _unit["at"]:
            _unit["at"].discard(int(self.seen))
            grad = grad.clone()
            grad[8:16, 16:24] *= 1024.0
        return grad

    def forward(self, nodes, edges):
        self.seen += 1
        source, target = edges
        h = torch.tanh(self.embed(nodes))
        for _ in range(2):
            m = torch.relu(self.message(h))[source]
            received = torch.zeros_like(h).index_add(0, target, m) / 4
            h = h + torch.tanh(self.update(torch.cat([h, received], 1)))
        return self.readout(h).squeeze(1)


def build_model():
    return Rounds()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(830 + step)
        nodes = torch.randn(64, 6, generator=g)
        edges = torch.randint(64, (2, 256), generator=g)
        neighbours = torch.zeros(64).index_add(0, edges[1], nodes[:, 0][edges[0]])
        yield nodes, edges, nodes[:, 1] + 0.5 * neighbours
        step += 1


def compute_loss(model, batch):
    nodes, edges, target = batch
    return nn.functional.mse_loss(model(nodes, edges), target)
