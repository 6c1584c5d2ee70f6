"""What every page of an inspection says alike: the verdict, the census, a tensor's margins, settings in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nanhunt.errors import UsageError
from nanhunt.formats.catalogue import FP16, lookup
from nanhunt.formats.headroom import Headroom, headroom
from nanhunt.formats.number_format import AnyFormat
from nanhunt.inspection.facts import Average, Facts, Role, TensorFacts
from nanhunt.inspection.finding import Inspection
from nanhunt.inspection.moved import moved
from nanhunt.inspection.state_facts import GroupFacts
from nanhunt.report.words import counted, number, percent

__all__ = [
    "Census",
    "apart",
    "census",
    "margins",
    "oddities",
    "place_in_run",
    "settings",
    "shown_tensors",
    "size",
    "summary",
]

_UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """How many tensors, elements and bytes of one dtype a kind of tensor has; memory with two names counts once."""

    role: Role
    dtype: str
    tensors: int
    elements: int
    bytes: int


def summary(inspection: Inspection) -> str:
    """Return the verdict in one sentence."""
    facts, faults = inspection.facts, inspection.faults
    if faults:
        more = f", and {counted(len(faults) - 1, 'other fault')}" if len(faults) > 1 else ""
        origin = f": {inspection.origin.claim}" if inspection.origin else ""
        return f"{faults[0].claim}{more}{origin}."
    notices = f"; {counted(len(inspection.findings), 'notice')}" if inspection.findings else ""
    return f"{_held(facts)}: nothing is wrong with them{notices}."


def _held(facts: Facts) -> str:
    """Return what the file holds: '28 weights of 118,528 elements, an average of them, 1 buffer and 56 moments'."""
    nouns = {Role.BUFFER: "buffer", Role.MOMENT: "moment", Role.OTHER: "other tensor"}
    weights = facts.of_role(Role.WEIGHT)
    told = [f"{counted(len(weights), 'weight')} of {sum(t.numel for t in weights):,} elements"] if weights else []
    if facts.averages:
        told.append("an average of them" if len(facts.averages) == 1 else f"{len(facts.averages)} averages of them")
    for role, noun in nouns.items():
        count = len(facts.of_role(role))
        told += [counted(count, noun)] if count else []
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1]))) if told else "no tensors"


def place_in_run(facts: Facts) -> str:
    """Return where in the run the file was saved, ', step 30', or ', epoch 2' where that is all it tells; else ''."""
    if facts.step is not None:
        return f", step {facts.step}"
    return f", epoch {facts.epoch}" if facts.epoch is not None else ""


def apart(average: Average) -> str:
    """Return how far an average is from its weights, and in which tensor furthest."""
    if average.same == average.tensors:
        return "the same as the weights to the bit"
    if average.spoiled == average.tensors:
        return "NaN or Inf in every tensor"
    name, most = average.furthest
    furthest = f", at most {_times(most)} in {name}" if name and average.tensors > 1 else ""
    spoiled = f"; NaN or Inf in {counted(average.spoiled, 'tensor')}" if average.spoiled else ""
    return f"{_times(average.apart)} away from the weights{furthest}{spoiled}"


def _times(relative: float) -> str:
    return moved(relative).removesuffix(" of its norm").replace("its norm", "their norm")


def census(facts: Facts) -> list[Census]:
    """Return the census, largest first within each role."""
    held: dict[tuple[Role, str], list[TensorFacts]] = {}
    for t in facts.tensors:
        if not t.tied_to:
            held.setdefault((t.role, t.dtype), []).append(t)
    rows = [
        Census(
            role=role, dtype=dtype, tensors=len(ts), elements=sum(t.numel for t in ts), bytes=sum(t.bytes for t in ts)
        )
        for (role, dtype), ts in held.items()
    ]
    return sorted(rows, key=lambda row: (list(Role).index(row.role), -row.bytes))


def margins(t: TensorFacts) -> tuple[Headroom | None, Headroom | None]:
    """Return a tensor's headroom in its own format, where that is a float, and in fp16."""
    if t.stats is None or not t.stats.finite:
        return None, None
    try:
        own: AnyFormat | None = lookup(t.dtype)
    except UsageError:
        own = None
    s = t.stats
    return (
        headroom(own, amax=s.amax, amin=s.amin, exponents=s.exponents) if own else None,
        headroom(FP16, amax=s.amax, amin=s.amin, exponents=s.exponents) if own else None,
    )


def oddities(t: TensorFacts) -> str:
    """Return what is told of a tensor behind its numbers."""
    told = []
    if t.tied_to:
        told.append(f"tied to {t.tied_to}")
    if t.copy_of:
        told.append(f"same bytes as {t.copy_of}")
    if t.bad:
        told.append("-inf mask" if t.is_mask else f"{t.bad} not finite")
    if t.constant is not None:
        told.append(f"all {number(t.constant)}")
    if t.zero_rows:
        told.append(counted(t.zero_rows, "zero row"))
    if t.flips:
        told.append("flipped bit?")
    if t.runs:
        told.append(f"{counted(len(t.runs), 'run')} of one value")
    return ", ".join(told)


def shown_tensors(inspection: Inspection, top: int | None, *, moments: bool) -> list[TensorFacts]:
    """Return the tensors to print: those with findings or something non-finite first, then the nearest to fp16's end.

    Without `moments`, averages are left out as well: they are what the weights are.
    """
    named = {f.tensor for f in inspection.findings}
    every = inspection.facts.tensors
    moments = moments or all(t.role is Role.MOMENT for t in every)
    quiet = () if moments else (Role.MOMENT, Role.AVERAGE)
    rows = [t for t in every if t.role not in quiet or t.name in named or t.is_poisoned]

    def weight(t: TensorFacts) -> tuple[bool, bool, float]:
        return (t.name not in named, not t.is_poisoned, -(t.stats.amax if t.stats else 0.0))

    return sorted(rows, key=weight)[:top]


def settings(group: GroupFacts) -> Iterable[tuple[str, str]]:
    """Yield a group's settings in words: the telling ones first, switches that are off left out."""
    order = ("lr", "initial_lr", "betas", "momentum", "eps", "weight_decay")
    keys = [*(k for k in order if k in group.settings), *(k for k in group.settings if k not in order)]
    for key in keys:
        value = group.settings[key]
        if value is False or (value == 0 and key not in ("lr", "weight_decay")):
            continue
        yield key, ", ".join(map(_spelt, value)) if isinstance(value, tuple) else _spelt(value)


def _spelt(value: object) -> str:
    return number(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def size(count: int) -> str:
    """Return bytes in the unit that leaves one to three digits before the point."""
    power = min(int(math.log(count, 1000)), len(_UNITS) - 1) if count > 0 else 0
    return f"{count / 1000**power:.3g} {_UNITS[power]}" if power else f"{count} B"


def share(part: int, whole: int) -> str:
    """Return a share as a percentage, '' of none."""
    return percent(part / whole) if part and whole else ""
