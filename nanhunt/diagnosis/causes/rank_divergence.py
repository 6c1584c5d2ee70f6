"""Ranks hold different values where they must agree.

What it looks like
------------------
Loss curves of the ranks part; or rank 0 logs a finite loss and all ranks are NaN one step later, because another rank's
NaN entered the all-reduce; or replicated weights differ in their bits while training still looks fine.

Why training breaks
-------------------
Data parallelism averages gradients and takes identical weights for granted. A rank that decides a skip alone, a buffer
that is not broadcast, another seed or a missed collective breaks that, and nothing restores it: BLOOM's layer norms were
out of step over tensor-parallel ranks for 17 000 steps before anybody saw.

Evidence
--------
Count, sum and extremes of every weight, by rank and step: equal in all ranks when the replay began, different later.
Tensors that differ from the beginning are shards, and prove nothing. Where one process keeps the replicas itself, the
same numbers are compared between them: parts of the model that begin equal, and that updates have moved alike; or two
single parameters, as of a tied embedding, whose gradients were one to the last bit for five steps, and then are two.

Fix
---
Reduce the finiteness flag over all ranks before any of them skips; broadcast weights and buffers after load; compare a
hash of the weights every N steps; seed alike what is replicated, and apart what is not.

How it is confirmed
-------------------
By the first step and tensor at which ranks differ. Trials run inside one rank and tell nothing.

When it is mistaken
-------------------
For nondeterminism, which differs between repetitions on one rank; for sharding and tensor parallelism, which differ by
design and from the start.

References
----------
WeatherGenerator PR#2718 (a skip that rank 0 decides); BLOOM-176B chronicles; DeepSpeed#1801; TrainCheck (OSDI 2025).
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.replicas import Parted, parted_replicas

__all__ = ["CAUSE"]

_FIXES = (
    "decide skips on all ranks together: all-reduce the finiteness flag first",
    "broadcast weights and buffers from one rank after loading, and compare hashes every N steps",
)
_NUMBERS = ("numel", "nan", "posinf", "neginf", "zero", "amax", "amin", "l2")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a weight that is equal in all ranks at first and differs later."""
    if evidence.onset is None:
        return None
    inside = parted_replicas(evidence)
    if inside is not None:
        return _inside(evidence, inside)
    if evidence.manifest.world_size < 2:
        return NotApplicable(reason="one process: there are no ranks to compare")
    if evidence.trace.rank_count < 2:
        return NotApplicable(reason=f"the trace holds one rank of {evidence.manifest.world_size}")
    parted = _parted(evidence)
    if parted is None:
        return None
    step, module, name, count = parted
    qualified = f"{module}.{name}".lstrip(".")
    return Suspect(
        cause="rank-divergence",
        grade=Grade.PROVED,
        summary=f"{qualified} differs between ranks from step {step} on, and was equal before",
        location=Location(step=step, phase="update", module=module, parameter=qualified),
        exhibits=(
            Exhibit(claim=f"weights equal in all ranks when the replay began that differ after step {step}", value=float(count), threshold=0.0),
        ),
        fixes=_FIXES,
        depth=1,
    )  # fmt: skip


def _inside(evidence: Evidence, parted: Parted) -> Suspect:
    """Replicas that one process keeps."""
    since = f"from step {parted.step} on" if parted.alike else "when the replay begins"
    before = f", and {parted.alike} steps had moved them alike" if parted.alike else ", though updates move both alike"
    if not parted.parameter:
        return _copies(parted)
    return Suspect(
        cause="rank-divergence",
        grade=Grade.PROVED if parted.alike else Grade.SUPPORTED,
        summary=f"{parted.parameter} of the replicas {parted.one} and {parted.other} differs {since}{before}",
        location=Location(
            step=parted.step, phase="update" if parted.alike else "load", module=parted.other, parameter=f"{parted.other}.{parted.parameter}"
        ),
        exhibits=(
            Exhibit(claim=f"tensors of {parted.one} and {parted.other} that differ {since}", value=float(parted.count), threshold=0.0),
            Exhibit(claim="steps of the replay that moved both alike before", value=float(parted.alike)),
        ),
        fixes=_FIXES,
        depth=1,
    )  # fmt: skip


def _copies(parted: Parted) -> Suspect:
    """Two single parameters: the copies of a tied weight, or of a norm that every rank keeps beside its shards."""
    return Suspect(
        cause="rank-divergence",
        grade=Grade.SUPPORTED,
        summary=f"{parted.one} and {parted.other}, which {parted.alike} steps had moved alike, differ from step {parted.step} on",
        location=Location(
            step=parted.step, phase="update", module=parted.other.rpartition(".")[0], parameter=parted.other
        ),
        exhibits=(
            Exhibit(claim="steps in which both had one gradient, to the last bit, before those differ", value=float(parted.alike)),
        ),
        fixes=(
            "add up the gradients of both copies before every update, over the ranks that hold one",
            "or hold the parameter once: `last.weight = first.weight`",
        ),
        depth=1,
    )  # fmt: skip


def _parted(evidence: Evidence) -> tuple[int, str, str, int] | None:
    """Return the first step after which ranks differ in what they agreed on, a weight, and how many of them."""
    frame = evidence.frame("weight", ["step", "phase", "rank", "module", "name", *_NUMBERS])
    frame = frame.assign(order=frame["step"] * 2 + (frame["phase"] != "load"))
    numbers = frame.groupby(["order", "module", "name"])[list(_NUMBERS)].nunique(dropna=False)
    differs = (numbers > 1).any(axis=1)
    shards: set[tuple[str, str]] = set()
    orders = sorted(frame["order"].unique())
    for order in orders:
        names = [(str(m), str(n)) for m, n in differs.loc[order][differs.loc[order]].index]
        if order == orders[0]:
            shards = set(names)
        new = [name for name in names if name not in shards]
        if new:
            return int(order) // 2, *new[0], len(new)
    return None


CAUSE = Cause(slug="rank-divergence", doc=__doc__ or "", examine=examine)
