"""A logarithm, root, power or inverse cosine is asked for a number outside its domain, or 0 is multiplied by infinity.

What it looks like
------------------
NaN or inf at one op, in any precision: log of a negative number, sqrt of a variance that came out as -1e-9, a similarity
below zero raised to 0.0448, `acos(1.0000001)`, an entropy `p * log(p)` with p = 0. Mostly in the forward pass, and in an
optimizer of one's own as well: the inverse fourth root of an eigenvalue of -2e-11, as Shampoo takes it.

Why training breaks
-------------------
log(x) needs x > 0, sqrt and fractional powers x >= 0, acos and asin |x| <= 1. Rounding is enough to step over: a cosine
of 1 + 1.2e-7, E[x²] - E[x]² of -0.19, an eigenvalue of a matrix without negative ones. log(0) is -inf, and 0 · (-inf) is NaN: entropy over masked logits.

Evidence
--------
The op's inputs are finite and, at every bad element, outside its domain; in fp64 it is non-finite as well. For products:
0 and inf stand at the same element, and the inf is deliberate (a mask), not an overflow. A number below zero that is some
ulp of the largest beside it is what rounding left of zero.

Fix
---
Clamp to the domain before the op: `x.clamp(min=1e-6).log()`, `torch.acos(x.clamp(-1, 1))`. For p·log(p) under a mask:
fill the logits with a large finite number (-1e4), take `log_p = log_softmax(…)` and `p = log_p.exp()`. `torch.xlogy`
mends the value and not its gradient, which is NaN at 0. Two-pass variance. Lift eigenvalues by the least of them before a
root is taken.

How it is confirmed
-------------------
The number at the element is the proof. Neither fp32 nor fp64 changes it, except where rounding alone stepped over the
edge.

When it is mistaken
-------------------
For naive-exp-log, where a probability vanished and a log of it is taken; for bad-target, where the zero or negative
number stands in the batch itself; for epsilon-underflow, where an epsilon was added and is 0; for where-trap, where the
value is thrown away.

References
----------
pytorch-msssim#2 (negative base of a power); SkyRL PR#2259, trl PR#7252 (entropy over masked logits).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from nanhunt.diagnosis.births import bad_output, is_discarded, masked_softmax, no_births, operand, place, root
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, NotApplicable, Suspect
from nanhunt.diagnosis.divisors import probability_of, zero_floor
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import base, format_of, number
from nanhunt.trace.schema import Birth, NoteKind, Operand

__all__ = ["CAUSE"]

_POSITIVE: tuple[Callable[[float], bool], str] = (lambda x: x > 0, "x > 0")
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda x: x >= 0, "x >= 0")
_UNIT: tuple[Callable[[float], bool], str] = (lambda x: abs(x) <= 1, "|x| <= 1")
_LOGS = ("log", "log2", "log10")
#: Ulps of the largest eigenvalue by which one of zero may come out negative: a small multiple of the matrix's size.
_ULPS = 64.0
_MASKED = "mask the logits with a large finite number and take `log_p = log_softmax` and `p = log_p.exp()` from it"
#: Where an op is finite.
_DOMAINS: dict[str, tuple[Callable[[float], bool], str]] = {
    "log": _POSITIVE,
    "log2": _POSITIVE,
    "log10": _POSITIVE,
    "log1p": (lambda x: x > -1, "x > -1"),
    "sqrt": _NOT_NEGATIVE,
    "rsqrt": _NOT_NEGATIVE,
    "pow": _NOT_NEGATIVE,
    "acos": _UNIT,
    "asin": _UNIT,
    "atanh": (lambda x: abs(x) < 1, "|x| < 1"),
    "acosh": (lambda x: x >= 1, "x >= 1"),
    "logit": (lambda x: 0 < x < 1, "0 < x < 1"),
    "lgamma": (lambda x: x > 0 or x != int(x), "x other than 0, -1, -2 …"),
    "digamma": (lambda x: x > 0 or x != int(x), "x other than 0, -1, -2 …"),
    "polygamma": _POSITIVE,
    "erfinv": (lambda x: abs(x) < 1, "|x| < 1"),
}
#: Functions of a matrix that a singular one does not have, by the op that torch dispatches.
_MATRICES = {
    "_linalg_slogdet": "the log-determinant",
    "_linalg_det": "the determinant",
    "linalg_inv_ex": "the inverse",
    "linalg_solve_ex": "the solution",
    "_linalg_solve_ex": "the solution",
    "linalg_lu_factor_ex": "the LU factorisation",
    "linalg_cholesky_ex": "the Cholesky factor",
}
_REFUSED = re.compile(r"positive.definite|singular|ill-conditioned|failed to converge|not invertible", re.IGNORECASE)


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Hold the inputs at the bad elements against the op's domain."""
    if evidence.onset is not None and evidence.onset.kind == "exception" and not evidence.births:
        return _refused(evidence)
    birth = root(evidence, "forward", "clip", "update")
    if birth is None or (birth.phase != "forward" and birth.source is None):
        return no_births(evidence)  # what torch's own optimizer takes a root of is a moment: another cause's
    if base(birth.op) in _MATRICES and birth.fp64 == "non-finite":
        return _singular(birth, evidence)
    # a trial in which a bad element's value is used after all takes the select's word back
    is_lost = is_discarded(birth, evidence) and evidence.outcome("safe-argument") != "persists"
    if is_lost or birth.fp64 in ("beyond-range", "in-range"):
        return None
    if birth.kind == "nan-from-inf":
        return _zero_times_infinity(birth, evidence)
    return _outside(birth, evidence)


def _outside(birth: Birth, evidence: Evidence) -> Suspect | None:
    name = base(birth.op)
    at = [e.inputs[0] for e in birth.elements if e.inputs]
    if name not in _DOMAINS or not at or any(_DOMAINS[name][0](x) for x in at):
        return None
    given = operand(birth, "self")
    if given is None or (max(at) == 0.0 and _is_anothers(birth, evidence)):
        return None
    worst, domain = min(at), _DOMAINS[name][1]
    if name in ("acos", "asin", "atanh"):
        worst = max(at, key=abs)
    source = probability_of(birth, evidence, given) if name in _LOGS else None
    by_mask = source is not None and source[1]
    # a number that stands in the batch itself is a target's or a sample's fault
    is_from_batch = given.origin.startswith("batch")
    rounded = _is_rounding(worst, given)
    fix = f"lift or clamp the argument of {name} to above zero, which rounding alone took it below" if rounded else ""
    return _suspect(
        birth,
        evidence,
        f"{name} of 0: a mask has set that probability to zero"
        if by_mask
        else f"{name} of {number(worst)}, outside {domain}{', of a size that rounding leaves of 0' if rounded else ''}",
        Exhibit(claim=f"argument of {name} at a bad element; it needs {domain}", value=worst, threshold=_edge(name)),
        Grade.CONSISTENT if is_from_batch else Grade.PROVED,
        fix=_MASKED if by_mask else fix or f"clamp the argument of {name} to its domain",
    )


def _is_rounding(worst: float, given: Operand) -> bool:
    """Whether a number below zero is within some ulp of the largest beside it."""
    fmt = format_of(given.dtype)
    return fmt is not None and worst < 0.0 and given.numel > 1 and -worst <= _ULPS * fmt.eps * given.amax


def _singular(birth: Birth, evidence: Evidence) -> Suspect:
    function = _MATRICES[base(birth.op)]
    exhibit = Exhibit(claim=f"in fp64 {birth.op} is not finite either: the matrix is singular to every digit")
    fix = f"add a small multiple of the identity before {function}, or use a factorisation that bounds its determinant"
    return _suspect(birth, evidence, f"{function} of a singular matrix", exhibit, Grade.PROVED, fix=fix)


def _refused(evidence: Evidence) -> Suspect | None:
    """A factorisation that torch refuses, with its own reason."""
    note, onset = evidence.note(NoteKind.EXCEPTION) or {}, evidence.onset
    message = str(note.get("message", ""))
    if onset is None or not _REFUSED.search(message):
        return None
    said = message.splitlines()[0].split(":")[0] if ":" in message else "a factorisation"
    return Suspect(
        cause=CAUSE.slug,
        grade=Grade.SUPPORTED,
        summary=f"{said} is asked of a matrix outside its domain: {message.splitlines()[0][:160]}",
        location=place(evidence),
        exhibits=(Exhibit(claim=f"torch refused it: {message.splitlines()[0][:200]}"),),
        fixes=("add a small multiple of the identity (jitter) to the matrix before it, in fp32 or wider",),
    )


def _edge(name: str) -> float:
    return {"log1p": -1.0, "acos": 1.0, "asin": 1.0, "atanh": 1.0, "acosh": 1.0}.get(name, 0.0)


def _is_anothers(birth: Birth, evidence: Evidence) -> bool:
    """Whether a logarithm of zero has a cause of its own: a vanished probability, a lost epsilon, a mask's -inf."""
    given = operand(birth, "self")
    if given is None or not base(birth.op).startswith("log"):
        return False
    source = probability_of(birth, evidence, given)
    vanished = source is not None and not source[1]
    return vanished or zero_floor(birth, evidence, given) is not None or masked_softmax(evidence) is not None


def _zero_times_infinity(birth: Birth, evidence: Evidence) -> Suspect | None:
    """A product whose inputs hold infinities and no NaN makes NaN of 0 · inf only."""
    output = bad_output(birth)
    if base(birth.op) != "mul" or output is None or not output.nan:
        return None
    claim = f"elements at which 0 meets an infinity, of {birth.of}"
    exhibit = Exhibit(claim=claim, value=float(output.nan), threshold=0.0)
    return _suspect(birth, evidence, "0 times infinity", exhibit, Grade.PROVED, fix=_MASKED)


def _suspect(birth: Birth, evidence: Evidence, summary: str, exhibit: Exhibit, grade: Grade, *, fix: str) -> Suspect:
    code = birth.code.strip() or birth.op
    return Suspect(
        cause=CAUSE.slug,
        grade=grade,
        summary=summary,
        location=place(evidence, birth),
        exhibits=(exhibit, Exhibit(claim=f"bad elements, of {birth.of}; fp64: {birth.fp64}", value=float(birth.bad))),
        fixes=(f"{fix}, in `{code}`",),
    )


CAUSE = Cause(slug="domain-error", doc=__doc__ or "", examine=examine)
