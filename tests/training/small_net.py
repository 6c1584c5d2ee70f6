"""A small network of every kind of state, trained by every kind of optimizer, and all that a snapshot must bring back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.training.rng import seed_everything
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.training.tree import tensors_of
from tests.conftest import tiny_run


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scratch += x.mean()
        return self.drop(self.norm(self.layer(x))) + self.frozen(x)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return F.mse_loss(model(batch) * (1 + random.random() + float(np.random.rand())), batch)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() > 1 and p.requires_grad]
    rest = [p for p in model.parameters() if p.dim() == 1 and p.requires_grad]
    return torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=0.01)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "amsgrad-capturable-lr": lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.01), amsgrad=True),
    "sgd-momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9),
    "adagrad": lambda m: torch.optim.Adagrad(m.parameters()),
    "rprop": lambda m: torch.optim.Rprop(m.parameters()),
}


def run_of(
    optimizer: str = "adamw", *, steps: int = 12, dtype: torch.dtype = torch.float32, **settings: Any
) -> TrainingRun:
    seed_everything(0)
    model = Net().to(dtype)
    data = [torch.randn(6, 4, dtype=dtype) for _ in range(steps)]
    return tiny_run(model, loss_of, data, optimizer=OPTIMIZERS[optimizer](model), **settings)


def advance(run: TrainingRun, first: int, last: int) -> list[float]:
    return [train_step(run, step, StepWatch()).loss for step in range(first, last)]


def bits(tensor: Tensor) -> tuple[str, bytes]:
    return str(tensor.dtype), tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def everything(run: TrainingRun) -> dict[str, Any]:
    """Return all that a snapshot must bring back."""
    model, optimizer = run.model, run.optimizer
    names = {p: n for n, p in model.named_parameters()}
    return {
        "tensors": {n: bits(t) for n, t in (*model.named_parameters(), *model.named_buffers())},
        "grads": {n: None if p.grad is None else bits(p.grad) for p, n in names.items()},
        "state": {names[p]: {k: bits(t) for k, t in tensors_of(s)} for p, s in optimizer.state.items()},
        "groups": [{k: str(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
        "scaler": run.scaler.state_dict() if run.scaler else None,
        "scheduler": str(run.scheduler.state_dict()) if run.scheduler else None,
        "training": {n: m.training for n, m in model.named_modules()},
        "generators": (random.getstate(), np.random.get_state()[1].tobytes(), bits(torch.get_rng_state())),
    }
