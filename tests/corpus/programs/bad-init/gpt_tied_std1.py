"""Small GPT trained from scratch with tied embeddings: nn.Embedding's own init, std 1, also serves as the output head.

The logits then have a standard deviation of sqrt(width), and the first loss is far above ln V. Source: the usual check of
nanoGPT-like code ("loss at init should be ln V"); with std 0.02 it is.
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["bad-init"],
    "kind": ["loss-spike", "divergence", "stall"],
    "step": (0, 3),
    "phase": ["load", "forward"],
    "module": ["emb", "head"],
    "parameter": ["emb.weight", "head.weight"],
    "samples": [],
}
CONFIG = {"train": {"steps": 14, "clip_grad_norm": 1.0}}

VOCAB, CTX, DIM = 96, 16, 48


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (z.view(b, t, 4, -1).transpose(1, 2) for z in self.qkv(self.ln1(x)).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, DIM))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(VOCAB, DIM)
        self.pos = nn.Parameter(0.02 * torch.randn(CTX, DIM))
        self.blocks = nn.Sequential(Block(), Block())
        self.ln = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        self.apply(self._init)
        self.head.weight = self.emb.weight

    def _init(self, m):
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding) and not FAULTY:
            nn.init.normal_(m.weight, std=0.02)

    def forward(self, ids):
        x = self.emb(ids) + self.pos[: ids.shape[1]]
        return self.head(self.ln(self.blocks(x)))


def build_model():
    return GPT()


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)


NEXT = torch.randint(VOCAB, (VOCAB, 3), generator=torch.Generator().manual_seed(4))


def batches(start_step=0):
    step = start_step
    while True:
        g = torch.Generator().manual_seed(100 + step)
        ids = torch.randint(VOCAB, (16, 1), generator=g)
        for _ in range(CTX):
            branch = torch.randint(3, (16, 1), generator=g)
            ids = torch.cat([ids, NEXT[ids[:, -1:], branch]], 1)
        yield ids
        step += 1


def compute_loss(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def make_checkpoint(train):
    """The checkpoint that the trainer saves before its first step."""
    torch.manual_seed(0)
    return {"model": train.build_model().state_dict(), "step": 0}
