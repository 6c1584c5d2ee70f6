"""A bench behind some steps of training, and all of a run's state, to be held against itself."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanhunt.bench import Bench, Window
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Change, Intervention, Trial
from nanhunt.trace.schema import Onset
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from nanhunt.verdicts import Known


def trained_bench(run: TrainingRun, first: int = 3, last: int = 3, limit: float | None = None) -> Bench:
    """Train up to the end of the window, as a replay has when its trials begin; a spike where there is a limit."""
    ring = SnapshotRing(run)
    for step in range(last + 1):
        ring.offer(run, step)
        train_step(run, step, StepWatch())
    onset = Onset(kind="nan" if limit is None else "loss-spike", step=first, phase="update")
    window = Window(first=first, last=last, limit=limit, alarm=None if limit is None else last)
    return Bench(run=run, ring=ring, onset=onset, known=Known.of(run), window=window)


def tried(bench: Bench, change: Change | None) -> Trial:
    return run_trial(bench, Intervention(name="tried", question="?", change=change))


def whole_state(run: TrainingRun) -> dict[str, Any]:
    """Return all that a trial must leave as it was: tensors as bytes, settings as they read."""
    found: dict[str, Any] = {**run.parameters(), **run.buffers()}
    found |= {f"{n}.grad": p.grad for n, p in run.parameters().items()}
    found |= {f"{n}.identity": id(p) for n, p in run.parameters().items()}
    for i, optimizer in enumerate(run.optimizers):
        found |= {f"{i}.attributes": sorted(vars(optimizer))}
        for j, group in enumerate(optimizer.param_groups):
            found |= {f"{i}.{j}.{k}": repr(v) for k, v in group.items() if k != "params"}
        for n, p in run.parameters().items():
            found |= {f"{i}.{n}.{k}": v for k, v in optimizer.state.get(p, {}).items()}
    for i, scaler in enumerate(run.scalers):
        found |= {f"scaler.{i}": scaler.state_dict(), f"scaler.{i}.identity": id(scaler)}
    found |= {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": repr(np.random.get_state())}
    return {k: _bytes(v) if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in found.items()}


def _bytes(tensor: Tensor) -> tuple[object, ...]:
    dense = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    return (dense.dtype, tuple(dense.shape), dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
