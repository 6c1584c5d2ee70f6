"""An exponential, a softmax or a log-probability is written without log-sum-exp or its like.

What it looks like
------------------
inf or NaN out of exp, out of log of a softmax or sigmoid, out of a hand-made softplus or softmax, once logits
or a learned log-variance grow. Before that, training looks perfect.

Why training breaks
-------------------
exp overflows above 11.09 in fp16 and 88.72 in fp32. A softmax or sigmoid underflows to exactly 0 for a gap of
about 104 in fp32 (17 in fp16), and its log is -inf. The stable forms subtract the maximum first and never make
these numbers.

Evidence
--------
exp with an argument above its format's limit, whose fp64 value is finite; or a log whose argument is exactly
zero where the line shows that it is a probability.

Fix
---
Use log_softmax, logsigmoid, logsumexp, softplus, cross_entropy or binary_cross_entropy_with_logits on logits.
Bound a learned log-variance (clamp to [-30, 20]) or learn it through softplus.

How it is confirmed
-------------------
fp64 cures an exp that overflowed, as it holds exp(709). For a log of an underflowed probability it may help
too, and only puts it off.

When it is mistaken
-------------------
For activation-overflow (a linear op beyond its format), for domain-error (a zero that is no probability), for
bad-sample, when one far outlier drove the exponent: then both stand.

References
----------
thinking-machines-lab/tinker-cookbook PR#188; pyg-team/pytorch_geometric#500; AntixK/PyTorch-VAE#16.
"""

from __future__ import annotations

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.causes_shared import PROBABILITY
from nanhunt.diagnosis.reading import bare, in_words, operand, place_of
from nanhunt.formats.catalogue import lookup
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth

__all__ = ["CAUSE"]

_EXPONENTIALS = ("exp", "expm1", "exp2", "sinh", "cosh")


def examine(evidence: Evidence) -> Suspect | None:
    """Look for an exp that overflowed, or a log of a probability that underflowed."""
    birth = evidence.birth
    if birth is None or birth.phase != "forward" or birth.kind == "carried":
        return None
    if birth.facts.get("discarded_by") and evidence.spoiled == "gradient":
        return None
    if bare(birth.op) in _EXPONENTIALS:
        return _overflowed(evidence, birth)
    if bare(birth.op) in ("log", "log2", "log10"):
        return _log_of_zero(evidence, birth)
    return None


def _overflowed(evidence: Evidence, birth: Birth) -> Suspect | None:
    argument = operand(birth, "self")
    if argument is None or birth.kind != "inf-from-finite":
        return None
    limit = float(lookup(argument.dtype).exp_limit)
    if argument.high <= limit:
        return None
    finite = birth.fp64 == "beyond-range"
    return Suspect(
        cause="naive-exp-log",
        grade=Grade.PROVED,
        summary=f"exp of {in_words(argument.high)} in {argument.dtype}, where exp ends at {in_words(limit)}",
        location=place_of(evidence),
        exhibits=(
            Exhibit(claim=f"the largest argument of {birth.op}", value=argument.high, threshold=limit),
            Exhibit(claim=f"{birth.bad} of {birth.of} elements overflow", value=float(birth.bad)),
        ),
        fixes=(
            "use the stable form: logsumexp, softmax, log_softmax, softplus, or subtract the maximum first",
            "bound a learned exponent: logvar.clamp(-30, 20)",
        ),
        predictions=(Prediction(trial="fp64", expect="cured"),) if finite and argument.high < 80.0 else (),
    )


def _log_of_zero(evidence: Evidence, birth: Birth) -> Suspect | None:
    argument = operand(birth, "self")
    if argument is None or not argument.zero or argument.low < 0.0 or argument.origin.startswith("batch"):
        return None
    named = any(word in birth.code for word in PROBABILITY)
    probability = argument.high <= 1.0
    if not (named or probability):
        return None
    return Suspect(
        cause="naive-exp-log",
        grade=Grade.SUPPORTED if named else Grade.CONSISTENT,
        summary=f"log of a probability that underflowed to 0, in {argument.zero} of {argument.numel} places",
        location=place_of(evidence),
        exhibits=(
            Exhibit(claim="arguments that are exactly zero", value=float(argument.zero), threshold=0.0),
            Exhibit(claim="all arguments lie in [0, 1], as probabilities do", value=argument.high, threshold=1.0),
        ),
        fixes=(
            "stay in logarithms: log_softmax, logsigmoid, or cross_entropy on the logits",
            "a clamp before the log hides it and stops the gradient",
        ),
    )


CAUSE = Cause(slug="naive-exp-log", doc=__doc__ or "", examine=examine)
