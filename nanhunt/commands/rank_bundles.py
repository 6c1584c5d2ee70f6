"""Which of the bundles that the ranks of a recorded script left is to be looked into first.

A NaN on one rank is in all ranks' gradients by the end of the step, and each rank leaves a bundle. The fault is in that of
the rank which raised, or whose own loss was not finite.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RankBundle", "first_at_fault"]

#: Seconds that the other ranks' processes have to write theirs: they are in the same step.
_WAIT = 5.0
_OFTEN = 0.1
_NAME = re.compile(r"(step-\d+)(?:-rank(\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBundle:
    """What a rank's bundle says of its fault."""

    folder: Path
    rank: int
    world_size: int
    kind: str
    detail: str
    #: whether the ranks can replay theirs together
    is_of_all: bool

    @property
    def order(self) -> tuple[int, int]:
        """How early in a step the fault is: an exception, a loss, anything else; then by rank."""
        return (0 if self.kind == "exception" else 1 if self.detail.startswith("loss") else 2), self.rank


def first_at_fault(own: Path, since: float) -> RankBundle | None:
    """Return the first at fault of the bundles of one step, which ranks wrote after a moment; None of a run of one process.

    Waits a few seconds for those that are not there yet.
    """
    mine = _read(own, since)
    if mine is None or mine.world_size < 2:
        return None
    ends = time.monotonic() + _WAIT
    while len(found := _of_step(own, since)) < mine.world_size and time.monotonic() < ends:
        time.sleep(_OFTEN)
    return min(found, key=lambda bundle: bundle.order)


def _of_step(own: Path, since: float) -> list[RankBundle]:
    named = _NAME.fullmatch(own.name)
    if named is None:
        return []
    beside = [own.with_name(named[1]), *own.parent.glob(f"{named[1]}-rank*")]
    return [bundle for path in beside if (bundle := _read(path, since)) is not None]


def _read(folder: Path, since: float) -> RankBundle | None:
    """Return what a bundle says; None of one of an earlier run, or that is damaged."""
    path, named = folder / "run.json", _NAME.fullmatch(folder.name)
    try:
        if named is None or path.stat().st_mtime < since:
            return None
        body = json.loads(path.read_text())
        return RankBundle(
            folder=folder,
            rank=int(named[2] or 0),
            world_size=int(body["world_size"]),
            kind=str(body["fault"]["kind"]),
            detail=str(body["fault"]["detail"]),
            is_of_all=body["replication"] is not None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
