"""Where a batch field enters the step: through the model, as an input, or at the loss, as a target.

Told by the way that a bad value takes, and not by the field's name.
"""

from __future__ import annotations

from nanhunt.diagnosis.evidence import Evidence

__all__ = ["enters_at_the_loss", "inherited_field"]


def inherited_field(evidence: Evidence) -> str | None:
    """Return the batch field that the root inherited its value from ('' of a bare tensor); None where it did not."""
    birth, onset = evidence.birth, evidence.onset
    said = str(birth.facts.get("inherited", "")) if birth else ""
    if said == "batch" or said.startswith("batch "):
        return said.removeprefix("batch").strip()
    if onset is not None and onset.phase == "batch":
        return onset.name
    return None


def enters_at_the_loss(evidence: Evidence) -> bool:
    """Whether the root's value reaches the loss without passing through a named module.

    An op that calls its argument "target" (mse_loss, binary_cross_entropy, huber_loss …) says so itself.
    """
    birth = evidence.birth
    if birth is None:
        return False
    if any(i.name == "target" and i.origin.startswith("batch") for i in birth.inputs):
        return True
    forward = [hop for hop in evidence.lineage if hop.phase == "forward"]
    return evidence.spoiled == "loss" and bool(forward) and not birth.module and not any(hop.module for hop in forward)
