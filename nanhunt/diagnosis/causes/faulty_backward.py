"""A custom backward, a kernel or a communication buffer computes a wrong gradient.

What it looks like
------------------
Gradients are NaN, inf or simply wrong while forward and loss are right, and the first bad op runs inside a
custom autograd Function or a fused kernel. Wrong but finite gradients show only as slow training.

Why training breaks
-------------------
A backward written by hand divides where it should guard, reads a row that is not its own, or is out of step
with its forward. Nothing else checks it.

Evidence
--------
The autograd node of the birth: torch's own end in Backward0, a user's Function does not, and the source line
lies in its backward. In fp64 the same kernel op is finite where a fused kernel is at fault.

Fix
---
Check the Function with torch.autograd.gradcheck in fp64, or replace the fused kernel by its reference to
compare.

How it is confirmed
-------------------
The reference kernel cures the step.

When it is mistaken
-------------------
For singular-gradient, which is torch's own backward at a boundary.

References
----------
LichtFeld-Studio PR#2057; Dao-AILab/flash-attention#334; huggingface/trl#7181.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import place_of

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | None:
    """Look for a birth in backward under a node that is not torch's own, or in a kernel that fp64 contradicts."""
    birth = evidence.birth
    if birth is None or birth.phase != "backward" or birth.node is None or birth.kind == "carried":
        return None
    custom = not birth.node.removesuffix(">").rstrip("0123456789").endswith("Backward") or "Function" in birth.node
    custom = custom or (birth.forward_op is None and birth.source is not None)
    kernel = birth.fp64 == "in-range"
    if not custom and not kernel:
        return None
    said = "a backward of your own" if custom else "a kernel whose fp64 result is finite and in range"
    return Suspect(
        cause="faulty-backward",
        grade=Grade.SUPPORTED,
        summary=f"the gradient is first broken inside {said} ({birth.node})",
        location=place_of(evidence),
        exhibits=(
            Exhibit(
                claim=f"{birth.op} under {birth.node} gave {birth.bad} bad of {birth.of} elements",
                value=float(birth.bad),
            ),
            Exhibit(claim=f"the same op in fp64 is {birth.fp64}", value=birth.fp64_amax),
        ),
        fixes=("check it with torch.autograd.gradcheck in fp64", "compare with the reference kernel"),
    )


CAUSE = Cause(slug="faulty-backward", doc=__doc__ or "", examine=examine)
