"""A decoder with tied embeddings, nn.MultiheadAttention, activation checkpointing, and a router that writes softmax out."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(32, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        odds = torch.exp(self.gate(x))  # fault: exp overflows from 88.7 on; softmax subtracts the maximum first
        share = odds / odds.sum(-1, keepdim=True)
        return sum(share[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.router = Router()

    def forward(self, x):
        h = self.norm_1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.router(self.norm_2(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return {"logits": self.head(x)}


def batches(start_step=0):
    step = start_step
    while True:
        draw = torch.Generator().manual_seed(step)
        yield torch.randint(64, (4, 13), generator=draw)
        step += 1


def loss(model, tokens):
    logits = model(tokens[:, :-1])["logits"]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def optimizer(model):
    gates = [p for n, p in model.named_parameters() if "gate" in n]
    others = [p for n, p in model.named_parameters() if "gate" not in n]
    return torch.optim.AdamW([{"params": others, "lr": 1e-3}, {"params": gates, "lr": 1.0}])


if __name__ == "__main__":
    torch.manual_seed(0)
    model, data = Decoder(), batches()
    adam = optimizer(model)
    for _ in range(10):
        adam.zero_grad()
        loss(model, next(data)).backward()
        adam.step()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict(), "step": 10}, "ckpt.pt")
