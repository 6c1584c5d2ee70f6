"""exp, softmax or a log-probability is written out, without log-sum-exp or its like.

What it looks like
------------------
inf or NaN at `exp`, or at the `log` of a softmax, a sigmoid or a sum of exponentials, when the network has become sure
of something. `x.exp() / x.exp().sum()`, `-log(sigmoid(x))`, `log(1 + exp(x))`, `exp(logvar)` in a VAE or a Gaussian
likelihood, a policy ratio `exp(new - old)`.

Why training breaks
-------------------
exp(x) is inf from 11.09 on in fp16, 88.72 in bf16 and fp32, 709.78 in fp64. At the other end it vanishes: a sigmoid is 0
below -104 in fp32, a softmax where the scores are 104 apart, and log(0) is -inf. log_softmax, logsigmoid, logsumexp and
softplus compute the same and never leave the range.

Evidence
--------
For exp: its argument is finite and beyond the logarithm of the format's largest number. For log: its argument is exactly
0, and the op that made it is a softmax, a sigmoid or an exp of finite scores. For a division: the divisor is a sum of
exponentials that all vanished.

Fix
---
`F.log_softmax`, `F.logsigmoid`, `torch.logsumexp`, `F.softplus`, `binary_cross_entropy_with_logits`: the logarithm in one
op. For exp(logvar): clamp it (`logvar.clamp(-10, 10)`), or use softplus. Do not add 1e-8 inside the log: it caps the
loss and kills the gradient.

How it is confirmed
-------------------
The number is the proof. In fp16 an argument below 88 is finite in fp32; above that no format in use helps.

When it is mistaken
-------------------
For activation-overflow: exp's overflow is not the network's scale but the formula's. For domain-error: there the zero
comes from elsewhere, or from scores that were masked with -inf on purpose. For bad-sample, which drives an input of exp.

References
----------
tinker-cookbook PR#188 (-log(sigmoid)); pyg#500, PyTorch-VAE#16 (exp(logvar)); pytorch docs on logsumexp.
"""

from __future__ import annotations

import math

from nanhunt.diagnosis.births import is_discarded, no_births, operand, place, root, throws_away
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import probability_of, zero_divisor, zero_floor
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import EXPS, base, format_of, number
from nanhunt.diagnosis.spelled import argument_in
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_STABLE = {
    "_softmax": "`F.log_softmax`",
    "_safe_softmax": "`F.log_softmax`",
    "sigmoid": "`F.logsigmoid` (of -x for 1 - sigmoid)",
    "exp": "`torch.logsumexp`, `F.softplus` or a log-space formula",
}
#: What takes up the exponential where a softmax, a sigmoid, a softplus or a log-sum is written out.
_SPELLED = frozenset({"sum", "cumsum", "div", "reciprocal", "log", "log1p", "log2", "log10"})


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for exp beyond its format, and for the log of a probability that vanished."""
    birth = root(evidence, "forward", "backward")
    if birth is None:
        return no_births(evidence)
    name = base(birth.op)
    if birth.phase == "backward":
        is_log = (birth.node or "").startswith("Log") and name == "div"
        return _vanished(birth, evidence, "other") if is_log and not throws_away(birth, evidence) else None
    if is_discarded(birth, evidence):
        return None
    if name in EXPS:
        return _overflowed(birth, evidence)
    return _vanished(birth, evidence, "self") if name in ("log", "log2", "log10") else _divided(birth, evidence)


def _overflowed(birth: Birth, evidence: Evidence) -> Suspect | None:
    given = operand(birth, "self")
    fmt = format_of(given.dtype) if given is not None else None
    if given is None or fmt is None or birth.kind != "inf-from-finite":
        return None
    end = math.log2(fmt.max) if base(birth.op) == "exp2" else float(fmt.exp_limit)
    argument = max(abs(given.low), abs(given.high)) if base(birth.op) in ("sinh", "cosh") else given.high
    if not argument > end:
        return None
    wide = given.dtype == "float16" and argument < 80  # exp(80)² is the end of fp32: a square may follow
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"{base(birth.op)} of {number(argument)}, which overflows {given.dtype} from {end:.2f} on",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(
                claim=f"largest argument of {base(birth.op)}; {given.dtype} ends at", value=argument, threshold=end
            ),
            Exhibit(claim=f"elements that are inf, of {birth.of}", value=float(birth.bad)),
        ),
        fixes=_fixes(birth, evidence),
        predictions=(Prediction(trial="fp32", expect="cured"),) if wide and argument < 40 else (),
    )


def _fixes(birth: Birth, evidence: Evidence) -> tuple[str, ...]:
    """Return the stable op where the exponential goes into a sum, a quotient or a logarithm; else the bound comes first."""
    behind = (base(hop.op) for hop in evidence.lineage[1:])
    first = next((op for op in behind if op != "add"), "")  # 1 + exp(x)
    code = birth.code.strip() or birth.op
    if first in _SPELLED:
        return (
            f"replace `{code}` by log_softmax, logsumexp or softplus, whichever it spells out",
            "where it is a variance or a ratio, bound the exponent: `logvar.clamp(-10, 10)`",
        )
    argument = argument_in(birth.code, base(birth.op))
    bound = f": `{argument}.clamp(max=…)`" if argument else ""
    return (
        f"bound the exponent in `{code}`{bound}, as `logvar.clamp(-10, 10)` does for a variance",
        "where it is a part of a softmax, a sigmoid or a softplus, call that instead",
    )


def _vanished(birth: Birth, evidence: Evidence, name: str) -> Suspect | None:
    given = operand(birth, name)
    at = [e.inputs[-1] for e in birth.elements if e.inputs]
    if given is None or not at or any(x != 0 for x in at) or given.origin.startswith("batch"):
        return None
    source = probability_of(birth, evidence, given)
    if source is None or source[1] or zero_floor(birth, evidence, given) is not None:
        return None
    made = source[0].op
    stable = _STABLE.get(made, "`torch.logsumexp`")
    # where it is log(1 - p) that broke, p is 1 and no zero
    gave = 0 if source[0].zero else 1
    claim = f"zeros that {made} made of finite scores, of {source[0].numel}"
    counted = (Exhibit(claim=claim, value=float(source[0].zero)),) if source[0].zero else ()
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary=f"log of a probability that vanished: {made.strip('_')} of finite scores gave exactly {gave}",
        location=place(evidence, birth),
        exhibits=(
            Exhibit(claim=f"zeros in the argument of log, of {given.numel}", value=float(given.zero), threshold=0.0),
            *counted,
        ),
        fixes=(f"take the logarithm in one op: {stable} instead of `{birth.code.strip() or birth.op}`",),
    )


def _divided(birth: Birth, evidence: Evidence) -> Suspect | None:
    zero = zero_divisor(birth, evidence)
    if zero is None or zero.kind != "exponentials":
        return None
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.PROVED,
        summary="a softmax written out: every exponential of the sum vanished, and 0 is divided by 0",
        location=place(evidence, birth),
        exhibits=(Exhibit(claim="sum of exponentials that is divided by", value=0.0, threshold=0.0),),
        fixes=("use `torch.softmax`, which subtracts the largest score first",),
    )


CAUSE = Cause(slug="naive-exp-log", doc=__doc__ or "", examine=examine)
