"""Ranks hold different values where they must agree.

What it looks like
------------------
Loss curves of the ranks part; or rank 0 logs a finite loss and all ranks are NaN one step later, because another rank's
NaN entered the all-reduce; or replicated weights differ in their bits while training still looks fine.

Why training breaks
-------------------
Data parallelism averages gradients and takes identical weights for granted. A rank that decides a skip alone, a buffer
that is not broadcast, another seed, a clip by the norm of one shard or a missed collective breaks that, and nothing
restores it: BLOOM's layer norms were out of step over tensor-parallel ranks for 17 000 steps before anybody saw.

Evidence
--------
A sum of the bits of every weight, moment and buffer that all ranks hold, after each recorded step: equal when the replay
began, different later. Tensors that differ from the beginning are shards, and prove nothing. What the ranks show each
other of that step tells why: whether the gradient differed already, who made no update, the rates, the factors of the
clip, random numbers on a batch that all of them read. Factors of a clip that differ are told where no weight is held
twice, too: each rank has clipped by the norm of its own shard.

Where one process keeps the replicas itself, the
same numbers are compared between them: parts of the model that begin equal, and that updates have moved alike; or two
single parameters, as of a tied embedding, whose gradients were one to the last bit for five steps, and then are two.

Fix
---
Reduce the finiteness flag over all ranks before any of them skips, and the squares before a clip; broadcast weights and buffers after load; compare a
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

from collections.abc import Sequence
from typing import Any

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.replicas import Parted, parted_replicas
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

_FIXES = (
    "decide skips on all ranks together: all-reduce the finiteness flag first",
    "broadcast weights and buffers from one rank after loading, and compare hashes every N steps",
)
#: Ranks that are named.
_SHOWN = 4
_NUMBERS = ("numel", "nan", "posinf", "neginf", "zero", "amax", "amin", "l2")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a tensor that is equal in all ranks at first and differs later."""
    if evidence.onset is None:
        return None
    inside = parted_replicas(evidence)
    if inside is not None:
        return _inside(evidence, inside)
    if evidence.manifest.world_size < 2:
        return NotApplicable(reason="one process: there are no ranks to compare")
    if evidence.ranks.rank_count < 2:
        return NotApplicable(reason=f"the trace holds one rank of {evidence.manifest.world_size}")
    seen = evidence.ranks.note_of(NoteKind.PARTED)
    if seen is not None:
        return _seen(seen)
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


def _seen(body: dict[str, Any]) -> Suspect:
    """What the ranks showed each other after the step that parted them: the reason, where the step shows one."""
    if not body["count"]:
        return _clipped_apart(body)
    step, tensor, world = int(body["step"]), str(body["tensor"]), int(body["world_size"])
    why, fixes = _why(body)
    exhibits = [
        Exhibit(claim=f"of {body['of']} tensors equal on all ranks before step {step}, those that differ after it", value=float(body["count"]), threshold=0.0),
    ]  # fmt: skip
    if body["gradients"] is not None:
        exhibits.append(
            Exhibit(claim="gradients that differ between the ranks in that step", value=float(body["gradients"]))
        )
    return Suspect(
        cause="rank-divergence",
        grade=Grade.PROVED,
        summary=f"{tensor} is not the same on all {world} ranks after step {step}: {why}",
        location=Location(step=step, phase="update", module=tensor.rpartition(".")[0], parameter=tensor),
        exhibits=tuple(exhibits),
        fixes=fixes,
        depth=1,
    )  # fmt: skip


def _why(body: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return what parted them, and its mend, by what was still equal: the gradient, the update, the rate."""
    world, skipped, apart = int(body["world_size"]), body["skipped"], _ranks(body["ranks"])
    if body["clip"] and not body["gradients"]:
        return f"gradients are equal, and {_factors(body['clip'])}", _CLIP_FIXES
    if body["gradients"]:
        who = _ranks(body["gradient_ranks"])
        if body["same_batch"] and not body["same_rng"]:
            said = f"the gradient of {body['gradient']} differs already, by {who}: the ranks draw different random numbers on the same batch"
            return said, (
                "seed alike what is drawn on activations that every rank holds (a dropout outside of the shards)",
                _FIXES[1],
            )
        said = f"the gradient of {body['gradient']} differs already, by {who}: it was not reduced over all ranks"
        return said, (
            "run every backward pass that an update follows through the wrapper that reduces, and not under no_sync()",
            "where you reduce by hand, reduce every gradient, and on every rank also where a loss was left out",
        )
    if skipped and len(skipped) < world:
        said = f"{_ranks(skipped)} made no update, the others did"
        return said, ("decide skips on all ranks together: all-reduce the finiteness flag first", _FIXES[1])
    if body["lr"]:
        rates = ", ".join("none" if rate is None else f"{rate:g}" for rate in body["lr"][:_SHOWN])
        return f"the ranks' learning rates differ ({rates})", ("step the scheduler on every rank alike", _FIXES[1])
    if body["gradients"] == 0:
        return f"gradients are equal, and the update of {apart} is another", (
            "give every rank the same optimizer settings and state, and draw what an update draws from one seed", _FIXES[1],
        )  # fmt: skip
    return f"{apart} differs", _FIXES


def _clipped_apart(body: dict[str, Any]) -> Suspect:
    """Shards, none of which is held twice, cut by different factors."""
    step = int(body["step"])
    factors = [factor for factor in body["clip"] if factor is not None]
    return Suspect(
        cause="rank-divergence",
        grade=Grade.PROVED,
        summary=f"step {step}: {_factors(body['clip'])}",
        location=Location(step=step, phase="clip"),
        exhibits=(
            Exhibit(claim="smallest factor of the ranks' clips, against the largest", value=min(factors), threshold=max(factors)),
        ),
        fixes=_CLIP_FIXES,
        depth=1,
    )  # fmt: skip


_CLIP_FIXES = (
    "clip by one norm: add the squares over all ranks that hold a shard, then take the root",
    "with FSDP2 and DTensor pass the gradients themselves, not their to_local(); with FSDP1 call model.clip_grad_norm_()",
)


def _factors(clip: Sequence[float | None]) -> str:
    shown = ", ".join(f"rank {r} by {'none' if c is None else f'{c:.3g}'}" for r, c in enumerate(clip[:_SHOWN]))
    return f"each rank clips by the norm of its own shard ({shown})"


def _ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 1, 2 and 4 more`."""
    shown = ", ".join(map(str, ranks[:_SHOWN]))
    more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


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
    columns = ["step", "phase", "rank", "module", "name", *_NUMBERS]
    frame = evidence.ranks.frame(columns, roles=["weight"], passes=["replay"])
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
