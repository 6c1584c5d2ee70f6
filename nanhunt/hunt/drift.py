"""Logits that ran away while nothing else broke: a fault that no loss need show, for the loss does not see log Z."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from nanhunt.trace.schema import Onset, Phase
from nanhunt.trace.step_rows import StepRows

__all__ = ["LogitWatch"]

#: Steps that make a drift, log Z that is far (of a healthy head it is near 0 with a z-loss, some 10 without), and its
#: rise over the first third of the replay.
_STEPS, _FAR, _GROWN = 12, 30.0, 3.0


@dataclass(slots=True)
class LogitWatch:
    """Follows log Z of each module whose logits a loss took."""

    series: dict[str, dict[int, float]] = field(default_factory=dict)

    def observe(self, step: int, rows: StepRows) -> None:
        """Take a recorded step's rows."""
        for site, value in rows.scalars("log_z"):
            if math.isfinite(value):
                self.series.setdefault(site.module, {})[step] = value

    def drifted(self) -> tuple[Onset, dict[str, object]] | None:
        """Return the onset of logits that rose without a break over the whole replay, and its note; None where none did."""
        for module, steps in self.series.items():
            values = [abs(v) for _, v in sorted(steps.items())]
            third = len(values) // 3
            if len(values) < _STEPS or values[-1] < _FAR:
                continue
            first, last = median(values[:third]), median(values[-third:])
            if last < _GROWN * first or max(values[:third]) >= min(values[-third:]):
                continue
            begun = next(s for s in sorted(steps) if abs(steps[s]) > 1.5 * first)
            said = f"log Z of the logits runs from {values[0]:.3g} to {values[-1]:.3g} within {len(values)} steps"
            onset = Onset(
                kind="divergence", step=begun, phase=Phase.FORWARD.value, module=module, lead_step=begun, detail=said
            )
            return onset, {"module": module, "step": begun, "first": steps[min(steps)], "last": steps[max(steps)]}
        return None
