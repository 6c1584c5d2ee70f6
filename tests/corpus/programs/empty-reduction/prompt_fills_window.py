"""Fine-tuning of a small attention model; from a step on the prompts fill the window, and no label is left.

The sum of the losses is divided by a count held at 1: no NaN, but a loss of exactly 0, step after step. Source: a
reviewer's program; after users whose loss fell to 0.0 once `max_length` cut the answers off (trl, axolotl).
"""

import torch
import torch.nn.functional as F
from torch import nn

FAULTY = True
TRUTH = {
    "family": "transformer",
    "causes": ["empty-reduction"],
    "also": ["bad-target"],
    "kind": ["stall"],
    "step": 19,
    "samples": [],
}
CONFIG = {"train": {"steps": 14}}
BEFORE = 12


def draw(i):
    return torch.Generator().manual_seed(400 + i)


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(48, 24)
        self.layer = nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(24, 48)

    def forward(self, ids):
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.layer(self.embed(ids), src_mask=mask, is_causal=True))


def build_model():
    return Decoder()


def batches(start_step=0):
    step = start_step
    while True:
        ids = torch.randint(0, 48, (6, 12), generator=draw(step))
        prompt = 12 if FAULTY and step >= 19 else 5
        labels = ids.clone()
        labels[:, :prompt] = -100
        yield {"input_ids": ids, "labels": labels}
        step += 1


def compute_loss(model, batch):
    logits, labels = model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return total / (labels != -100).sum().clamp(min=1)
