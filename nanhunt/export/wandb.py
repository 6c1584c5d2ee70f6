"""Weights & Biases: the scalars of each step as one run, by wandb's own API and its own settings (WANDB_MODE=offline …)."""

from __future__ import annotations

from pathlib import Path

from nanhunt.errors import UsageError
from nanhunt.export.steps import PROJECT, facts, refused, steps
from nanhunt.trace.reader import Trace

__all__ = ["export_wandb"]


def export_wandb(trace: Trace, out: Path | None) -> str:
    """Log a new run, its local files in the folder `out`; return what was logged, in words. Raises UsageError without wandb."""
    try:
        import wandb
    except ImportError as error:
        raise UsageError(
            "--to wandb: the wandb package is not installed", hint="pip install 'nanhunt[wandb]'"
        ) from error
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    count = scalars = 0
    try:
        with wandb.init(project=PROJECT, name=trace.path.stem, config=facts(trace), dir=out) as run:
            for step in steps(trace):
                run.log(step.scalars, step=step.step)
                count, scalars = count + 1, scalars + len(step.scalars)
    except wandb.Error as error:
        raise refused("wandb", error) from error
    return f"{count} steps, {scalars} scalars"
