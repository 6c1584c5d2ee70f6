"""Copies of one model inside one process, as emulated data-parallel ranks keep them, and where they part.

Two parts of a model are replicas when every weight of one has a twin of equal numbers in the other when the replay
begins, and updates have moved both alike. A target network or a moving average is a copy too, but its updates are others
from the first step on; constant weights (ones of a norm) say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["Parted", "parted_replicas"]

_NUMBERS = ("numel", "nan", "posinf", "neginf", "zero", "amax", "amin", "mean", "l2")
_NUMEL, _ZERO, _AMAX, _AMIN = (_NUMBERS.index(n) for n in ("numel", "zero", "amax", "amin"))

#: Numbers of each tensor by qualified name.
_Moment = dict[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """Two replicas that part: in `count` tensors after `step`, after `alike` steps that moved them alike."""

    step: int
    one: str
    other: str
    #: the first tensor that differs, as it is called below either
    parameter: str
    count: int
    alike: int


def parted_replicas(evidence: Evidence) -> Parted | None:
    """Return the first place where two replicas of one process part; None where there are none, or they stay equal."""
    loaded = _moments(evidence, "weight", loaded=True)
    pairs = list(_pairs(loaded[min(loaded)])) if loaded else []
    if not pairs:
        return None
    weights, updates = _moments(evidence, "weight"), _moments(evidence, "update")
    found = [p for one, other, below in pairs if (p := _parted(one, other, below, weights, updates)) is not None]
    return min(found, key=lambda p: p.step, default=None)


def _moments(evidence: Evidence, role: str, *, loaded: bool = False) -> dict[tuple[int, bool], _Moment]:
    """Return the tensors of a role by (step, whether behind the update); if `loaded`, as they were loaded alone."""
    columns = ["step", "phase", "module", "name", *_NUMBERS]
    rows = evidence.cells(role, columns, phases=["load"] if loaded else None)
    moments: dict[tuple[int, bool], _Moment] = defaultdict(dict)
    for step, phase, module, name, *values in rows:
        told = tuple(None if v != v else float(v) for v in values)
        moments[step, phase != "load"][f"{module}.{name}".lstrip(".")] = told
    return moments


def _pairs(first: _Moment) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (prefix, other prefix, names below both) of parts most of whose elements begin equal.

    Biases that are added to each other get the same gradient, and are equal for ever where both began at zero: the two
    norms at the end of a ResNet's block have one each, beside weights that differ. So half of the elements is too few.
    """
    alike: dict[tuple[float | None, ...], list[str]] = defaultdict(list)
    for name, values in first.items():
        if values[_AMAX] != values[_AMIN]:
            alike[values].append(name)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for values, names in alike.items():
        for other in names[1:]:
            counts[_prefixes(names[0], other)] += int(values[_NUMEL] or 0)
    for (one, other), equal in counts.items():
        below = sorted(n.removeprefix(one) for n in first if n.startswith(one))
        telling = [n for n in below if first[one + n][_AMAX] != first[one + n][_AMIN]]
        size = sum(int(first[one + n][_NUMEL] or 0) for n in telling)
        if all(other + n in first for n in below) and 2 * equal > size:
            yield one, other, below


def _prefixes(one: str, other: str) -> tuple[str, str]:
    """Return two names without the segments in which they end alike: ("ranks.0.", "ranks.1.")."""
    a, b = one.split("."), other.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join(a) + ".", ".".join(b) + "."


def _parted(
    one: str,
    other: str,
    below: list[str],
    weights: dict[tuple[int, bool], _Moment],
    updates: dict[tuple[int, bool], _Moment],
) -> Parted | None:
    alike, steps = 0, sorted(weights)
    for at in steps:
        differ = [n for n in below if weights[at].get(one + n) != weights[at].get(other + n)]
        moves = [(u.get(one + n), u.get(other + n)) for n in below for u in (updates.get(at, {}),)]
        if differ and (alike or at == steps[0]):
            parted = Parted(
                step=at[0], one=one[:-1], other=other[:-1], parameter=differ[0], count=len(differ), alike=alike
            )
            # what differs from the start are replicas only if what follows moves them alike
            return parted if alike or _begin_alike(one, other, below, differ, updates) else None
        if differ:
            return None
        alike += bool(moves) and all(a == b for a, b in moves) and any(_is_moved(a) for a, _ in moves)
    return None


def _begin_alike(
    one: str, other: str, below: list[str], differ: list[str], updates: dict[tuple[int, bool], _Moment]
) -> bool:
    """Whether the first update moves alike what began equal."""
    first = updates[min(updates)] if updates else {}
    same = [(first.get(one + n), first.get(other + n)) for n in below if n not in differ]
    return bool(same) and all(a == b for a, b in same) and any(_is_moved(a) for a, _ in same)


def _is_moved(update: tuple[float | None, ...] | None) -> bool:
    return update is not None and update[_ZERO] != update[_NUMEL]
