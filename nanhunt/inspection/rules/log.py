"""What a Trainer logged: a loss of 0.0 beside a gradient norm that is not finite hides a NaN."""

from __future__ import annotations

from collections.abc import Iterator

from nanhunt.inspection.facts import Facts
from nanhunt.inspection.finding import Finding, Severity

__all__ = ["examine"]


def examine(facts: Facts) -> Iterator[Finding]:
    """Yield the first hidden NaN; a fault where the checkpoint itself is spoiled, else it was survived."""
    if not facts.log.hidden:
        return
    step, norm = facts.log.hidden[0]
    spoiled = any(t.is_poisoned for t in facts.tensors)
    yield Finding(
        severity=Severity.FAULT if spoiled else Severity.NOTICE,
        kind="hidden-nan",
        cause="poisoned-state" if spoiled else "",
        claim=f"trainer_state.json hides a NaN: loss 0.0 beside a gradient norm of {norm} at step {step}",
        value=norm,
        evidence=(
            f"{len(facts.log.hidden)} such entries, steps {step} to {facts.log.hidden[-1][0]}",
            "transformers logs a NaN loss as 0.0 unless logging_nan_inf_filter=False",
        ),
        fix="set logging_nan_inf_filter=False, and replay from the checkpoint before that step",
        next=f"nanhunt replay CKPT_BEFORE_STEP_{step}",
    )
