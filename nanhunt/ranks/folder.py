"""The trace of several ranks: a folder with a file of each."""

from __future__ import annotations

import shutil
from pathlib import Path

from nanhunt.errors import TraceError
from nanhunt.ranks.world import RankLostError, World

__all__ = ["await_others", "own_file"]


def own_file(out: Path, world: World, *, force: bool) -> Path:
    """Make the folder `out`, anew with `force`, and return where this rank's file goes. Raises TraceError."""
    trouble = None
    if world.rank == 0:
        try:
            if force:
                shutil.rmtree(out, ignore_errors=True)
                out.unlink(missing_ok=True)
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            trouble = error.strerror
    trouble = world.told(trouble, by=0)
    if trouble:
        raise TraceError(f"cannot write {out}: {trouble}")
    return out / f"rank-{world.rank:04d}.parquet"


def await_others(world: World) -> None:
    """Wait until the other ranks have closed their files: a launcher ends them all as soon as one ends badly."""
    try:
        world.summed([0.0], briefly=True)
    except RankLostError:
        return
