"""Who wrote what, and what gave birth: read off the log of a step when the step is over.

While a step runs, its ops are only noted down, in their order, and the looks at their tensors wait on the device. Here
the log is gone through once, with every look's answer at hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nanhunt.probes.event import Look, OpEvent, Seen, Terminal, births_by_lane, is_asked_for
from nanhunt.probes.memory import Cell
from nanhunt.stats.flags import FINITE, Flags
from nanhunt.trace.schema import Phase

__all__ = ["Asked", "Given", "Log", "resolve"]


@dataclass(slots=True)
class Given:
    """Memory that came from outside at this point: nobody in the step wrote it."""

    cell: Cell


@dataclass(slots=True)
class Asked:
    """Something that must be finite, looked at at this point."""

    kind: str
    phase: Phase
    micro: int
    look: Look


Log = list[OpEvent | Given | Asked]


def resolve(log: Log, events: Sequence[OpEvent], flags: Sequence[Flags]) -> list[Terminal]:
    """Fill in every event's flags, writers, births and repetitions; return what should be finite and is not."""
    terminals: list[Terminal] = []
    if not any(found.bad for found in flags):
        return terminals  # nothing was born, and nobody asks who wrote what
    first_runs: dict[tuple[int, str], list[OpEvent]] = defaultdict(list)
    for entry in log:
        if isinstance(entry, Given):
            entry.cell.writer = entry.cell.spoiler = None
        elif isinstance(entry, Asked):
            seen = _read(Seen(*entry.look), flags)
            is_mask = entry.kind == "buffer" and not (seen.nan or seen.posinf)  # -inf alone is allowed in a buffer
            if seen.bad and not is_mask:
                terminals.append(
                    Terminal(entry.kind, seen.name, entry.phase, entry.micro, seen.writer, seen.nan, seen.writer_lane)
                )
        else:
            _settle(entry, events, flags, first_runs)
    return terminals


def _settle(
    event: OpEvent,
    events: Sequence[OpEvent],
    flags: Sequence[Flags],
    first_runs: dict[tuple[int, str], list[OpEvent]],
) -> None:
    for seen in event.inputs:
        _read(seen, flags)
    went_bad = False
    for seen in event.outputs:
        went_bad |= _read(seen, flags).flags is not FINITE
    if event.is_again:
        event.repeats = _first_run(event, first_runs[event.micro, event.op])
    elif event.phase is Phase.FORWARD:
        first_runs[event.micro, event.op].append(event)
    if event.forward is not None and events[event.forward].repeats is not None:
        event.forward = events[event.forward].repeats
    if went_bad and not event.is_factory:
        event.births = births_by_lane(event.inputs, event.outputs)
        event.constant = is_asked_for(event)
    owner = event.index if event.repeats is None else event.repeats
    # `unsafe_split` and its kin are views that say they are none: a finite part of a tensor does not heal the rest
    shared = {id(seen.cell) for seen in event.inputs}
    for position, seen in enumerate(event.outputs):
        whole = position < event.fresh and id(seen.cell) not in shared
        seen.cell.wrote(owner, seen.lane, bad=seen.flags is not FINITE or event.is_factory, whole=whole)


def _read(seen: Seen, flags: Sequence[Flags]) -> Seen:
    """Fill in what a look showed, and who had written the memory by then."""
    found = seen.flags = flags[seen.ticket]
    writer = seen.cell.writer_of(bad=found is not FINITE)
    if writer is None and seen.cell.writer is not None:
        seen.origin = seen.origin or "memory that something other than torch's ops wrote"
    if writer is not None:
        seen.writer, seen.writer_lane = writer
    return seen


def _first_run(event: OpEvent, candidates: list[OpEvent]) -> int | None:
    """Return the forward event that a recomputed one repeats: as bad as this one, by preference in its place."""
    alike = [c for c in candidates if bool(c.bad_outputs) == bool(event.bad_outputs)]
    alike = [c for c in alike if c.module == event.module] or alike
    alike = [c for c in alike if c.source == event.source] or alike
    return alike[-1].index if alike else None
