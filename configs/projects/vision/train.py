"""A small convolutional classifier with BatchNorm, as torchvision's reference scripts train one, on shapes that it draws.

    python configs/projects/vision/train.py --out out --steps 30
    nanhunt replay out/step-20.pt -c configs/projects/vision/nanhunt.yaml

An image is one of four shapes on a noisy ground, drawn from its own index, so there is nothing to download. What makes
the run replayable is that the order of an epoch depends on the seed and the epoch alone.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

SIZE = 32
CLASSES = 4
IMAGES = 512
BATCH = 32
SEED = 1337


class Shapes(Dataset[tuple[Tensor, int]]):
    """Discs, squares, crosses and rings, each image (3, 32, 32) standardised by its own mean and deviation.

    `blank` is the index of an image that a broken camera left grey: its deviation is zero.
    """

    def __init__(self, blank: int | None = None) -> None:
        self.blank = blank

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % CLASSES
        image = torch.full((3, SIZE, SIZE), 0.5) if index == self.blank else draw(label, index)
        return (image - image.mean()) / image.std(), label


def draw(label: int, index: int) -> Tensor:
    """Return one image (3, 32, 32) of a class, in [0, 1]."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + index)
    center = 12 + 8 * torch.rand(2, generator=generator)
    radius = 5 + 4 * torch.rand(1, generator=generator)
    grid = torch.arange(SIZE, dtype=torch.float32)
    y, x = (grid[:, None] - center[0]).abs(), (grid[None, :] - center[1]).abs()
    far = torch.sqrt(y**2 + x**2)
    shape = (
        far < radius,
        torch.maximum(y, x) < radius,
        (torch.minimum(y, x) < 2) & (far < radius),
        (far < radius) & (far > radius - 3),
    )[label]
    color = 0.4 + 0.6 * torch.rand(3, 1, 1, generator=generator)
    noise = 0.2 * torch.rand(3, SIZE, SIZE, generator=generator)
    return (noise + shape * color).clamp(0, 1)


class Block(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm, and the way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.fc = nn.Linear(4 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 4) of images (B, 3, 32, 32)."""
        logits: Tensor = self.fc(self.layers(self.stem(images)).mean(dim=(2, 3)))
        return logits


# What nanhunt.yaml names.


def batches(start_step: int = 0, blank: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end from `start_step` on: images (32, 3, 32, 32) and labels (32,)."""
    dataset = Shapes(blank)
    epoch, skipped = divmod(start_step, IMAGES // BATCH)
    while True:
        order = RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED + epoch))
        for number, batch in enumerate(DataLoader(dataset, BATCH, sampler=order, generator=torch.Generator())):
            if number >= skipped:
                yield batch
        epoch, skipped = epoch + 1, 0


def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels, label_smoothing=0.1)


def make_optimizer(model: nn.Module) -> torch.optim.SGD:
    """SGD with momentum; norms and biases do not decay."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 5e-4},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)


def make_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=400)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small ResNet on shapes.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    model = SmallResNet()
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer)
    stream = batches()
    with (arguments.out / "losses.csv").open("w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["step", "loss"])
        for step in range(arguments.steps):
            if step % 10 == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "step": step,
                }
                torch.save(state, arguments.out / f"step-{step}.pt")
            loss = compute_loss(model, next(stream))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            log.writerow([step, loss.item()])
            if step % 10 == 0:
                print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
