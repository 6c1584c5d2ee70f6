"""Reading a birth: where it is, what it divided by, whether its value was thrown away, and which op made an operand.

A birth tells what its op was given, and not who made that. The zoomed step's rows do: an op's output row has the same
count, zeros and extremes as the operand that it became, to the last bit. `producers` looks for them backwards.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from nanhunt.diagnosis.cause import Location, NotApplicable
from nanhunt.diagnosis.evidence import Ancestor, Evidence
from nanhunt.diagnosis.ops import COUNTED_SUMS, DIVISIONS, base, limit
from nanhunt.trace.schema import Birth, Operand

__all__ = [
    "Made",
    "bad_output",
    "constant_of",
    "denominator",
    "divides_by_zero",
    "have_one_writer",
    "is_discarded",
    "is_long_sum",
    "is_made_of",
    "is_range_alone",
    "is_surely_discarded",
    "made_only_of",
    "masked_softmax",
    "no_births",
    "operand",
    "place",
    "producers",
    "root",
    "throws_away",
    "zero_times_infinity",
]

_CASTS = frozenset({"_to_copy", "copy", "masked_fill", "add", "sub", "mul", "rsub", "where", "full", "fill"})
#: A mask constant is at least so large: the smallest one in use is -1e4, made for fp16.
_MASK = 1e4
#: A dtype that the source line itself asks for: no trial in another precision changes it.
_BY_HAND = re.compile(r"\b(half|float16|bfloat16)\b")


def root(evidence: Evidence, *phases: str) -> Birth | None:
    """Return the root birth where the fault is non-finite, was made by an op, and lies in one of `phases`."""
    birth = evidence.birth
    if not evidence.is_nonfinite or birth is None or birth.kind == "carried" or birth.phase not in phases:
        return None
    return birth


def no_births(evidence: Evidence) -> NotApplicable | None:
    """Return why no op can be judged: the fault is non-finite, and no op of the step was looked at. Else None."""
    onset = evidence.onset
    if onset is None or not evidence.is_nonfinite or evidence.birth is not None or onset.phase in ("load", "batch"):
        return None
    return NotApplicable(reason="the bad step was not zoomed into: no op of it was looked at")


def place(evidence: Evidence, birth: Birth | None = None) -> Location:
    """Return where a birth lies, or where the onset does, with the samples that the hunt found."""
    onset = evidence.onset
    if onset is None:
        return Location()
    samples = tuple(onset.samples) or tuple(birth.samples if birth else ())
    if birth is None:
        named = f"{onset.module}.{onset.name}".strip(".") if onset.name else None
        at = (onset.phase, onset.module, named, onset.op, onset.source)
    else:
        at = (birth.phase, birth.module, birth.parameter, birth.op, birth.source)
    phase, module, parameter, op, source = at
    return Location(
        step=onset.step, phase=phase, module=module, parameter=parameter, op=op, source=source, samples=samples
    )


def operand(birth: Birth, *names: str) -> Operand | None:
    """Return the first input with one of the argument names."""
    return next((given for name in names for given in birth.inputs if given.name == name), None)


def bad_output(birth: Birth) -> Operand | None:
    """Return the first output with a non-finite element."""
    return next((o for o in birth.outputs if o.nan or o.posinf or o.neginf), None)


def denominator(birth: Birth) -> Operand | None:
    """Return what a birth divides by, takes the reciprocal of, or raises to a negative power; None where it does not."""
    name = base(birth.op)
    if name in ("reciprocal", "rsqrt"):
        return operand(birth, "self")
    if name == "pow":
        return operand(birth, "self") if _exponent(birth) < 0 else None
    if name == "addcdiv":
        divisors = [o for o in birth.inputs if o.name.startswith("tensor2")]
        return next((o for o in divisors if o.zero), divisors[0] if divisors else None)
    return operand(birth, "other") if name in DIVISIONS else None


def _exponent(birth: Birth) -> float:
    value = birth.arguments.get("exponent", 1)
    return float(value) if isinstance(value, (int, float)) else 1.0


def divides_by_zero(birth: Birth) -> bool:
    """Whether the divisor is exactly 0 at every bad element that was kept."""
    under = denominator(birth)
    if under is None:
        return base(birth.op) in DIVISIONS and birth.arguments.get("other") == 0
    at = [e.inputs[-1] for e in birth.elements if e.inputs]
    return under.zero > 0 and all(value == 0 for value in at)


def is_discarded(birth: Birth, evidence: Evidence) -> bool:
    """Whether a select throws the forward value away and the loss is finite, so that only gradients break."""
    return bool(birth.facts.get("discarded_by")) and evidence.spoiled != "loss"


def is_surely_discarded(birth: Birth) -> bool:
    """Whether that select was asked, at each of the bad elements."""
    return bool(birth.facts.get("discard_checked")) and birth.facts.get("discarded") == "all"


def throws_away(birth: Birth, evidence: Evidence) -> bool:
    """Whether a backward birth got an incoming gradient of exactly zero for a forward value that was thrown away."""
    if not is_discarded(birth, evidence):
        return False
    if base(birth.op) in ("div", "mul"):
        at = [e.inputs[0] for e in birth.elements if e.inputs]
        return bool(at) and all(value == 0 for value in at)
    product = zero_times_infinity(evidence)
    return product is not None and product.node == birth.node


def zero_times_infinity(evidence: Evidence) -> Birth | None:
    """Return the first product of the backward pass that makes NaN of a zero gradient and an infinite factor.

    A product whose inputs hold no NaN makes one of 0 · inf only.
    """
    for birth in evidence.births:
        if birth.phase != "backward" or birth.kind != "nan-from-inf" or base(birth.op) != "mul":
            continue
        incoming, factor = operand(birth, "self"), operand(birth, "other")
        if incoming is None or factor is None or incoming.posinf or incoming.neginf:
            continue
        if incoming.zero and (factor.posinf or factor.neginf):
            return birth
    return None


def is_range_alone(evidence: Evidence) -> bool:
    """Whether every birth from finite inputs is finite in fp64, and in a format that the recipe chose, not the line.

    Then the step in a wider format is clean.
    """
    made = [b for b in evidence.births if b.kind in ("inf-from-finite", "nan-from-finite")]
    is_finite = all(b.fp64 in ("beyond-range", "in-range") for b in made)
    return bool(made) and is_finite and not any(_BY_HAND.search(b.code) for b in made)


def masked_softmax(evidence: Evidence) -> Birth | None:
    """Return the first birth of a softmax with a row of nothing but -inf."""
    return next((b for b in evidence.births if b.facts.get("fully_masked_rows")), None)


def is_long_sum(birth: Birth) -> bool:
    """Whether a sum is beyond its format though each term is far from the end: the count does it."""
    terms = operand(birth, "self")
    return base(birth.op) in COUNTED_SUMS and terms is not None and terms.amax <= limit(terms.dtype) / 8


def constant_of(birth: Birth, evidence: Evidence) -> float | None:
    """Return the mask constant that a birth makes infinite, None where what overflows is no constant.

    A mask has one magnitude besides zero. A positive one counts only where a fully masked softmax shows what it is for.
    """
    output = bad_output(birth)
    if base(birth.op) not in _CASTS or birth.fp64 != "beyond-range" or output is None or output.nan:
        return None
    if output.posinf and (output.neginf or masked_softmax(evidence) is None):
        return None
    flat = [o.amax for o in birth.inputs if o.amin == o.amax > 0 and (o.numel > 1 or len(birth.inputs) > 1)]
    scalars = [abs(v) for v in birth.arguments.values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    products = [a * s for a in flat for s in scalars] if base(birth.op) == "mul" else scalars
    found = [c for c in (*flat, *products) if c >= _MASK]
    values = {e.fp64 for e in birth.elements if e.fp64 is not None}
    if len(values) == 1 and any(_is_filled(birth, evidence, o) for o in birth.inputs):
        return next(iter(values))  # a mask that was filled in before, and scaled or added to since
    # a mask times a constant has one value where it masks; an activation times a gain has as many as it has elements
    if not found or (base(birth.op) == "mul" and len(values) > 1):
        return None
    sign = -1.0 if output.neginf else 1.0
    return next(iter(values)) if len(values) == 1 else sign * max(found)


#: Ops that write a number where a mask says so.
_FILLS = ("masked_fill", "masked_fill_", "where", "full_like", "fill_", "scatter", "index_put", "index_put_")


def _is_filled(birth: Birth, evidence: Evidence, given: Operand) -> bool:
    """Whether an operand's largest magnitude is a number that a fill of the code wrote into it."""
    fills = [m for m in producers(evidence, birth, given, reach=2) if m.op in _FILLS]
    written = [abs(x) for m in fills for x in m.scalars]
    return any(x >= _MASK and abs(x - given.amax) <= 0.01 * x for x in written)


# --- who made an operand ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An op above a birth, by its output's counts, and how many edges it is away."""

    op: str
    numel: int
    zero: int
    neginf: int
    source: str
    code: str = ""
    scalars: tuple[float, ...] = ()
    origins: tuple[str, ...] = ()
    depth: int = 0


def producers(evidence: Evidence, birth: Birth, given: Operand | None, reach: int = 4) -> list[Made]:
    """Return the op that made an operand, and those that made its operands in turn, nearest first, `reach` deep.

    By the edges of the graph; [] where the operand was made by no op of the step.
    """
    start = _writer_of(given)
    return _above(evidence.ancestry, start, reach) if start is not None else []


def is_made_of(evidence: Evidence, given: Operand, source: Operand, reach: int = 3) -> bool:
    """Whether an operand was made of another, by so many ops at most."""
    start, end = _writer_of(given), _writer_of(source)
    layer = {start} if start is not None else set[int]()
    if start is not None and start == end:
        return True  # views of one tensor
    for _ in range(reach):
        layer = {w for i in layer if i in evidence.ancestry for w in evidence.ancestry[i].writers}
        if end in layer:
            return True
    return False


def have_one_writer(evidence: Evidence, one: Operand, other: Operand) -> bool:
    """Whether two operands were made of the same tensor by one op each."""
    first, second = (evidence.ancestry.get(i) if i is not None else None for i in (_writer_of(one), _writer_of(other)))
    return first is not None and second is not None and bool(set(first.writers) & set(second.writers))


def made_only_of(evidence: Evidence, given: Operand | None, ops: Collection[str]) -> set[str]:
    """Return the origins of an operand that ops of these kinds alone made; empty where another op had a part in it.

    The whole way back: an op that was not kept may be the model's.
    """
    start = _writer_of(given)
    found: set[str] = set()
    waiting, seen = [start] if start is not None else [], set[int]()
    while waiting:
        index = waiting.pop()
        maker = evidence.ancestry.get(index)
        if maker is None or base(maker.op) not in ops:
            return set()
        seen.add(index)
        found.update(maker.origins)
        waiting += [w for w in maker.writers if w not in seen]
    return found


def _writer_of(given: Operand | None) -> int | None:
    kind, _, index = (given.origin if given else "").partition(" ")
    return int(index) if kind == "op" and index.isdigit() else None


def _above(ancestry: dict[int, Ancestor], start: int, reach: int) -> list[Made]:
    found: list[Made] = []
    layer, seen = [start], {start}
    for depth in range(reach):
        known = [ancestry[i] for i in layer if i in ancestry]
        found += [
            Made(
                op=base(a.op), numel=a.numel, zero=a.zero, neginf=a.neginf, source=a.source, code=a.code,
                scalars=a.scalars, origins=a.origins, depth=depth,
            )
            for a in known
        ]  # fmt: skip
        layer = [w for a in known for w in dict.fromkeys(a.writers) if w not in seen]
        seen.update(layer)
    return found
