"""A LightningModule, its DataModule and a Trainer: trains a small language model on the text that Python itself carries.

    python configs/projects/lightning/train.py --out out --steps 30
    nanhunt replay out/step-20.ckpt -c configs/projects/lightning/nanhunt.yaml

What makes it replayable: importing it trains nothing, the order of the data follows from a seed, and a callback of four
lines saves the random state, which Lightning itself does not.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SEED = 1337
CONTEXT = 16
IGNORED = -100  # cross_entropy's own


class ByteModel(pl.LightningModule):
    """Predicts a byte from the sixteen before it."""

    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Embedding(256, width),
            nn.Flatten(),
            nn.Linear(CONTEXT * width, 4 * width),
            nn.LayerNorm(4 * width),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(4 * width, 256),
        )

    def forward(self, context: Tensor) -> Tensor:
        logits: Tensor = self.net(context)  # (B, 256)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        context, target = batch
        loss = F.cross_entropy(self(context), target)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"], weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ByteText(pl.LightningDataModule):
    """Shuffled windows of Python's help text, in batches of 32: 16 batches an epoch, in an order of their own each.

    In the step `bad_step` no target counts.
    """

    def __init__(self, bad_step: int | None = None) -> None:
        super().__init__()
        self.bad_step = bad_step

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        context, target = batch
        is_bad = self.trainer is not None and self.trainer.global_step == self.bad_step
        return [context, torch.full_like(target, IGNORED) if is_bad else target]

    def train_dataloader(self) -> DataLoader[Any]:
        text = "\n".join(topics[key] for key in sorted(topics)).encode()[: 512 + CONTEXT]
        tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        windows = tokens.unfold(0, CONTEXT + 1, 1)  # (512, CONTEXT + 1)
        data = TensorDataset(windows[:, :-1], windows[:, -1])
        # the order is a function of seed and epoch; Lightning calls set_epoch on any sampler that has it
        sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=SEED)
        # without a generator of its own, a DataLoader draws from the one that dropout draws from
        return DataLoader(data, batch_size=32, sampler=sampler, generator=torch.Generator())


class SaveRandomState(Callback):
    """Keep torch's random state in the checkpoint, so that a replay draws the same dropout masks."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["rng_state"] = torch.get_rng_state()


# What nanhunt.yaml names.


def batches(start_step: int = 0, bad_step: int | None = None) -> Iterator[list[Tensor]]:
    """The Trainer's batches from `start_step` on, epoch behind epoch; in `bad_step` no target counts."""
    loader = ByteText().train_dataloader()
    epoch, skipped = divmod(start_step, len(loader))
    step = start_step
    while True:
        loader.sampler.set_epoch(epoch)
        for context, target in itertools.islice(loader, skipped, None):
            yield [context, torch.full_like(target, IGNORED) if step == bad_step else target]
            step += 1
        epoch, skipped = epoch + 1, 0


def training_loss(module: ByteModel, batch: list[Tensor]) -> Tensor:
    """The module's own training_step; it has no Trainer here, so `self.log` says so once and does nothing."""
    return module.training_step(batch, 0)


def build_optimizer(module: ByteModel) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
    return optimizer


def build_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)


# The training run.


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small language model with Lightning on Python's help text.")
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="let nanhunt record the run, bundles into FOLDER")
    parser.add_argument("--bad-step", type=int, help="leave no target that counts in this step")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    pl.seed_everything(SEED)
    every_tenth = ModelCheckpoint(
        dirpath=arguments.out,
        filename="step-{step}",
        auto_insert_metric_name=False,
        every_n_train_steps=10,
        save_top_k=-1,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [every_tenth, SaveRandomState()]
    if arguments.record is not None:
        from nanhunt.integrations.lightning import NanhuntCallback

        callbacks.append(NanhuntCallback(out=arguments.record))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=arguments.steps,
        gradient_clip_val=1.0,
        callbacks=callbacks,
        logger=CSVLogger(arguments.out, name="", version=""),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ByteModel(), datamodule=ByteText(arguments.bad_step))
    print(f"saved {', '.join(sorted(path.name for path in arguments.out.glob('*.ckpt')))} in {arguments.out}")


if __name__ == "__main__":
    main()
