"""What an entry of a loss log counts: the steps that it stands for, and how many times their loss.

Steps. Loops number a step before or after they count it up, and log the loss of a step or the mean since the last entry.

Times. A loop that adds up its micro-batches without dividing logs `train.accumulate` times the loss of a step; one that
divides before it takes the mean logs a part of it; a sum over ranks or over the steps of an interval is a whole number
of times; bits for nats is a constant like any other.

How it is found out. Where the writer is not known, the losses decide, by how likely a fit is by chance. A loss agrees
with another by chance as often as its rounding goes into the losses' own range; another count than the plain one is
taken where so many first losses fit it that chance would make less than one such fit in a hundred. A factor is looked
for only where not even the first loss fits without one. There are more factors than counts, so it has to fit better: what
chance gives the first loss is counted by how many factors there are near its own, and all of it for a constant, which
the first loss sets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

__all__ = ["LogCount", "Pair", "log_count", "pairs_of"]

#: A count that fits by chance less often than this is the log's; and a factor.
CHANCE = 0.01
CHANCE_OF_FACTOR = 0.001
#: The largest number of ranks, steps or micro-batches that a factor is read as.
WHOLE = 4096
#: A factor below this, or beyond its inverse, is that of no log.
LEAST = 1e-6
#: A constant nearer to 1 than this is rounding, or a training that is not the same.
DIFFERS = 0.01
#: first losses that a constant is taken from
FIRST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCount:
    """How a log counts beside the replay.

    `origin` is what a factor is: "sum" or "share" (`train.accumulate` times the loss, or that part of it), "whole" (another
    whole number of times, or that part), "constant", or "" where there is none.
    """

    #: the log's number of a step less the replay's
    offset: int = 0
    #: whether losses are means over several steps, those since the entry before
    mean: bool = False
    #: a logged loss over the replay's
    factor: float = 1.0
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A logged loss and the replay's of the same steps, that many times."""

    since: int
    step: int
    logged: float
    replayed: float
    #: what the log's rounding explains
    digits: float

    @property
    def difference(self) -> float:
        """0 where both are not finite; infinite where one of them is."""
        if math.isfinite(self.logged) and math.isfinite(self.replayed):
            return abs(self.logged - self.replayed)
        return 0.0 if math.isfinite(self.logged) == math.isfinite(self.replayed) else math.inf

    def fits(self, rounding: float) -> bool:
        """Whether the two agree to the log's digits and the rounding of a first loss."""
        return self.difference <= self.digits + rounding * abs(self.logged)


def log_count(body: dict[str, Any], losses: dict[int, float], micros: int, rounding: float) -> LogCount:
    """Return how the log that a note holds counts; `micros` is `train.accumulate`, `rounding` relative to a loss."""
    search = _Search(body=body, losses=losses, micros=micros, rounding=rounding)
    found = search.best_plain()
    return found if search.fit(found) else search.best_factor() or found


def pairs_of(body: dict[str, Any], losses: dict[int, float], micros: int, count: LogCount) -> Iterator[Pair]:
    """Yield the logged losses all of whose steps were replayed and recorded."""
    hides = set(body.get("hides", ()))
    before: int | None = None
    for at, logged, resolution in zip(body["steps"], body["losses"], body["resolution"], strict=True):
        since = at if not count.mean else None if before is None else before + 1
        before = at
        if since is None:
            continue
        steps = range(since - count.offset, at - count.offset + 1)
        found = [losses[s] for s in steps if s in losses]
        if len(found) < len(steps):
            continue
        replayed = count.factor * math.fsum(found) / len(found) if all(map(math.isfinite, found)) else math.nan
        if at in hides and math.isfinite(logged) and not math.isfinite(replayed):
            continue
        # a loop adds up its losses in fp32, one rounding for each
        sums = (len(found) * micros - 1 + (count.factor != 1.0)) * 2.0**-23 + 2.0**-50
        digits = 0.501 * resolution + sums * abs(logged) if math.isfinite(logged) else 0.0
        yield Pair(since=steps[0], step=steps[-1], logged=logged, replayed=replayed, digits=digits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """The counts that there are, and how well each fits."""

    body: dict[str, Any]
    losses: dict[int, float]
    micros: int
    rounding: float
    #: how often a loss agrees with another by chance
    chance: float = field(init=False)

    def __post_init__(self) -> None:
        finite = [v for v in self.body["losses"] if math.isfinite(v)]
        spread = max(finite, default=0.0) - min(finite, default=0.0)
        near = 2 * self.rounding * max(map(abs, finite), default=0.0) + max(self.body["resolution"], default=0.0)
        object.__setattr__(self, "chance", min(1.0, near / spread) if spread else 1.0)

    def plain(self) -> list[LogCount]:
        if self.body.get("mean"):
            return [LogCount(offset=1, mean=True)]  # a Trainer's: it logs when the step is counted
        counts = [LogCount(), LogCount(offset=1), LogCount(offset=-1)]
        steps = self.body["steps"]
        if any(b > a + 1 for a, b in pairwise(steps)):  # the mean of one step is its loss
            counts += [LogCount(offset=1, mean=True), LogCount(mean=True)]
        return counts

    def pairs(self, count: LogCount) -> list[Pair]:
        return list(pairs_of(self.body, self.losses, self.micros, count))

    def fit(self, count: LogCount) -> int:
        """Return how many losses agree before the first that does not; two that are not finite tell nothing."""
        agreed = 0
        for pair in self.pairs(count):
            if not pair.fits(self.rounding):
                break
            agreed += math.isfinite(pair.logged)
        return agreed

    def best_plain(self) -> LogCount:
        counts = self.plain()
        fits = {count: self.fit(count) for count in counts}
        best = max(counts, key=lambda count: fits[count])
        return best if fits[best] > fits[counts[0]] and self.chance ** fits[best] < CHANCE else counts[0]

    def best_factor(self) -> LogCount | None:
        """Return the count that chance explains least of those under a factor; None where it could be chance."""
        counts = self.plain()
        likely = {c: self._by_chance(c) * len(counts) for plain in counts for c in self._under_factors(plain)}
        best = min(likely, key=lambda count: likely[count], default=None)
        return best if best is not None and likely[best] < CHANCE_OF_FACTOR else None

    def _by_chance(self, count: LogCount) -> float:
        """Return how likely it is that so many first losses fit by chance."""
        fits = self.fit(count)
        if not fits:
            return 1.0
        # 2 named factors; whole numbers, or their inverses, lie this close to each other beside what rounding allows
        size = max(count.factor, 1 / count.factor)
        first = {"sum": 2 * self.chance, "share": 2 * self.chance, "whole": 4 * self.rounding * size}
        return min(1.0, first.get(count.origin, 1.0)) * float(self.chance ** (fits - 1))

    def _under_factors(self, plain: LogCount) -> Iterator[LogCount]:
        pairs = [p for p in self.pairs(plain) if p.replayed and LEAST <= p.logged / p.replayed <= 1 / LEAST]
        if not pairs:
            return
        ratio, allowed = _ratio(pairs, self.rounding)
        named = [("sum", float(self.micros)), ("share", 1.0 / self.micros)] if self.micros > 1 else []
        whole = round(ratio) if ratio > 1 else round(1 / ratio)
        if 1 < whole <= WHOLE:
            named.append(("whole", float(whole) if ratio > 1 else 1.0 / whole))
        near = [(origin, factor) for origin, factor in named if abs(ratio - factor) <= allowed * factor]
        if not near and abs(ratio - 1.0) > DIFFERS:
            near = [("constant", ratio)]
        for origin, factor in near[:1]:
            yield replace(plain, factor=factor, origin=origin)


def _ratio(pairs: Sequence[Pair], rounding: float) -> tuple[float, float]:
    """Return what the logged losses are of the replayed, by the first ones that agree on it, and how far it may be off."""
    first = pairs[0]
    ratio, allowed = first.logged / first.replayed, rounding + first.digits / abs(first.logged)
    alike = [p for p in pairs[:FIRST] if abs(p.logged / p.replayed - ratio) <= 2 * allowed * abs(ratio)]
    return sum(p.logged for p in alike) / sum(p.replayed for p in alike), allowed
