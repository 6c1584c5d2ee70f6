"""A GPT-like script without a guard: the loss inside of the model, three micro-batches; in step 6 no target counts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


@dataclass
class Config:
    width: int = 16
    dropout: float = 0.1


vocab_size = len(sorted(set("hello world")))
MICROS = 3


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.block, self.dropout = nn.Linear(config.width, config.width), nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, idx, targets=None):
        x = self.embedding(idx)
        logits = self.head(x + self.dropout(torch.tanh(self.block(x))))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, vocab_size), targets.view(-1), ignore_index=-1)


model = GPT(Config(width=12))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
for step in range(8):
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * (1 - step / 40)
    for micro in range(MICROS):
        x, y = torch.randint(0, vocab_size, (2, 4, 8))
        if step == 6 and micro == 1:
            y[:] = -1
        _, loss = model(x, targets=y)
        (loss / MICROS).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step % 3 == 0:
        model.eval()
        with torch.no_grad():
            model(x, targets=y)
        model.train()
