"""A user's training loop, with and without a recorder, and all that it computes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.recorder.recorder import Recorder
from nanhunt.training.rng import seed_everything

WIDTH, CLASSES, SAMPLES = 8, 4, 6


class Net(nn.Module):
    """Dropout, batch norm, and an activation in place."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(WIDTH, width), nn.BatchNorm1d(width), nn.Linear(width, CLASSES)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.drop(self.act(self.norm(self.up(x)))))


def build_model(width: int = 16) -> Net:
    return Net(width)


def compute_loss(model: nn.Module, batch: Any) -> Tensor:
    jitter = 1.0 + 0.01 * (random.random() + float(np.random.rand()))
    return F.cross_entropy(model(batch["x"]) * jitter, batch["y"]) * batch["weight"]


def train_step(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> Tensor:
    """Two updates of one batch: no loop of the built-in kind."""
    total = torch.zeros(())
    for _ in range(2):
        optimizer.zero_grad()
        loss = compute_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total = total + loss.detach()
    return total


def batches(count: int, spoil: Callable[[int, dict[str, Tensor]], None] | None = None) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    for number in range(count):
        x, y = torch.randn(SAMPLES, WIDTH, generator=generator), torch.randint(CLASSES, (SAMPLES,), generator=generator)
        batch = {"x": x, "y": y, "weight": torch.ones(())}
        if spoil is not None:
            spoil(number, batch)
        yield batch


def nan_at(step: int, micros: int = 1) -> Callable[[int, dict[str, Tensor]], None]:
    def spoil(number: int, batch: dict[str, Tensor]) -> None:
        if number == step * micros:
            batch["x"][2, 3] = torch.nan

    return spoil


@dataclass
class Loop:
    """How the loop is written."""

    steps: int = 30
    accumulate: int = 1
    fp16: bool = False
    dtype: torch.dtype = torch.float32
    clip: bool = True
    schedule: bool = True
    spoil: Callable[[int, dict[str, Tensor]], None] | None = None
    #: what the recorder is given
    recorder: dict[str, Any] | None = None
    bundles: list[Any] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Train, and return all that was computed."""
        seed_everything(3)
        model = build_model().to(self.dtype)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = (
            torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=60) if self.schedule else None
        )  # moves the betas too
        scaler = torch.amp.GradScaler("cpu", enabled=self.fp16, init_scale=1024.0, growth_interval=7)
        losses, grads = [], []
        made = (
            Recorder(
                model,
                optimizer,
                scaler=scaler,
                scheduler=scheduler,
                build=build_model,
                loss=compute_loss,
                **self.recorder,
            )
            if self.recorder is not None
            else contextlib.nullcontext()
        )
        with made as recorder:
            for number, batch in enumerate(batches(self.steps * self.accumulate, self.spoil)):
                batch["x"] = batch["x"].to(self.dtype)
                if recorder is not None:
                    recorder.step(batch)
                with torch.autocast("cpu", torch.float16, enabled=self.fp16):
                    loss = compute_loss(model, batch)
                losses.append(loss.detach().clone())
                scaler.scale(loss / self.accumulate).backward()
                if (number + 1) % self.accumulate:
                    continue
                scaler.unscale_(optimizer)
                if self.clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                grads += [p.grad.clone() for p in model.parameters() if p.grad is not None]
                scaler.step(optimizer)
                scaler.update()
                if scheduler is not None:
                    scheduler.step()
                optimizer.zero_grad()
        self.bundles = recorder.bundles if recorder is not None else []
        return {
            "losses": [bits(x) for x in losses],
            "grads": [bits(x) for x in grads],
            "state": {n: bits(t) for n, t in model.state_dict().items()},
            "moments": [bits(t) for s in optimizer.state.values() for t in s.values()],
            "scale": scaler.get_scale(),
            "generators": (random.random(), float(np.random.rand()), bits(torch.rand(3))),
        }


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
