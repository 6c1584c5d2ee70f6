"""Ranks hold different values where they must agree.

What it looks like
------------------
Loss curves of ranks part, or all ranks turn NaN a step after one of them did; replicated weights or statistics
differ in their bits.

Why training breaks
-------------------
Data parallelism assumes identical weights and averages gradients. A rank that skips a collective, a different
seed, a buffer that is not broadcast, or a skip that one rank decides alone breaks the assumption, and nothing
restores it.

Evidence
--------
A digest of the bits of replicated tensors, by rank and step.

Fix
---
Decide skips on all ranks together, broadcast buffers and seeds, compare digests every N steps.

How it is confirmed
-------------------
The first tensor and step at which digests differ.

When it is mistaken
-------------------
For nondeterminism within one rank.

References
----------
WeatherGenerator PR#2718; BLOOM chronicles (layer norms out of sync); TrainCheck, OSDI 2025.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Say that one process has nothing to compare."""
    if evidence.onset is None:
        return None
    return NotApplicable(reason="one process was replayed: there are no ranks to compare")


CAUSE = Cause(slug="rank-divergence", doc=__doc__ or "", examine=examine)
