"""Values stand pinned at the end of an FP8 format, or are flushed by a scale that another element set.

What it looks like
------------------
No NaN at all, as a rule: casts to E4M3 saturate (500 becomes 448, and so does inf), and the loss drifts or spikes. With
delayed scaling it begins at the step of an outlier: saturation first, then up to 1024 steps in which everything else is
flushed, because the outlier still sets the scale. E5M2 does not saturate in torch: it gives inf.

Why training breaks
-------------------
E4M3 ends at 448 and holds 17.8 binades, E5M2 at 57344 with 31.8. One scale serves a whole tensor: what is beyond it is
cut off, what is 2^18 below the largest element becomes zero. MX formats whose scale is rounded down cut the largest
element of a fifth of all blocks.

Evidence
--------
Of an FP8 tensor's rows: its largest magnitude is exactly the format's end, and more elements stand in the last binade
than in the one before. A distribution falls off towards its end; a pile there was cut off. Of a non-finite step: a cast
whose fp64 value is finite and beyond the format.

Fix
---
Current or blockwise scaling instead of delayed, or a shorter amax history. Keep the tensor with the outliers in bf16 (the
down-projection behind SwiGLU). Round MX scales up.

How it is confirmed
-------------------
By the run itself with this tensor in bf16. Under a recipe that the replay emulates, by the same steps with products in
their own precision (`recipe-off`), with scales of the present amax, or with a scale a block.

When it is mistaken
-------------------
For healthy current scaling, where one element, the largest, stands at the end by construction. For activation-overflow,
which is fp16's.

References
----------
TransformerEngine, delayed scaling; "Scaling FP8 training to trillion-token LLMs", arXiv 2409.12517; torchao float8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nanhunt.diagnosis.births import bad_output, place
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.ops import limit, number
from nanhunt.diagnosis.precision import ROWS, LostOperand, broken_from, precision_facts
from nanhunt.formats.catalogue import FORMATS
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: Where FP8 clamps before it casts.
_ENDS = (448.0, 240.0, 57344.0)
#: Share of a spike's rise that may be left in fp32, for the format to be what made it.
_KEPT = 0.25
#: What a recipe's trials do; blocks help against one outlier, and not against a format that is too narrow.
_OF_A_RECIPE = (
    Prediction(trial="recipe-off", expect="cured"),
    Prediction(trial="present-scales", expect="cured", refutes=False),
    Prediction(trial="block-scales", expect="cured", refutes=False, confirms=False),
)
_IN_8_BITS = [alias for fmt in FORMATS for alias in fmt.aliases if alias.startswith("float8")]
_ROLES = ("input", "output", "grad_output", "grad_input", "weight", "grad")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pile:
    """An FP8 tensor with more elements in its last binade than in the one before."""

    step: int
    module: str
    name: str
    role: str
    dtype: str
    last: int
    previous: int
    #: elements whose exponents were counted
    counted: int


def examine(evidence: Evidence) -> Suspect | None:
    """Look for FP8 tensors with a pile at the end of their format."""
    birth = evidence.birth
    output = bad_output(birth) if birth is not None else None
    if birth is not None and output is not None and output.dtype.startswith("float8") and birth.fp64 == "beyond-range":
        end = limit(output.dtype)
        exhibit = Exhibit(claim=f"in fp64 {birth.op} is finite and beyond", value=birth.fp64_amax, threshold=end)
        said = f"a value of {number(birth.fp64_amax)} in {output.dtype}, which ends at {number(end)}"
        return _suspect(said, place(evidence, birth), exhibit, Grade.PROVED)
    lost = _lost(evidence) or _by_recipe(evidence)
    if lost is not None:
        return lost
    piles = [] if evidence.is_nonfinite else _piles(evidence)
    if not piles:
        return None
    worst = max(piles, key=lambda p: p.last / p.counted)
    said = f"{worst.last / worst.counted:.1%} of the {worst.role} of {worst.module or 'the model'} piles up at the end of {worst.dtype}"
    location = Location(step=worst.step, module=worst.module, parameter=worst.name or None)
    claim = f"elements in the last binade before {number(limit(worst.dtype))}, against the binade below it"
    return _suspect(
        said, location, Exhibit(claim=claim, value=float(worst.last), threshold=float(worst.previous)), Grade.SUPPORTED
    )


def _lost(evidence: Evidence) -> Suspect | None:
    """A cast, or a clamp at a format's end, that a look at the step's ops found losing values."""
    onset = evidence.onset
    if onset is None or evidence.is_nonfinite:
        return None
    narrow = [
        b for b in evidence.silent("pinned", "flushed") if str(b["dtype"]).startswith("float8") or b["end"] in _ENDS
    ]
    if not narrow:
        return None
    found = min(narrow, key=lambda b: (b["step"], -float(b["weight"])))
    end, dtype = float(found["end"]), str(found["dtype"])
    if found["kind"] == "pinned":
        said = (
            f"{found['elements']} of {found['of']} values up to {number(found['amax'])} are cut off at {number(end)}: "
            f"{float(found['energy']):.0%} of the tensor's energy"
        )
        exhibit = Exhibit(
            claim="share of the sum of squares that lies beyond the end", value=float(found["energy"]), threshold=0.01
        )
    else:
        said = f"{found['rows_lost']} of {found['rows']} rows become zero in {dtype}, by a scale that another row set"
        exhibit = Exhibit(
            claim="rows of which nothing is left", value=float(found["rows_lost"]), threshold=0.1 * float(found["rows"])
        )
    location = Location(
        step=onset.step, phase=found["phase"], module=found["module"], op=found["op"], source=found["source"]
    )
    size = Exhibit(claim=f"largest value that was cast; {dtype} ends at", value=float(found["amax"]), threshold=end)
    lost = Exhibit(
        claim=f"values that the cast changes so, of {found['of']}", value=float(found["elements"]), threshold=0.0
    )
    suspect = _suspect(said, location, exhibit, Grade.PROVED if evidence.is_stall else Grade.SUPPORTED)
    return replace(suspect, exhibits=(*suspect.exhibits, lost, size), depth=0 if evidence.is_stall else 1)


def _by_recipe(evidence: Evidence) -> Suspect | None:
    """A run under an emulated recipe whose loss is ordinary in fp32, or whose operands lose more than rounding can."""
    facts, onset, twin = precision_facts(evidence), evidence.onset, evidence.note(NoteKind.LOSS_TWIN)
    if facts is None or onset is None or evidence.is_nonfinite or not facts.quantized:
        return None
    first = facts.first if facts.first is not None and facts.first.step <= onset.step else None
    rise = float(twin["own"]) - float(twin["baseline"]) if twin is not None and twin.get("recipe") else 0.0
    gone = twin is not None and rise > 0.0 and float(twin["fp32"]) - float(twin["baseline"]) <= _KEPT * rise
    if first is None and not gone:
        return None
    exhibits = []
    if gone and twin is not None:
        claim = f"loss of step {twin['step']} in fp32, on the same weights and batch, against {twin['format']}"
        exhibits.append(Exhibit(claim=claim, value=float(twin["fp32"]), threshold=float(twin["own"])))
    said = (
        f"the loss is {number(float(twin['own']))} under {facts.recipe} and ordinary in fp32" if gone and twin else ""
    )
    if first is not None:
        said, exhibit = _broken(first)
        exhibits.append(exhibit)
    module = first.weight.rpartition(".")[0] if first is not None else None
    location = Location(step=onset.step, module=module, parameter=first.weight if first is not None else None)
    suspect = _suspect(said, location, exhibits[0], Grade.SUPPORTED if gone else Grade.CONSISTENT)
    return replace(suspect, exhibits=tuple(exhibits), predictions=_OF_A_RECIPE, depth=1)


def _broken(first: LostOperand) -> tuple[str, Exhibit]:
    """Return what an operand lost, and the measurement that rounding alone would not give."""
    how = "cut off at the end of" if first.saturated > first.flushed else "flushed to zero in"
    said = f"{max(first.saturated, first.flushed):.1%} of the {first.role} of {first.weight} is {how} {first.format}"
    if not first.error <= broken_from(first.format):
        claim = f"share of the norm that is lost at step {first.step}; rounding alone stays below"
        exhibit = Exhibit(claim=claim, value=first.error, threshold=broken_from(first.format))
        return f"{said}: {first.error:.0%} of its norm", exhibit
    exhibit = Exhibit(
        claim=f"share of the rows that lose half of their norm at step {first.step}", value=first.rows, threshold=ROWS
    )
    return f"{said}: {first.rows:.0%} of its rows lose half of their norm", exhibit


def _piles(evidence: Evidence) -> list[_Pile]:
    columns = ["step", "module", "name", "role", "dtype", "amax", "exp_hist"]
    table = evidence.trace.table(columns, roles=_ROLES, passes=["replay"], dtypes=_IN_8_BITS)
    found = []
    for step, module, name, role, dtype, amax, histogram in zip(*(c.to_pylist() for c in table.columns), strict=True):
        if histogram is None or len(histogram) < 2 or amax != limit(str(dtype)):
            continue
        last, previous = int(histogram[-1]), int(histogram[-2])
        if last > previous and last > 1:
            found.append(
                _Pile(
                    step=int(step), module=str(module), name=str(name or ""), role=str(role), dtype=str(dtype),
                    last=last, previous=previous, counted=sum(map(int, histogram)),
                )
            )  # fmt: skip
    return found


def _suspect(summary: str, location: Location, exhibit: Exhibit, grade: Grade) -> Suspect:
    return Suspect(
        cause=CAUSE.slug,
        grade=grade,
        summary=summary,
        location=location,
        exhibits=(exhibit,),
        fixes=(
            "scale each tensor by its own present amax (current or blockwise scaling), or shorten the amax history",
            f"keep `{location.module}` in bf16" if location.module else "keep this tensor in bf16",
        ),
    )


CAUSE = Cause(slug="fp8-saturation", doc=__doc__ or "", examine=examine)
