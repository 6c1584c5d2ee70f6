"""Copies of one model inside one process, as emulated data-parallel ranks keep them, and where they part.

Two parts of a model are replicas when every weight of one has a twin of equal numbers in the other when the replay
begins, and updates have moved both alike. A target network or a moving average is a copy too, but its updates are others
from the first step on; constant weights (ones of a norm) say nothing.

A single parameter may have a copy as well, where the parts around the two differ: an embedding that the first and the last
stage of a pipeline both hold, a norm beside shards. Two such are held to be copies by their gradients: not zero, and equal
to the last bit in several steps that move both. They part where those differ by more than rounding makes. Biases are left
out, as two that are added to each other have one gradient anyway; so are experts that decay alike without a token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["Parted", "parted_replicas"]

_NUMBERS = ("numel", "nan", "posinf", "neginf", "zero", "amax", "amin", "mean", "l2")
_NUMEL, _ZERO, _AMAX, _AMIN, _L2 = (_NUMBERS.index(n) for n in ("numel", "zero", "amax", "amin", "l2"))
#: Equal gradients after which two single parameters are copies: no chance makes five, bit for bit.
_STEPS = 5
#: Relative difference of two gradients that is no matter of rounding, in fp16 either.
_APART = 0.01

#: Numbers of each tensor by qualified name.
_Moment = dict[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """Two replicas that part: in `count` tensors after `step`, after `alike` steps that moved them alike.

    Of two single parameters, `one` and `other` are their whole names.
    """

    step: int
    one: str
    other: str
    #: the first tensor that differs, as it is called below either; '' of single parameters
    parameter: str
    count: int
    alike: int


def parted_replicas(evidence: Evidence) -> Parted | None:
    """Return the first place where two replicas of one process part; None where there are none, or they stay equal."""
    loaded = _moments(evidence, "weight", loaded=True)
    first = loaded[min(loaded)] if loaded else {}
    pairs, single = list(_pairs(first)), list(_single_pairs(first))
    if not pairs and not single:
        return None
    weights, updates, gradients = (_moments(evidence, role) for role in ("weight", "update", "grad"))
    found = [p for pair in pairs if (p := _parted(*pair, weights, updates, gradients)) is not None]
    if not found:
        found = [p for one, other in single if (p := _parted_alone(one, other, weights, gradients)) is not None]
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
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for values, names in _alike(first).items():
        for other in names[1:]:
            counts[_prefixes(names[0], other)] += int(values[_NUMEL] or 0)
    for (one, other), equal in counts.items():
        below = sorted(n.removeprefix(one) for n in first if n.startswith(one))
        telling = [n for n in below if first[one + n][_AMAX] != first[one + n][_AMIN]]
        size = sum(int(first[one + n][_NUMEL] or 0) for n in telling)
        if all(other + n in first for n in below) and 2 * equal > size:
            yield one, other, below


def _alike(first: _Moment) -> dict[tuple[float | None, ...], list[str]]:
    """Return the names of equal numbers, without constant tensors."""
    alike: dict[tuple[float | None, ...], list[str]] = defaultdict(list)
    for name, values in first.items():
        if values[_AMAX] != values[_AMIN]:
            alike[values].append(name)
    return alike


def _single_pairs(first: _Moment) -> Iterator[tuple[str, str]]:
    for names in _alike(first).values():
        yield from ((names[0], other) for other in names[1:] if not names[0].endswith("bias"))


def _parted_alone(
    one: str, other: str, weights: dict[tuple[int, bool], _Moment], gradients: dict[tuple[int, bool], _Moment]
) -> Parted | None:
    """Return where two single parameters part, if `_STEPS` equal gradients moved both before."""
    alike = 0
    for at in sorted(weights):
        a, b = (gradients.get(at, {}).get(name) for name in (one, other))
        if weights[at].get(one) != weights[at].get(other):
            parts = alike >= _STEPS and a is not None and b is not None and _differ(a, b)
            return Parted(step=at[0], one=one, other=other, parameter="", count=1, alike=alike) if parts else None
        alike += a is not None and a == b and _is_moved(a)
    return None


def _differ(one: tuple[float | None, ...], other: tuple[float | None, ...]) -> bool:
    """Whether two gradients differ by more than another order of sums makes, and neither was switched off."""
    if not _is_moved(one) or not _is_moved(other):
        return False
    pairs = ((one[at] or 0.0, other[at] or 0.0) for at in (_L2, _AMAX))
    return any(abs(a - b) > _APART * max(a, b) for a, b in pairs)


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
    gradients: dict[tuple[int, bool], _Moment],
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
        arrived = [g for n in below if (g := gradients.get(at, {}).get(one + n)) is not None]
        decays = bool(arrived) and not any(_is_moved(g) for g in arrived)  # as an expert does that no token reaches
        moved = bool(moves) and all(a == b for a, b in moves) and any(_is_moved(a) for a, _ in moves)
        alike += moved and not decays
    return None


def _begin_alike(
    one: str, other: str, below: list[str], differ: list[str], updates: dict[tuple[int, bool], _Moment]
) -> bool:
    """Whether the first update moves alike what began equal."""
    first = updates[min(updates)] if updates else {}
    same = [(first.get(one + n), first.get(other + n)) for n in below if n not in differ]
    return bool(same) and all(a == b for a, b in same) and any(_is_moved(a) for a, _ in same)


def _is_moved(change: tuple[float | None, ...] | None) -> bool:
    """Whether an update, or a gradient, is anything but zeros."""
    return change is not None and change[_ZERO] != change[_NUMEL]
