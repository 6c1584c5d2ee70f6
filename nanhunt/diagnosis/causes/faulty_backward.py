"""A custom backward, a kernel or a communication buffer computes a wrong gradient.

What it looks like
------------------
Loss and forward are right, and the first NaN or inf of the backward pass is made inside a custom autograd Function, or
in a kernel whose result fp64 contradicts. Wrong but finite gradients show only as slow training.

Why training breaks
-------------------
A backward written by hand divides without a guard, reads a row that is not its own, or is out of step with its forward;
nothing else checks it. A fused kernel may overflow inside although its inputs and its true result are in range.

Evidence
--------
The autograd node of the birth: torch's own are named like MulBackward0, with a number; that of a user's Function ends in
Backward. Or torch's own node, finite inputs, and an fp64 result that is finite and fits the output's format. A Function
of yours is also held against central differences of its own forward in fp64, at the inputs of the step, NaN or not; a
straight-through estimator and a reversed gradient are wrong by design and are left alone. A fault that the same steps
show compiled and not in eager mode is the compiler's.

Fix
---
Check the Function with `torch.autograd.gradcheck` on fp64 inputs, its boundary values included, and write its backward
with the forward's guards. Replace a fused kernel by its reference (`sdpa_kernel(SDPBackend.MATH)`), or update it.

How it is confirmed
-------------------
By gradcheck, or by a healthy run with autograd's own derivative (`own-backward`) where updates as short, in the
direction of the wrong one (`backward-norm`), do not hold; of a kernel by `reference-kernels`.

When it is mistaken
-------------------
For singular-gradient, which is torch's own backward at a boundary. For gradient-overflow, where fp64 is beyond the
format. Activation checkpointing runs forward ops inside its own node, which accuses nobody.

References
----------
LichtFeld-Studio PR#2057 (gradient of the wrong row); flash-attention#334 (NaN backward, v2.0.0) and #337; Qiu and Yao
2025 (arXiv 2510.04212, biased rounding in bf16 flash attention); pytorch gradcheck documentation.
"""

from __future__ import annotations

import re

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import EXPS, number
from nanhunt.diagnosis.reading import bare, place_of
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, NoteKind

__all__ = ["CAUSE"]

#: A Python Function's node has its class's name and no number; torch's own end in Backward0, Backward1 …
_FUNCTION = re.compile(r"\w*[A-Za-z_]Backward")
#: Functions of torch itself that run other code inside.
_OF_TORCH = ("CheckpointFunctionBackward", "CompiledFunctionBackward", "NoopSaveInputsBackward")
#: Formats whose range no gradient leaves inside a kernel unless it leaves it outside as well.
_WIDE = ("float32", "float64", "bfloat16")


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a birth in backward under a Function of the user's, or in a kernel that fp64 contradicts."""
    birth, onset = evidence.birth, evidence.onset
    if onset is None:
        return None
    compiled = _only_compiled(evidence)
    if compiled is not None:
        return compiled
    checked = _checked(evidence)
    if checked is not None:
        return checked
    if evidence.is_spike and onset.phase == "backward":
        return NotApplicable(reason="the gradients are finite: a wrong one shows only in a gradcheck")
    if birth is None or birth.phase != "backward" or birth.node is None or birth.kind == "carried":
        return None
    if _FUNCTION.fullmatch(birth.node) and birth.node not in _OF_TORCH:
        return _written_by_hand(evidence, birth)
    return _kernel(evidence, birth) if birth.fp64 == "in-range" and birth.kind != "nan-from-inf" else None


def _checked(evidence: Evidence) -> Suspect | None:
    """A Function of the user's whose backward finite differences of its own forward contradict."""
    onset, birth = evidence.onset, evidence.birth
    own = evidence.wrong_backward(birth.node) if birth is not None and birth.node else None
    ran_away = onset is not None and (not evidence.is_nonfinite or onset.lead_step is not None)
    found = own or (evidence.wrong_backward() if ran_away else None)
    if found is None or onset is None:
        return None
    function, numeric, analytic = str(found["function"]), float(found["numeric"]), float(found["analytic"])
    return Suspect(
        cause="faulty-backward",
        # that it is wrong is certain; that it is what the run ran away by is not
        grade=Grade.PROVED if own is not None or onset.kind == "mismatch" else Grade.SUPPORTED,
        summary=f"the backward of {function} gives {number(analytic)} where its forward has a slope of {number(numeric)}",
        location=place_of(evidence)
        if own is not None and birth is not None and birth.phase == "backward"
        else Location(
            step=onset.step if onset.lead_step is None else onset.lead_step,
            phase="backward",
            module=found["module"],
            source=found["source"],
        ),
        exhibits=(
            Exhibit(
                claim=f"slope of {function} for its argument {found['input']}, by central differences in fp64",
                value=numeric,
            ),
            Exhibit(claim="the same direction through its backward", value=analytic, threshold=numeric),
            Exhibit(claim="random directions in which the two differ, of 3", value=3.0),
        ),
        fixes=(
            f"run `torch.autograd.gradcheck({function}.apply, …)` in fp64 on small inputs, and mend {function}.backward",
            "or let autograd differentiate the forward's own ops",
        ),
        predictions=(Prediction(trial="own-backward", expect="cured", refutes=False),),
        depth=2,
    )


def _only_compiled(evidence: Evidence) -> Suspect | None:
    """A fault that the very same steps have compiled, and do not have in eager mode."""
    body, onset = evidence.note(NoteKind.COMPILED), evidence.onset
    if body is None or onset is None or body.get("eager") or not body.get("fault"):
        return None
    return Suspect(
        cause="faulty-backward",
        grade=Grade.SUPPORTED,
        summary=f"steps {body['first']} to {body['last']} are healthy in eager mode, and compiled {body['fault']} at step {body['step']}",
        location=place_of(evidence),
        exhibits=(Exhibit(claim=f"compiled: {body['fault']}"), Exhibit(claim="eager: every step is finite")),
        fixes=(
            "leave the module that fails out of torch.compile, and halve the rest until one is left (`torch._dynamo.config`, TORCH_COMPILE_DEBUG)",
            "compile with backend='aot_eager' to tell the graph from the generated kernels, and report it with a small repro",
        ),
    )


def _written_by_hand(evidence: Evidence, birth: Birth) -> Suspect | None:
    function = birth.node.removesuffix("Backward") if birth.node else ""
    exp = bare(birth.op) in EXPS
    if birth.fp64 == "beyond-range" and exp:  # what exp gets is no gradient, and the forward took the same without harm
        grade, said = Grade.SUPPORTED, "overflows on values that its forward is finite with"
    elif birth.fp64 == "beyond-range":
        grade, said = Grade.CONSISTENT, "overflows its format there"
    else:
        grade, said = (
            Grade.SUPPORTED,
            "is not finite in fp64 either" if birth.fp64 == "non-finite" else "breaks there first",
        )
    return Suspect(
        cause="faulty-backward",
        grade=grade,
        summary=f"{birth.op} in the backward of {function} makes the first bad gradient, and {said}",
        location=place_of(evidence),
        exhibits=_exhibits(birth),
        fixes=(
            f"guard {birth.op} in {function}.backward{f' ({birth.source})' if birth.source else ''} as its forward is guarded",
            f"run torch.autograd.gradcheck({function}.apply, …) in fp64, with the boundary values among the inputs",
        ),
        depth=1 if grade is Grade.SUPPORTED else 0,
    )


def _kernel(evidence: Evidence, birth: Birth) -> Suspect:
    wide = any(o.dtype in _WIDE for o in birth.outputs)
    return Suspect(
        cause="faulty-backward",
        grade=Grade.SUPPORTED if wide else Grade.CONSISTENT,
        summary=f"{birth.op} of {birth.node} is not finite, though fp64 gives values that its format holds",
        location=place_of(evidence),
        exhibits=_exhibits(birth),
        fixes=("run the step with the reference kernel, and report the difference to the kernel's authors",),
    )


def _exhibits(birth: Birth) -> tuple[Exhibit, ...]:
    exhibits = [
        Exhibit(
            claim=f"bad elements that {birth.op} under {birth.node} made, of {birth.of}",
            value=float(birth.bad),
            threshold=0.0,
        ),
        Exhibit(claim=f"the same op in fp64: {birth.fp64}", value=birth.fp64_amax),
    ]
    if birth.code:
        exhibits.append(Exhibit(claim=f"the line: {birth.code}"))
    return tuple(exhibits)


CAUSE = Cause(slug="faulty-backward", doc=__doc__ or "", examine=examine)
