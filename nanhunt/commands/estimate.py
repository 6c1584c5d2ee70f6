"""How long a replay will take and how large its trace will be, from one of its steps, run and thrown away.

How it works. The first step is run as the replay runs it, which counts its rows and warms everything up: kernels are
compiled, workspaces taken. Then the same batch is run through a plain step, and that is timed. What recording adds is
taken from measurements of other runs (`docs/performance.md`), the larger of each pair: a first recorded step would tell
how long Numba compiles.

What that costs. Two steps; the weights that they leave are of no use to anybody, so this comes last.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nanhunt.hunt.state import HuntSettings
from nanhunt.hunt.trials import seconds_for_trials
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.source import place
from nanhunt.raised import user_line
from nanhunt.replay import replay_step
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step

__all__ = ["BYTES_A_ROW", "Estimate", "estimate_of"]

#: Bytes of a row in a finished trace.
BYTES_A_ROW = 33
#: Times a plain step, by device: detection alone, recording, and every op.
_COSTS = {"cpu": (1.05, 1.39, 1.39), "cuda": (1.04, 1.32, 2.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one step told. Times in seconds, sizes in bytes; None where the step raised."""

    step: float | None = None
    #: of the replay, of one step op by op, and most that trials take of a fault
    replay: float | None = None
    zoom: float | None = None
    trials: float | None = None
    #: rows of a recorded step, and bytes of the trace
    rows: int | None = None
    trace: int | None = None
    #: most that the GPU held, activations included
    peak: int | None = None
    #: what the step raised, and where
    raised: str = ""


def estimate_of(run: TrainingRun, settings: HuntSettings) -> Estimate:
    """Run the first step twice and return what that tells; the run is spoilt by it.

    What the user's step raises is told in the estimate, as a replay tells it in its trace. Raises NanhuntError as a
    replay's first step does, DataEndedError where there is no batch for it.
    """
    rows = RowBuffer()
    seen = replay_step(run, run.start_step, rows, recorded=True)
    if seen.error is not None:
        return Estimate(raised=_raised(seen.error, run.root))
    count = len(rows.take())
    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.device)
    began = time.perf_counter()
    try:
        train_step(run, run.start_step, StepWatch())  # its loss is read at its end: the device has finished then
    except Exception as error:  # of the second time, on weights that the first has moved
        return Estimate(rows=count, raised=_raised(error, run.root))
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return _estimate(time.perf_counter() - began, count, run, settings)


def _estimate(seconds: float, rows: int, run: TrainingRun, settings: HuntSettings) -> Estimate:
    detected, recorded, every_op = _COSTS[run.device.type]
    with_rows = -(-settings.steps // settings.every)
    replay = seconds * (with_rows * recorded + (settings.steps - with_rows) * detected)
    return Estimate(
        step=seconds,
        replay=replay,
        zoom=seconds * every_op if settings.zoom else None,
        trials=seconds_for_trials(settings, replay) if settings.trials else None,
        rows=rows,
        trace=rows * with_rows * BYTES_A_ROW,
        peak=torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else None,
    )


def _raised(error: BaseException, root: Path) -> str:
    """Return the exception's first line, and the user's line that it came from."""
    text = (str(error).strip().splitlines() or [""])[0]
    line = user_line(error)
    where = f", at {place(line, root)}" if line else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"
