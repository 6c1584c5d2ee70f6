"""A finite mask constant becomes infinite in the format it is used in.

What it looks like
------------------
Masking works for weeks; then a row with nothing to attend to makes NaN of the loss or of all gradients, or a gradient
scaler skips every step from the day on which a mask was added. Or, under fp16, an exception: "value cannot be converted
to type c10::Half without overflow". The constant is -1e9, -1e15, `finfo(float32).min`, or a mask that is added twice.

Why training breaks
-------------------
A large finite constant keeps a fully masked row harmless: its softmax is uniform. Cast to fp16, -1e9 is -inf (fp16 ends
at 65504); `finfo(float32).min` is -inf in bf16 (which ends at 3.39e38); `finfo.min + finfo.min` is -inf anywhere. The
softmax of a row of -inf is 0/0.

Evidence
--------
The first bad op is a cast, a product, a sum or a fill whose result is -inf; in fp64 it is finite, beyond the format, and
of one magnitude: a constant of the code. That the harm comes from it: the softmax that follows has rows of nothing but
-inf.

Fix
---
Use a boolean mask with `scaled_dot_product_attention`, or a constant of the compute format: `torch.finfo(x.dtype).min / 2`,
added once. Combine masks with `&`, not by addition. Give every row at least one key.

How it is confirmed
-------------------
The same step in fp32 is finite where the constant fits fp32; an exact repetition is not.

When it is mistaken
-------------------
For activation-overflow: there the values that overflow differ. For fully-masked-softmax with a deliberate -inf: that one
needs no overflow, and is the proximate fault here as well.

References
----------
NVIDIA/apex#93 (-1e15 in fp16); MaxText#614 (a mask near fp32's end); torch.finfo.
"""

from __future__ import annotations

from nanhunt.diagnosis.births import bad_output, constant_of, is_range_alone, masked_softmax, no_births, place, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base, limit, number
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, NoteKind

__all__ = ["CAUSE"]


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a constant that its op's format cannot hold."""
    if evidence.onset is not None and evidence.onset.kind == "exception":
        return _refused(evidence)
    birth = root(evidence, "forward")
    if birth is None:
        return no_births(evidence)
    if birth.kind == "mask-escaped":
        return _averaged(birth, evidence)
    constant = constant_of(birth, evidence)
    return None if constant is None else _suspect(birth, evidence, constant)


def _suspect(birth: Birth, evidence: Evidence, constant: float) -> Suspect:
    output = bad_output(birth)
    dtype = output.dtype if output else ""
    softmax = masked_softmax(evidence)
    end = limit(dtype)
    exhibits = [
        Exhibit(claim=f"the constant, in fp64; {dtype} ends at", value=abs(constant), threshold=end),
        Exhibit(claim=f"elements that it makes infinite, of {birth.of}", value=float(birth.bad)),
    ]
    if softmax is not None:
        rows = float(softmax.facts["fully_masked_rows"])
        exhibits.append(Exhibit(claim=f"rows of nothing but -inf in the softmax at {softmax.source}", value=rows))
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED if softmax is not None else Grade.SUPPORTED,
        summary=f"the mask constant {number(constant)} is infinite in {dtype}, which ends at {number(end)}",
        location=place(evidence, birth),
        exhibits=tuple(exhibits),
        fixes=(
            "mask with a constant of the compute format, `torch.finfo(scores.dtype).min / 2`, added once",
            "give every row at least one key, or use a boolean mask with `scaled_dot_product_attention`",
        ),
        predictions=_predictions(evidence, constant, dtype),
        depth=1,
    )


def _averaged(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A mask of -inf that a sum or a mean takes in: meant for a softmax alone."""
    if base(birth.op) not in ("sum", "mean", "dot", "mm", "bmm") or birth.facts.get("fully_masked_rows"):
        return None
    masked, of = birth.facts.get("masked"), birth.facts.get("scores")
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED if masked else Grade.SUPPORTED,
        summary=f"the -inf of a mask gets into {base(birth.op)}: {masked} of {of} values that it takes are -inf",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(claim=f"values of -inf that {birth.op} is given, of {of}", value=float(masked or 0), threshold=0.0),
            Exhibit(claim=f"the mask: {birth.facts.get('mask_op')} in {birth.facts.get('mask_module') or 'the model'}"),
        ),
        fixes=(
            "mask with a large finite number where the logits go elsewhere than into a softmax",
            "leave masked classes out of the sum: `torch.where(mask, 0.0, log_p)` before it (label smoothing, entropy)",
        ),
    )


def _predictions(evidence: Evidence, constant: float, dtype: str) -> tuple[Prediction, ...]:
    fits_fp32 = abs(constant) < 0.5 * limit("float32")
    made_here = is_range_alone(evidence)
    return (Prediction(trial="fp32", expect="cured"),) if fits_fp32 and made_here and dtype == "float16" else ()


def _refused(evidence: Evidence) -> Suspect | None:
    """Torch refuses a Python number that the tensor's format cannot hold."""
    note = evidence.note(NoteKind.EXCEPTION) or {}
    message = str(note.get("message", ""))
    if "cannot be converted to type" not in message or "without overflow" not in message:
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED,
        summary=f"a constant of the code does not fit the format: {message.splitlines()[0]}",
        location=place(evidence),
        exhibits=(Exhibit(claim=f"torch refused it: {message.splitlines()[0]}"),),
        fixes=("fill with `torch.finfo(x.dtype).min / 2`, or with -inf where every row keeps an element",),
    )


CAUSE = Cause(slug="mask-fill-overflow", doc=__doc__ or "", examine=examine)
