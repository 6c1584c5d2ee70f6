"""A LightningModule and its Trainer, small, with whatever of the Trainer's features a test asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, CLASSES, SAMPLES = 8, 4, 6


class Classifier(pl.LightningModule):
    """Dropout and batch norm; `groups` makes as many parameter groups."""

    def __init__(self, width: int = 16, groups: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.up, self.norm, self.down = nn.Linear(WIDTH, width), nn.BatchNorm1d(width), nn.Linear(width, CLASSES)
        self.drop = nn.Dropout(0.3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self.down(self.drop(F.relu(self.norm(self.up(x))))), y)
        self.log("loss", loss)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        parameters = list(self.parameters())
        groups = [{"params": parameters[i :: self.hparams["groups"]]} for i in range(self.hparams["groups"])]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.7), "interval": "step"}
        ]


class LeavesOut(Classifier):
    """Gives None for each batch whose first input is above 1."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch[0][0, 0] > 1.0 else super().training_step(batch, batch_idx)


class Alternating(pl.LightningModule):
    """Two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return alternate(self, batch, self.optimizers())

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.first.parameters(), lr=0.1), torch.optim.Adam(self.second.parameters())]


def alternate(module: Alternating, batch: Any, optimizers: Any) -> Tensor:
    total = torch.zeros(())
    for optimizer in optimizers:
        optimizer.zero_grad()
        loss = F.cross_entropy(module.second(torch.tanh(module.first(batch[0]))), batch[1])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total = total + loss.detach()
    return total


def loader(count: int, bad: int | None = None) -> DataLoader[Any]:
    """Return `count` batches; in the batch `bad` an input is NaN."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count * SAMPLES, WIDTH, generator=generator)
    y = torch.randint(CLASSES, (count * SAMPLES,), generator=generator)
    if bad is not None:
        x[bad * SAMPLES + 2, 3] = torch.nan
    return DataLoader(TensorDataset(x, y), batch_size=SAMPLES, generator=torch.Generator())


def trainer(out: Path, callbacks: list[Any], package: Any = pl, **options: Any) -> Any:
    made = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return package.Trainer(default_root_dir=out, callbacks=callbacks, **{**made, **quiet, **options})
