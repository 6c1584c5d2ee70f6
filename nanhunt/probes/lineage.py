"""From what was spoiled back to what broke first: the root of a fault among the ops of one step.

'The first non-finite op' is not the cause. An inf that a softmax consumes, a branch that `where` discards, a metric
that nobody uses are first as well. A birth counts when it reaches the loss, a gradient, a weight or a buffer. So the
walk goes backwards: from what must be finite and is not, through non-finite inputs only, to the earliest op that made
a non-finite value out of finite ones, or to what the step was given (a weight, a buffer, the batch). Only where there is
none does a NaN that was made of a deliberate -inf count (a softmax row with every score masked), or a constant that the
code asks for by name.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanhunt.probes.event import OpEvent, Seen, Terminal
from nanhunt.probes.op import OpProbe
from nanhunt.probes.source import place
from nanhunt.trace.schema import Hop

__all__ = ["Root", "find_root", "hops_from"]

#: The order in which terminals speak: a NaN loss explains its gradients, not the other way round.
_SEVERITY = ("exception", "loss", "gradient", "weight", "state", "buffer")
#: What a -inf is meant for: the one kind of op that it may enter on purpose.
_SOFTMAX_LIKE = (
    "aten._softmax",
    "aten._log_softmax",
    "aten._safe_softmax",
    "aten.logsumexp",
    "aten._scaled_dot_product",
)

#: Where a deliberate -inf stops being a mask: what takes a row together, or picks one of its values.
_ESCAPES = (
    "aten.nll_loss",
    "aten.sum",
    "aten.mean",
    "aten.amax",
    "aten.amin",
    "aten.max",
    "aten.min",
    "aten.logsumexp",
    "aten.gather",
    "aten.dot",
    "aten.mm",
    "aten.bmm",
)
#: A softmax written out subtracts the row's maximum: of a row without any key that is (-inf) - (-inf).
_BY_HAND = ("aten.sub", "aten.exp")

#: Event → the lanes of it that are meant.
_Closure = dict[int, set[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """Where a fault goes back to: an op that gave birth, or something that the step was given."""

    terminal: Terminal
    #: the op that gave birth; the first op that carried an inherited value; None where no op saw it
    event: OpEvent | None
    #: "parameter …", "buffer …", "batch …", "state …" where the value was there before the step; '' of a birth
    inherited: str = ""
    #: the mask whose -inf got out at `event`; None of any other root
    mask: OpEvent | None = None
    #: events that lie between the root and the terminal, the root's included
    closure: frozenset[int] = field(default_factory=frozenset)

    @property
    def births(self) -> list[int]:
        """Indices of the events of the closure, in order of execution."""
        return sorted(self.closure)


def find_root(probe: OpProbe) -> Root | None:
    """Return the root of the step's fault, None where everything that must be finite is."""
    groups = [[t for t in probe.terminals if t.kind == kind] for kind in _SEVERITY]
    # a loss that was handed over as a plain number was made by no op that was seen: what comes after it tells
    written = [g for g in groups if any(t.writer is not None for t in g)]
    chosen = next(iter([*written, *(g for g in groups if g)]), None)
    return _root_of(chosen, probe.events) if chosen else None


def _root_of(terminals: list[Terminal], events: list[OpEvent]) -> Root:
    closure, inherited = _closure(terminals, events)
    given = [(i, seen.origin or "a tensor made before the step") for i, seen in inherited if not _is_mask(seen)]
    born = [i for i in closure if _kinds(i, events, closure) & {"inf-from-finite", "nan-from-finite"}]
    first_given = min(given, default=None)
    first_birth = min((i for i in born if not events[i].constant), default=None)
    if first_birth is not None and (first_given is None or first_birth <= first_given[0]):
        return _rooted(terminals, events, closure, first_birth)
    if first_given is not None:
        return _rooted(terminals, events, closure, *first_given)
    turned = min((i for i in closure if "nan-from-inf" in _kinds(i, events, closure)), default=None)
    fed = min(((i, seen.origin) for i, seen in inherited if seen.origin.startswith("batch")), default=None)
    if fed is not None and (turned is None or not events[turned].op.startswith(_SOFTMAX_LIKE)):
        return _rooted(terminals, events, closure, *fed)
    # a constant, or memory that nobody has written: the first event that had nothing bad to carry
    source = min((i for i in closure if not any(s.bad for s in events[i].inputs)), default=None)
    escaped = _escape(closure, events, source, turned)
    if escaped is not None and source is not None:
        return replace(_rooted(terminals, events, closure, escaped), mask=events[source])
    start = source if turned is None else turned
    if start is not None:
        return _rooted(terminals, events, closure, start)
    first = terminals[0]
    return Root(terminal=first, event=None, inherited=f"{first.kind} {first.name}", closure=frozenset(closure))


def _escape(closure: _Closure, events: list[OpEvent], source: int | None, turned: int | None) -> int | None:
    """Return where the -inf of a mask that the code wrote gets out: into a reduction, or by being picked.

    None where an op made a NaN of it before that, or where the softmax is written out and its own row is empty.
    """
    if source is None or not events[source].constant or events[source].phase.value != "forward":
        return None
    out = min((i for i in closure if i > source and events[i].op.startswith(_ESCAPES)), default=None)
    if out is None or (turned is not None and (turned < out or events[turned].op.startswith(_BY_HAND))):
        return None
    return out


def _closure(terminals: list[Terminal], events: list[OpEvent]) -> tuple[_Closure, list[tuple[int, Seen]]]:
    """Return the events that non-finite values came through, and the non-finite inputs that no event wrote."""
    closure: _Closure = {}
    inherited: list[tuple[int, Seen]] = []
    queue = deque((t.writer, t.writer_lane) for t in terminals if t.writer is not None)
    while queue:
        index, lane = queue.popleft()
        if lane in closure.setdefault(index, set()):
            continue
        closure[index].add(lane)
        for given in events[index].inputs_of(lane):
            if not given.bad:
                continue
            if given.writer is None:
                inherited.append((index, given))
            elif given.writer < index:
                queue.append((given.writer, given.writer_lane))
    return closure, inherited


def _kinds(index: int, events: list[OpEvent], closure: _Closure) -> set[str]:
    """Return the births of an event in the lanes that the fault came through."""
    return {kind for lane, kind in events[index].births.items() if {lane, ""} & closure[index]}


def _is_mask(seen: Seen) -> bool:
    """Whether an inherited value looks deliberate: -inf alone, in something that is not a weight."""
    return seen.neginf and not seen.nan and not seen.posinf and not seen.origin.startswith(("parameter", "state"))


def _rooted(
    terminals: list[Terminal], events: list[OpEvent], closure: _Closure, index: int, inherited: str = ""
) -> Root:
    reached = _descendants(index, events, closure)
    terminal = next((t for t in terminals if t.writer in reached), terminals[0])
    return Root(terminal=terminal, event=events[index], inherited=inherited, closure=frozenset(closure))


def _descendants(index: int, events: list[OpEvent], closure: _Closure) -> set[int]:
    reached = {index}
    for later in sorted(i for i in closure if i > index):
        if any(given.bad and given.writer in reached for given in events[later].inputs):
            reached.add(later)
    return reached


def hops_from(root: Root, events: list[OpEvent], base: Path) -> list[Hop]:
    """Return the shortest way from the root to what it spoiled, an entry an op, none left out."""
    if root.event is None or root.terminal.writer is None:
        return []
    path = _path(root.event.index, root.terminal.writer, events, set(root.closure))
    return [
        Hop(
            seq=events[i].seq,
            phase=events[i].phase.value,
            op=events[i].op,
            module=events[i].module,
            source=place(source, base) if (source := events[i].source) else None,
            does="birth" if i == root.event.index and not root.inherited else "carries",
        )
        for i in path
    ]


def _path(start: int, end: int, events: list[OpEvent], closure: set[int]) -> list[int]:
    """Return the shortest chain of events from `start` to `end` by breadth-first search from the end."""
    came_from: dict[int, int | None] = {end: None}
    queue = deque([end])
    while queue:
        index = queue.popleft()
        if index == start:
            break
        for given in events[index].inputs:
            writer = given.writer
            if given.bad and writer is not None and writer < index and writer in closure and writer not in came_from:
                came_from[writer] = index
                queue.append(writer)
    if start not in came_from:
        return [start, end] if start != end else [start]
    path, step = [start], came_from[start]
    while step is not None:
        path.append(step)
        step = came_from[step]
    return path
