"""A bench made of a run: its window is the run's next step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nanhunt.bench import Bench, Window
from nanhunt.trace.schema import Onset
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.verdicts import Known


def bench_of(run: TrainingRun, kind: Literal["nan", "inf"] = "nan") -> Bench:
    ring = SnapshotRing(run)
    ring.offer(run, run.start_step)
    for micro in range(run.accumulate):
        run.batches.get(run.start_step, micro)  # a trial asks for batches that were read before
    step = run.start_step
    return Bench(
        run=run,
        ring=ring,
        onset=Onset(kind=kind, step=step, phase="backward"),
        known=Known.of(run),
        window=Window(first=step, last=step),
    )


def bits_of(run: TrainingRun) -> dict[str, Tensor]:
    """Return weights, buffers and moments as they are."""
    live = {**run.parameters(), **run.buffers(), **run.state_tensors()}
    return {name: tensor.detach().clone() for name, tensor in live.items()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        t.dtype == right[n].dtype
        and torch.equal(t.contiguous().view(torch.uint8), right[n].contiguous().view(torch.uint8))
        for n, t in left.items()
        if t.dim()
    )
