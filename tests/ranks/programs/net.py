"""A small classifier, trained by several ranks: wrapped in DDP, in FSDP2, or cut for tensor parallelism.

The device is the mesh's, so the same program runs with gloo on CPUs and with NCCL on GPUs. What goes wrong, where and on
which rank, is told by the config's arguments.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

WIDTH, CLASSES, BATCH = 16, 10, 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        size = x.square().mean(-1, keepdim=True).sqrt()
        return x + self.down(torch.relu(self.up(gain * (x / size))))  # an input of zeros: 0/0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, gain)
        return self.head(x)


def build_model(mesh: DeviceMesh, wrap: str = "ddp") -> nn.Module:
    """Return the net as the ranks of the mesh train it."""
    model = Net().to(mesh.device_type)
    if wrap == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if wrap == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for part in (*model.blocks, model):
            fully_shard(part, mesh=mesh)
    if wrap == "tp":
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        for block in model.blocks:
            parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def batches(
    start_step: int, rank: int, world_size: int, fault: str = "", on: int = 1, at: int = 13, shared: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield each rank's own batches, or with `shared` the same to all; one of step `at` on rank `on` is at fault."""
    for step in range(start_step, 1000):
        if fault == "ends" and step == at and rank == on:
            return
        draw = torch.Generator().manual_seed(1000 * step + (0 if shared else rank))
        x = torch.randn(BATCH, WIDTH, generator=draw)
        gain = torch.ones(BATCH, 1)
        labels = torch.randint(CLASSES, (BATCH,), generator=draw)
        if step == at and (rank == on or shared):
            spoil(fault, x, gain, labels)
        yield {"x": x, "gain": gain, "labels": labels}


def spoil(fault: str, x: Tensor, gain: Tensor, labels: Tensor) -> None:
    if fault == "zeros":
        x[2] = 0.0
    if fault == "loud":
        gain[2] = 64.0
    if fault == "ignored":
        labels[:] = -100
    if fault == "raises":
        labels[3] = CLASSES
    if fault == "short":
        labels.resize_(len(labels) - 1)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def compute_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return F.cross_entropy(model(batch["x"], batch["gain"]), batch["labels"])
