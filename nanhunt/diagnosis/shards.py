"""Tensors that ranks hold in parts and that are not finite at the onset: whose part the bad elements are in."""

from __future__ import annotations

from dataclasses import dataclass

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.whole import PartCount

__all__ = ["BadShards", "bad_shards"]

#: Tensors that are told of.
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BadShards:
    """One tensor of the onset's step, by the ranks' parts."""

    role: str
    module: str
    name: str
    numel: int
    #: of every rank whose part counts: rank, bad elements, elements, where its part begins
    parts: tuple[PartCount, ...]

    @property
    def bad(self) -> int:
        """Elements of the whole tensor that are not finite."""
        return sum(part.bad for part in self.parts)

    @property
    def holders(self) -> tuple[PartCount, ...]:
        """The parts that have bad elements."""
        return tuple(part for part in self.parts if part.bad)


def bad_shards(evidence: Evidence) -> tuple[BadShards, ...]:
    """Return the first sharded tensors of the onset's step that are not finite, in execution order."""
    if evidence.onset is None:
        return ()
    found = [
        BadShards(role=role, module=module, name=name, numel=sum(p.numel for p in parts), parts=parts)
        for (_, role, module, name), parts in evidence.trace.part_counts(evidence.onset.step).items()
        if any(part.bad for part in parts)
    ]
    return tuple(found[:_SHOWN])
