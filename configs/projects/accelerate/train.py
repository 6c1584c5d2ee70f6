"""An accelerate loop that nanhunt can replay: which help topic of Python is a piece of text from?

    python configs/projects/accelerate/train.py --out out --steps 30
    nanhunt replay out/step-20 -c configs/projects/accelerate/nanhunt.yaml

Two micro-batches a step, on the text that Python itself carries. What makes it replayable is that importing this file
trains nothing, and that the order of the data depends on the seed and the epoch alone (a seedable sampler).
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]

length = 64
batch_size = 8
accumulate = 2
seed = 1337


class AttentionPool(nn.Module):
    """The mean of a sequence, weighted by what is worth attending to; padding has no weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(x).squeeze(-1).masked_fill(~mask, float("-inf"))  # (B, T)
        return (scores.softmax(-1).unsqueeze(-1) * x).sum(1)  # (B, width)


class Classifier(nn.Module):
    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)
        self.drop = nn.Dropout(0.1)
        self.pool = AttentionPool(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + F.gelu(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(self.pool(self.drop(x), mask))  # (B, classes)


def samples() -> list[tuple[bytes, int]]:
    """400 pieces of text of different lengths, 25 steps an epoch, each with the number of its topic."""
    found = [
        (topics[key].encode()[start : start + length - 7 * (start % 5)], label)
        for label, key in enumerate(sorted(topics)[:16])
        for start in range(0, 25 * 37, 37)
    ]
    return [(text or b" ", label) for text, label in found]


def collate(pairs: list[tuple[bytes, int]]) -> Batch:
    tokens = torch.zeros(len(pairs), length, dtype=torch.long)
    mask = torch.zeros(len(pairs), length, dtype=torch.bool)
    for row, (text, _) in enumerate(pairs):
        tokens[row, : len(text)] = torch.tensor(list(text))
        mask[row, : len(text)] = True
    return {"tokens": tokens, "mask": mask, "labels": torch.tensor([label for _, label in pairs])}


def make_accelerator() -> Accelerator:
    data = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed)
    return Accelerator(gradient_accumulation_steps=accumulate, dataloader_config=data)


def stream(accelerator: Accelerator, start_step: int, bad_step: int | None) -> Iterator[Batch]:
    """Micro-batches from a step on, without end; in the step `bad_step` one sample is an empty text."""
    loader = accelerator.prepare(DataLoader(samples(), batch_size, shuffle=True, collate_fn=collate, drop_last=True))
    epoch, done = divmod(start_step * accumulate, len(loader))
    seen = start_step * accumulate
    while True:
        rest = skip_first_batches(loader, done) if done else loader
        rest.set_epoch(epoch)
        for batch in rest:
            if seen // accumulate == bad_step:
                batch["mask"][3] = False
            yield batch
            seen += 1
        epoch, done = epoch + 1, 0


# What nanhunt.yaml names.


def build_model() -> Classifier:
    return Classifier(classes=16)


def batches(start_step: int = 0, bad_step: int | None = None) -> Iterator[Batch]:
    """The loop's own micro-batches from `start_step` on.

    A DataLoader draws from torch's generator when it starts: the first batch is read here, before nanhunt restores the
    generator to where the checkpoint left it.
    """
    found = stream(make_accelerator(), start_step, bad_step)
    return itertools.chain([next(found)], found)


def compute_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["tokens"], batch["mask"]), batch["labels"])


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)


# The training run.


def train(out: Path, steps: int, bad_step: int | None) -> None:
    """Train `steps` steps, save the state before every tenth, and write each step's loss to losses.csv."""
    set_seed(seed)
    accelerator = make_accelerator()
    model = build_model()
    optimizer = make_optimizer(model)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, make_scheduler(optimizer))
    data = stream(accelerator, 0, bad_step)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "losses.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss"])
        for step in range(steps):
            losses = []
            for _ in range(accumulate):
                batch = next(data)
                with accelerator.accumulate(model):
                    loss = compute_loss(model, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                losses.append(loss.detach())
            mean = torch.stack(losses).mean().item()
            log.writerow([step, mean])
            if (step + 1) % 10 == 0:
                accelerator.save_state(str(out / f"step-{step + 1}"))
                print(f"step {step}: loss {mean:.4f}, saved {out / f'step-{step + 1}'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small classifier of Python's help text with accelerate.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--bad-step", type=int, help="plant an empty text in this step, counted from 0")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.bad_step)


if __name__ == "__main__":
    main()
