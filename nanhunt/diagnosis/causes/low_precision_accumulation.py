"""A sum, count or mean is kept in a format that cannot hold it.

What it looks like
------------------
`x.sum() / n` is inf in fp16 though every term is small, and `x.mean()` is not. A logged loss or a counter stands still
at 256 in bf16 or 2048 in fp16. With many micro-batches, gradients accumulated in bf16 are too small; positions beyond
256 collide.

Why training breaks
-------------------
A sum grows with the number of its terms: 1e5 ones are inf in fp16, which ends at 65504. A running sum in bf16 (8
significant bits) stops at 256 when 1 is added to it, in fp16 at 2048: the term is below half an ulp. Later micro-batches
are rounded away against the gradient that is there already.

Evidence
--------
Of a sum: in fp64 it is finite and beyond its format, though its largest term is at least eight times below the end; what
is divided by it is NaN, or exactly zero. Of
a running sum that is finite: additions in place, counted, that leave every bit of it as it was. Of a spike in half
precision: the same weights and batch in fp32, where the loss is as it used to be.

Fix
---
Sum in fp32: `x.sum(dtype=torch.float32)`, `x.float().cumsum(0)`. Accumulate gradients and metrics in fp32. Integers
for counts and positions.

How it is confirmed
-------------------
The same step in fp32 is finite. A finite loss of digits shows over many steps only; one step cannot confirm it.

When it is mistaken
-------------------
For activation-overflow, where a single term or product is beyond the format. For lost-update, where the sum is the
weight itself.

References
----------
DeepSpeed#2768, Megatron-LM#372 and #502 (gradient accumulation in bf16); causes by count: fp16 sum of 1e5 ones.
"""

from __future__ import annotations

from nanhunt.diagnosis.births import (
    bad_output,
    is_discarded,
    is_long_sum,
    is_range_alone,
    no_births,
    operand,
    place,
    root,
)
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base, format_of, limit, number
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, NoteKind

__all__ = ["CAUSE", "LOST"]


#: Steps from the onset to the look that found it.
_REACH = 8
#: Share of the rise that may be left in fp32.
_KEPT = 0.25
#: Share of a sum of gradients that is lost, from which it is a fault: rounding alone takes a hundredth of 64 passes, four
#: hundredths of a thousand.
LOST = 0.05


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a sum of small terms beyond its format; say so where gradients accumulate in half precision."""
    if not evidence.is_nonfinite:
        return (
            _divided_by(evidence)
            or _absorbed(evidence)
            or _rounded(evidence)
            or _stuck(evidence)
            or _accumulated(evidence)
            or _gone_in_fp32(evidence)
        )
    birth = root(evidence, "update")
    if birth is not None:
        return _in_the_update(birth, evidence)
    birth = root(evidence, "forward", "clip")
    if birth is None:
        return no_births(evidence)
    terms, output, total = operand(birth, "self"), bad_output(birth), birth.fp64_amax
    if birth.fp64 != "beyond-range" or not is_long_sum(birth) or is_discarded(birth, evidence):
        return None
    if terms is None or output is None or total is None or not total > limit(output.dtype):
        return None
    end = limit(output.dtype)
    fp32 = output.dtype == "float16" and is_range_alone(evidence)
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"a sum of {number(total)} in {output.dtype}, which ends at {number(end)}, of terms up to {number(terms.amax)}",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(claim=f"in fp64 {birth.op} is finite and beyond {output.dtype}", value=total, threshold=end),
            Exhibit(claim="largest of its terms", value=terms.amax, threshold=end),
            Exhibit(claim="terms, all sums together", value=float(terms.numel)),
        ),
        fixes=(
            f"sum in fp32: `dtype=torch.float32` in `{birth.code.strip() or birth.op}`, or `mean` instead of sum and division",
        ),
        predictions=(Prediction(trial="fp32", expect="cured"),) if fp32 else (),
    )


def _gone_in_fp32(evidence: Evidence) -> Suspect | None:
    """A loss that is high in the run's own format and ordinary in fp32, on the same weights and the same batch."""
    body, onset = evidence.note(NoteKind.LOSS_TWIN), evidence.onset
    if body is None or onset is None or not evidence.is_spike or body.get("recipe"):
        return None
    own, wide, usual = float(body["own"]), float(body["fp32"]), float(body["baseline"])
    rise = own - usual
    if not (rise > 0.5 * abs(usual) and wide - usual <= _KEPT * rise):
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED,
        summary=f"the loss of step {body['step']} is {number(own)} in {body['format']} and {number(wide)} in fp32, on the same weights and batch",
        location=Location(step=onset.step, phase="forward"),
        exhibits=(
            Exhibit(claim=f"loss of step {body['step']} in fp32, against {body['format']}", value=wide, threshold=own),
            Exhibit(claim="median loss before", value=usual),
        ),
        fixes=(
            "compute in fp32 what is large beside its own changes: sums over time, positions, differences of large numbers (`.float()` before the first of them)",
        ),
        predictions=(Prediction(trial="fp32", expect="cured", refutes=False),),
        depth=1,
    )


def _divided_by(evidence: Evidence) -> Suspect | None:
    """A sum of small terms that became an infinity, and made zeros of what it divides: a loss of 0, and nothing said."""
    onset = evidence.onset
    found = next((b for b in evidence.silent("erased") if onset is None or b["step"] <= onset.step), None)
    if onset is None or not evidence.is_stall or found is None or not found.get("birth"):
        return None
    birth, at = Birth.from_json(found["birth"]), found["at"]
    terms, total = operand(birth, "self"), birth.fp64_amax
    if terms is None or total is None or not is_long_sum(birth):
        return None
    dtype = str(found["dtype"])
    is_count = terms.amax == 1.0 and total == round(total)
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"a sum of {number(total)} is infinite in {dtype}, which ends at {number(limit(dtype))}, and what {base(at['op'])} divides by it is 0",
        location=Location(
            step=onset.step, phase="forward", module=found["module"], op=found["op"], source=found["source"],
            samples=tuple(found["samples"]),
        ),
        exhibits=(
            Exhibit(claim=f"in fp64 {found['op']} is finite and beyond {dtype}", value=total, threshold=limit(dtype)),
            Exhibit(claim="largest of its terms", value=terms.amax, threshold=limit(dtype)),
            Exhibit(claim=f"zeros that {at['op']} puts out, of {found['of']}, where fp64 has values", value=float(found["elements"])),
        ),
        fixes=(f"{'count in integers' if is_count else 'sum in fp32'}, in `{found['code'] or birth.op}`",),
        predictions=(Prediction(trial="fp32", expect="cured", refutes=False),) if dtype == "float16" else (),
        depth=1,
    )  # fmt: skip


def _absorbed(evidence: Evidence) -> Suspect | None:
    """A counter or sum in a narrow format that stopped growing: each addition is less than half an ulp of it."""
    onset = evidence.onset
    found = next(iter(evidence.silent("absorbed")), None)
    if found is None or onset is None:
        return None
    dtype = str(found["dtype"])
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"a sum in {dtype} stands still at {number(found['amax'])}: {_counted(int(found['elements']))} in one step changed no bit of it",
        location=Location(
            step=onset.step, phase=found["phase"], module=found["module"], op=found["op"], source=found["source"]
        ),
        exhibits=(
            Exhibit(
                claim=f"the sum; {dtype} counts by ones up to",
                value=float(found["amax"]),
                threshold=_counts_to(dtype),
            ),
            Exhibit(claim="additions of the step that changed nothing", value=float(found["elements"]), threshold=0.0),
        ),
        fixes=(f"keep the sum of `{found['code']}` in fp32, or count in an integer",),
        depth=1,
    )


def _rounded(evidence: Evidence) -> Suspect | None:
    """Positions that fall together, or sums that come out wrong, counted on the step."""
    onset = evidence.onset
    found = next(iter(evidence.silent("collided", "rounded")), None)
    if found is None or onset is None or not onset.step <= int(found["step"]) <= onset.step + _REACH:
        return None
    dtype, count, of = str(found["dtype"]), int(found["elements"]), int(found["of"])
    whole = found["kind"] == "collided"
    said = (
        f"{count} of {of} distinct whole numbers up to {number(found['amax'])} become another's in {dtype}"
        if whole
        else f"{count} of {of} sums that {found['op']} gathers in {dtype} are a tenth off or more"
    )
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=said,
        location=Location(
            step=int(found["step"]), phase=found["phase"], module=found["module"], op=found["op"], source=found["source"]
        ),
        exhibits=(
            Exhibit(claim="whole numbers that are not told apart any more" if whole else "sums that fp64 has otherwise", value=float(count), threshold=0.0),
            Exhibit(claim=f"the largest of them; {dtype} counts by ones up to", value=float(found["amax"]), threshold=_counts_to(dtype)),
        ),
        fixes=(f"keep `{found['code']}` in fp32, or in integers",),
        depth=1,
    )  # fmt: skip


def _stuck(evidence: Evidence) -> Suspect | None:
    """A second moment whose format rounds β2·v back to v: an average that only ever rises."""
    onset = evidence.onset
    if onset is None or evidence.stall_reason != "stuck-moment" or evidence.beta2 is None:
        return None
    parameter = ".".join(p for p in (onset.module, onset.name) if p)
    last = evidence.trace.steps[-1]
    stuck, fits = (evidence.health_at(key, last).get(parameter) for key in ("v_stuck", "rms_t"))
    kept = next((d for d in evidence.optimizer.get("state_dtypes", []) if d in ("bfloat16", "float16")), "its format")
    fmt = format_of(kept)
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"Adam's second moments in {kept} cannot decay at β2 = {evidence.beta2}: v of {parameter} is stuck far above its gradients",
        location=Location(step=onset.step, phase="update", module=onset.module, parameter=parameter),
        exhibits=(
            Exhibit(claim=f"share of v of {parameter} that kept its bits in step {last}, though g² is less than half of it", value=stuck),
            Exhibit(claim="RMS of its gradients over sqrt(v): 1 in a steady state", value=fits, threshold=1.0),
            Exhibit(claim=f"1 - β2, against the half ulp of {kept} relative to v, which it must pass", value=1.0 - evidence.beta2, threshold=fmt.eps / 4 if fmt else None),
        ),
        fixes=(
            "keep exp_avg_sq in fp32, or round it stochastically",
            "or take a β2 of 0.99 or less: then even bfloat16 lets v decay",
        ),
    )  # fmt: skip


def _counts_to(dtype: str) -> float | None:
    """Return up to which number a format counts by ones."""
    fmt = format_of(dtype)
    return 2.0**fmt.precision if fmt else None


def _counted(additions: int) -> str:
    return "an addition" if additions == 1 else f"{additions} additions"


def _in_the_update(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A moment or weight in a narrow format that the update's own sum takes beyond its end."""
    output, total = bad_output(birth), birth.fp64_amax
    if output is None or output.dtype not in ("float16", "bfloat16") or birth.fp64 != "beyond-range" or total is None:
        return None
    end = limit(output.dtype)
    what = birth.parameter or "a parameter"
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"the optimizer's own sum for {what} reaches {number(total)} in {output.dtype}, which ends at {number(end)}",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(claim=f"in fp64 {birth.op} gives a finite value beyond {output.dtype}", value=total, threshold=end),
            Exhibit(
                claim="largest magnitude among what it adds", value=max((o.amax for o in birth.inputs), default=0.0)
            ),
        ),
        fixes=(
            f"keep weights and optimizer state in fp32 and use autocast: {output.dtype} is for activations",
            "clip the gradient norm",
        ),
        predictions=(Prediction(trial="fp32", expect="cured"),) if output.dtype == "float16" else (),
    )


def _accumulated(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Gradients of several backward passes, held against their own sum in fp64."""
    train = evidence.manifest.config.get("train") or {}
    micros = train.get("accumulate", 1) if isinstance(train, dict) else 1
    narrow = evidence.weight_dtypes & {"bfloat16", "float16"}
    body, onset = evidence.note(NoteKind.ACCUMULATION), evidence.onset
    if body is None:
        told = narrow and isinstance(micros, int) and micros > 1
        kept = ", ".join(sorted(narrow))
        return NotApplicable(reason=f"{micros} micro-batches are accumulated in {kept}, and the trace has no fp64 sum beside it") if told else None  # fmt: skip
    if onset is None or body["step"] != onset.step or onset.phase != "backward" or body["error"] < LOST:
        return None
    module, _, _name = str(body["worst"]).rpartition(".")
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"{body['passes']} backward passes are added up in {body['dtype']}, and {body['error']:.0%} of their sum is rounded away",
        location=Location(step=onset.step, phase="backward", module=module, parameter=str(body["worst"])),
        exhibits=(
            Exhibit(claim="norm of what is missing from the gradient, over that of the fp64 sum of the same gradients", value=float(body["error"]), threshold=LOST),
            Exhibit(claim=f"the same of {body['worst']}, the worst", value=float(body["worst_error"])),
            Exhibit(claim="backward passes of the step", value=float(body["passes"])),
        ),
        fixes=("accumulate gradients in fp32: fp32 weights under autocast, or a main_grad buffer in fp32",),
    )  # fmt: skip


CAUSE = Cause(slug="low-precision-accumulation", doc=__doc__ or "", examine=examine)
