"""Graph attention by dot product, edge by edge: q_i . k_j, normalised over the edges of each node with scatter and index_add.

There is no 1 / sqrt(d) and no clamp of the scores. With plain SGD, W_q and W_k feed each other, as the gradient of one is
proportional to the other. Source: construction, after Dwivedi's graph transformer (which scales and clamps to +-5).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "gnn",
    "causes": ["attention-logit-growth"],
    "also": ["learning-rate-too-high"],
    "kind": ["loss-spike", "divergence"],
    "step": (66, 74),
    "samples": [],
}
CONFIG = {"train": {"steps": 24}}
BEFORE = 58

KINDS, STATES, DIM, NODES, DEGREE = 10, 6, 48, 200, 5
LR = 0.15


def edge_softmax(scores, dst, n):
    top = scores.new_full((n,), float("-inf")).scatter_reduce(0, dst, scores, "amax")
    e = torch.exp(scores - top[dst])
    return e / scores.new_zeros(n).index_add(0, dst, e)[dst]


class EdgeAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.value, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, h, src, dst):
        q, k, v = self.query(h), self.key(h), self.value(h)
        scores = (q[dst] * k[src]).sum(-1)
        if not FAULTY:
            scores = (scores / DIM**0.5).clamp(-5.0, 5.0)
        weight = edge_softmax(scores, dst, h.shape[0])
        message = torch.zeros_like(h).index_add(0, dst, weight[:, None] * v[src])
        return self.out(message)


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.kind, self.want = nn.Embedding(KINDS, DIM), nn.Embedding(KINDS, DIM)
        self.state = nn.Embedding(STATES, DIM)
        self.norm, self.attend = nn.LayerNorm(DIM), EdgeAttention()
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, STATES))

    def forward(self, graph):
        h = self.kind(graph["kind"]) + self.want(graph["want"]) + self.state(graph["state"])
        h = h + self.attend(self.norm(h), graph["src"], graph["dst"])
        return self.head(h)


def build_model():
    return GraphNet()


def make_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)


def batches(start_step=0):
    """A node's label is the state of the one neighbour that is of the wanted kind."""
    step = start_step
    while True:
        g = torch.Generator().manual_seed(3300 + step)
        kind = torch.randint(KINDS, (NODES,), generator=g)
        state = torch.randint(STATES, (NODES,), generator=g)
        # one neighbour of each of DEGREE different kinds
        kinds = torch.rand(NODES, KINDS, generator=g).argsort(1)[:, :DEGREE]
        fits = (kind[None, None] == kinds[..., None]) + 0.0
        src = (fits + 1e-9).flatten(0, 1).multinomial(1, generator=g).view(NODES, DEGREE)
        asked = torch.randint(DEGREE, (NODES, 1), generator=g)
        yield {
            "kind": kind,
            "want": kinds.gather(1, asked).squeeze(1),
            "state": state,
            "src": src.flatten(),
            "dst": torch.arange(NODES).repeat_interleave(DEGREE),
            "label": state[src.gather(1, asked).squeeze(1)],
        }
        step += 1


def compute_loss(model, graph):
    return F.cross_entropy(model(graph), graph["label"], label_smoothing=0.02)


def make_checkpoint(train):
    torch.manual_seed(0)
    model = train.build_model()
    optimizer = train.make_optimizer(model)
    for _, batch in zip(range(train.BEFORE), train.batches()):
        optimizer.zero_grad()
        train.compute_loss(model, batch).backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": train.BEFORE}
