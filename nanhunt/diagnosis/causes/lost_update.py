"""Weight updates are smaller than half an ulp of the weight: steps that change nothing.

What it looks like
------------------
Very slow or no convergence, no NaN and no spike, with weights kept in bf16 or fp16. Gradients are there and not zero;
the learning rate is not zero; the weights are the same bits after the step. Weight decay of 1e-5 never decays anything.

Why training breaks
-------------------
bf16 has 8 significant bits: a weight moves only where |Δw| is at least 2^-9 to 2^-8 of |w|, in fp16 2^-12 to 2^-11.
What is smaller rounds away, in every step anew. With weights of 0.02, Adam in bf16 loses 69 % of its updates at a rate
of 3e-5, 84 % at 1e-5, 98 % at 1e-6.

Evidence
--------
The share of elements that have a gradient and kept their bits, by weight, over three steps in a row. Against it: the
update that the optimizer makes (a rate's worth in Adam, rate times gradient in SGD) and half an ulp of the weight's
root mean square. One fp32 tensor alone may be lost while the others train: it stood still to the replay's end, and its
smallest element is 2^24 rates or more. An optimizer whose step draws how it rounds has lost nothing: the same update
under another seed moves other weights.

Fix
---
Keep fp32 master weights: fp32 parameters under bf16 autocast. Or stochastic rounding (torchao's
`bf16_stochastic_round`), or Kahan summation (optimi). A higher rate helps only as far as it is stable.

How it is confirmed
-------------------
The arithmetic is the proof where the update is below half an ulp; one step cannot show convergence, so no trial is
asked for.

When it is mistaken
-------------------
For gradient-underflow, where the gradient itself is zero; for a learning rate that is low by design, which fp32 weights
follow; for training-loop-bug, where the step is never applied: that freezes every element in every format.

References
----------
pytorch/ao PR#1124; torchtune#2254; "Revisiting BFloat16 Training", arXiv 2010.06192.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nanhunt.diagnosis.births import place
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import format_of, number

__all__ = ["CAUSE"]

#: Share of a weight's elements that must have stood still for it to bear witness.
_FROZEN = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    name: str
    dtype: str
    numel: int
    frozen: float
    #: root mean squares of the weight and of its gradient
    rms: float
    gradient: float


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Hold the optimizer's step against half an ulp of the weights that stood still."""
    onset = evidence.onset
    if onset is None or not evidence.is_stall:
        return None
    unmoved = next(iter(evidence.silent("unmoved")), None)
    if unmoved is not None and unmoved["step"] == onset.step:
        return _unmoved(evidence, unmoved)
    if onset.phase != "update":
        return None
    rate = evidence.scalars("lr").get(onset.step) or evidence.hyper("lr")
    weights = _still(evidence, onset.step)
    if not rate or not weights:
        return NotApplicable(reason="the trace has no learning rate, or no share of unchanged weights, at the onset")
    own = f"{onset.module}.{onset.name}".strip(".")
    witness = max(weights, key=lambda w: (w.name == own, w.numel))
    fmt = format_of(witness.dtype)
    if fmt is None or not witness.rms > 0:
        return NotApplicable(reason=f"{witness.name} is kept in {witness.dtype}, whose ulp is not known")
    # Adam divides the gradient by its own size; other optimizers take it as it is
    step = rate if evidence.beta2 is not None else rate * witness.gradient
    return _suspect(evidence, witness, step, 0.5 * float(fmt.ulp(witness.rms)), rate)


def _unmoved(evidence: Evidence, body: dict[str, Any]) -> Suspect:
    """A decay, or a moving average, that is smaller than half an ulp nearly everywhere."""
    factor = body["factor"]
    what = "the moving average" if factor is None else f"the decay by {number(1.0 - factor)} a step"
    name = str(body["parameter"] or "the tensor")
    fmt = format_of(str(body["dtype"]))
    exhibits = [
        Exhibit(claim=f"elements of {name} that it ought to move, and leaves as they are, of {body['of']}", value=float(body["elements"]), threshold=0.0)
    ]  # fmt: skip
    if fmt is not None and factor is not None:
        claim = (
            f"the decay, against the half ulp of {body['dtype']} relative to a weight that is just below a power of two"
        )
        exhibits.append(Exhibit(claim=claim, value=1.0 - factor, threshold=0.5 * float(fmt.ulp(1.0)) / 2))
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"{what} of {name} is lost in {body['dtype']}: {body['elements']} of {body['of']} elements keep their bits",
        location=Location(
            step=int(body["step"]), phase=body["phase"], module=body["module"], parameter=name, op=body["op"], source=body["source"]
        ),
        exhibits=tuple(exhibits),
        fixes=(
            f"keep {name} in fp32 (a copy for the average, master weights for the optimizer)",
            "or round stochastically",
        ),
    )  # fmt: skip


def _still(evidence: Evidence, step: int) -> list[_Weight]:
    frozen = evidence.health_at("frozen", step)
    columns = ["phase", "module", "name", "dtype", "numel", "l2"]
    grads = {k: rms for k, _, _, rms in _rows(evidence, "grad", columns, step)}
    return [
        _Weight(name=k, dtype=dtype, numel=numel, frozen=frozen[k], rms=rms, gradient=grads.get(k, 0.0))
        for k, dtype, numel, rms in _rows(evidence, "weight", columns, step)
        if frozen.get(k, 0.0) >= _FROZEN
    ]


def _rows(evidence: Evidence, role: str, columns: list[str], step: int) -> list[tuple[str, str, int, float]]:
    """Return (parameter, dtype, elements, root mean square) of the rows of a role in a step."""
    return [
        (f"{module}.{name}".strip("."), str(dtype), int(numel), float(l2) / math.sqrt(numel))
        for phase, module, name, dtype, numel, l2 in evidence.cells(role, columns, step=step)
        if phase != "load" and numel > 0
    ]


def _suspect(evidence: Evidence, weight: _Weight, step: float, half_ulp: float, rate: float) -> Suspect | None:
    is_below = 0.0 < step < half_ulp
    if not is_below and weight.dtype not in ("bfloat16", "float16"):
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED if is_below else Grade.SUPPORTED,
        summary=(
            f"updates of about {number(step)} are lost in {weight.dtype} weights of about {number(weight.rms)}, "
            f"where half an ulp is {number(half_ulp)}"
        ),
        location=place(evidence),
        exhibits=(
            Exhibit(
                claim=f"share of {weight.name} that has a gradient and kept its bits",
                value=weight.frozen,
                threshold=_FROZEN,
            ),
            Exhibit(
                claim=f"size of one update at a rate of {number(rate)}, against half an ulp",
                value=step,
                threshold=half_ulp,
            ),
            Exhibit(claim=f"root mean square of the gradient of {weight.name}: it arrives", value=weight.gradient),
        ),
        fixes=(
            f"keep the weights in fp32 and compute under autocast: {weight.dtype} is for activations",
            "or round stochastically (torchao `bf16_stochastic_round`), or add with Kahan summation (optimi)",
        ),
    )


CAUSE = Cause(slug="lost-update", doc=__doc__ or "", examine=examine)
