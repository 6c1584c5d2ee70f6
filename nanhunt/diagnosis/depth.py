"""How activations grow through the depth of a model, module after module, in one step."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["DepthGrowth", "growth_with_depth"]

#: Growth of the RMS in all, modules that set a new record on the way, and how far the last one lies above the batch:
#: a residual stack with a gain of 2 in variance per block grows by 256 over 16 blocks, a normalised one not at all.
_GROWN, _RECORDS, _ABOVE = 1e3, 6, 1e2


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthGrowth:
    """The RMS of outputs from the first module to the largest one."""

    first: str
    last: str
    factor: float
    records: int
    rms: float
    #: largest magnitude of the batch
    batch: float

    @property
    def exponent(self) -> float:
        """Growth exponent per record, in nats: near 0 where the initial values fit the depth (OLMo 2)."""
        return math.log(self.factor) / self.records


def growth_with_depth(evidence: Evidence, step: int) -> DepthGrowth | None:
    """Return how the outputs of a step grew with depth; None where they did not, or one module alone made the growth."""
    frame = evidence.frame("output", ["micro", "seq", "module", "numel", "l2"], step=step)
    frame = frame[(frame["micro"] == 0) & (frame["module"].astype(str) != "")]
    records: list[tuple[str, float]] = []
    for module, numel, l2 in frame.sort_values("seq")[["module", "numel", "l2"]].itertuples(index=False, name=None):
        rms = float(l2) / math.sqrt(numel) if numel else 0.0
        if math.isfinite(rms) and rms > 0.0 and (not records or rms > 1.1 * records[-1][1]):
            records.append((str(module), rms))
    if len(records) < _RECORDS:
        return None
    factor = records[-1][1] / records[0][1]
    largest = max(b / a for (_, a), (_, b) in itertools.pairwise(records))
    inputs = evidence.frame("batch", ["dtype", "amax"], step=step)
    floats = inputs[inputs["dtype"].astype(str).str.contains("float")]["amax"]
    batch = max((float(a) for a in floats if a is not None and math.isfinite(a)), default=1.0)
    if factor < _GROWN or largest > math.sqrt(factor) or records[-1][1] < _ABOVE * max(batch, 1.0):
        return None
    return DepthGrowth(
        first=records[0][0], last=records[-1][0], factor=factor, records=len(records), rms=records[-1][1], batch=batch
    )
