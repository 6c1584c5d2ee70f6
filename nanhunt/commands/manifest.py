"""The manifest of a replay: what it was run with, as its trace keeps it."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

import nanhunt
from nanhunt.hunt import HuntSettings
from nanhunt.trace.schema import Manifest
from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.config import RunConfig
from nanhunt.training.run import TrainingRun

__all__ = ["manifest_of"]


def manifest_of(
    run: TrainingRun,
    config: RunConfig,
    config_path: Path,
    checkpoint: Checkpoint,
    settings: HuntSettings,
    *,
    asked: str,
    place: tuple[int, int],
    precision: str | None,
    seed: int | None,
) -> Manifest:
    """Return the manifest; `asked`, `precision` and `seed` are the command line's: the checkpoint as it was named.

    `place` is the rank, and how many there are.
    """
    return Manifest(
        nanhunt_version=nanhunt.__version__,
        torch_version=torch.__version__,
        python_version=platform.python_version(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=sys.argv,
        device=_device_name(run.device),
        rank=place[0],
        world_size=place[1],
        checkpoint=asked,
        checkpoint_digest=checkpoint.digest,
        checkpoint_step=run.start_step,
        config_path=str(config_path),
        config=config.document(),
        settings={
            "steps": settings.steps,
            "every": settings.every,
            "precision": precision,
            "seed": seed,
            "zoom": settings.zoom,
            "trials": settings.trials,
        },
        match=run.matched.sentence if run.matched is not None else "",
        parameters=sum(p.numel() for p in run.model.parameters()),
    )


def _device_name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
