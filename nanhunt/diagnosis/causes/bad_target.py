"""Labels, targets or token ids lie outside of what the loss or their table allows, or belong to other inputs.

What it looks like
------------------
`IndexError: Target 30 is out of bounds`, or `index out of range in self` of an embedding, on the CPU; a device-side
assert on CUDA. Or NaN and inf from a finite model: the log, root or quotient of a target that is 0 or negative. Or a loss that leaps to the level of guessing and beyond.

Why training breaks
-------------------
A class index must lie in [0, classes) or equal ignore_index (-100), a probability in [0, 1], a depth under a log above
0. A tokenizer larger than the head, a padding id of -1, a hole stored as 0 break it. A NaN target is a NaN mean.

Evidence
--------
The number in the exception's message against the smallest and largest integers of the batch, or these against the rows
of the table that raised. Else the op that was born bad takes its argument from the batch alone, straight or shifted and
scaled; or a non-finite field of the batch reaches the loss without passing through the model. Each is a count or a
comparison of whole numbers. Labels that belong to other inputs are allowed ones: a whole batch above the level of chance,
on a state that had not met it, while every layer has its usual spread.

Fix
---
Check 0 ≤ label < classes (or ignore_index) where batches are made; make embedding and head as large as the vocabulary.
Mask targets that the loss has no value for (`valid = depth > 0`) before the log, not after it. Shuffle and filter inputs
and labels with one index.

How it is confirmed
-------------------
drop-samples leaves the samples with such targets out and cures; drop-placebo does not; no precision does.

When it is mistaken
-------------------
For bad-sample, where the field goes through the model. For domain-error, where the model computed the argument. For
empty-reduction, where every label is allowed and ignored. An id out of range may also come from a faulty device, or
from `x.long()` of a NaN, which is -9.2e18.

References
----------
shariqfarooq123/AdaBins#16 and ialhashim/DenseDepth#114 (log of a depth of 0); PyTorch documentation of
CrossEntropyLoss and BCELoss.
"""

from __future__ import annotations

import re
from typing import Any

from nanhunt.diagnosis.births import made_only_of
from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, Suspect
from nanhunt.diagnosis.divisors import divides_by_count_of_batch
from nanhunt.diagnosis.entry import enters_at_the_loss, inherited_field
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.exchange import bad_batch, layers_change, targets_are_apart
from nanhunt.diagnosis.reading import bare, in_words, nonfinite_in_words, place_of
from nanhunt.diagnosis.spelled import operand_in
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import Birth, NoteKind, Operand

__all__ = ["CAUSE"]

#: What indexing and losses say of a value that they do not allow, as torch words it.
_SAYS = re.compile(
    r"target (?P<target>-?\d+) is out of bounds|index (?P<index>-?\d+) is out of bounds|index out of range"
    r"|target should be between 0 and 1|class values must be|device-side assert|out of bounds"
)
_GAMMA = ("lgamma", "digamma", "polygamma")
#: An operand of a taped call: its function, and its place among the arguments.
_OPERAND = re.compile(r"(?:.*\.)?(?P<function>[a-z]\w*)\.(?P<index>\d)(?:_\d+)?")
#: Functions with no value at zero or below, and quotients.
_AT_ZERO = ("log", "log2", "log10", "xlogy", "logit", "rsqrt", "reciprocal", "div", "pow", "float_power", *_GAMMA)
#: What leaves a value what it is, as far as zero and its kin go.
_SAME = frozenset({"abs", "neg", "clone", "_to_copy", "unsqueeze", "contiguous"})
_BELOW_ZERO = (*_AT_ZERO, "log1p", "sqrt")
#: What shifts or scales it by a constant.
_AFFINE = frozenset({"add", "sub", "rsub", "mul"})

_DROP = (Prediction(trial="drop-samples", expect="cured"), Prediction(trial="drop-placebo", expect="persists"))


def examine(evidence: Evidence) -> Suspect | None:
    """Look for an index that raised, a non-finite target, and a target at which the loss has no value."""
    onset = evidence.onset
    if onset is None:
        return None
    if onset.kind == "exception" and not evidence.births:
        return _raised(evidence)
    if not evidence.is_nonfinite:
        return _outside(evidence) or _others(evidence)
    return _nonfinite_target(evidence) or _undefined_at_target(evidence) or _forbidden(evidence) or _too_long(evidence)


# --- an index that raised -------------------------------------------------------------------------------------------


def _raised(evidence: Evidence) -> Suspect | None:
    body, onset = evidence.note(NoteKind.EXCEPTION), evidence.onset
    said = _SAYS.search(str(body["message"]).lower()) if body else None
    if body is None or onset is None or said is None:
        return None
    limit = _rows_of(evidence, onset.module)
    field, certain = _guilty_field(evidence, said, limit)
    first_line = str(body["message"]).strip().splitlines()[:1]
    exhibits = [Exhibit(claim=f"{body['type']}: {''.join(first_line)[:200]}")]
    if field is not None:
        bound = float(limit - 1) if limit else None
        exhibits.append(
            Exhibit(claim=f"largest value of {_name(field['field'])}", value=float(field["max"]), threshold=bound)
        )
        exhibits.append(
            Exhibit(claim=f"smallest value of {_name(field['field'])}", value=float(field["min"]), threshold=0.0)
        )
    reach = f", which holds {field['min']} to {field['max']}" if field else ""
    table = f" (the table of {onset.module} has rows 0 to {limit - 1})" if limit else ""
    return Suspect(
        cause="bad-target",
        grade=Grade.PROVED if certain else Grade.SUPPORTED if field else Grade.CONSISTENT,
        summary=f"an index is out of range in {_name(field['field']) if field else 'the step'}{reach}{table}",
        location=Location(step=onset.step, phase=onset.phase, module=onset.module, source=onset.source,
                          parameter=(field["field"] or None) if field else None),
        exhibits=tuple(exhibits),
        fixes=(
            f"make {onset.module or 'the table'} large enough, or map the ids: {int(field['max']) + 1} rows would do" if field else
            "find the tensor that is used as an index on this line, and its largest value",
            "check 0 <= id < size (or ignore_index) where batches are made",
        ),
    )  # fmt: skip


def _rows_of(evidence: Evidence, module: str) -> int | None:
    """Return the rows of the weight of the module that raised: an embedding's ids must stay below; None without one."""
    frame = evidence.trace.frame(["name", "shape"], roles=["weight"], modules=[module])
    shapes = frame[frame["name"] == "weight"]["shape"]
    shape = next((s for s in shapes if s is not None), None) if module else None
    return int(shape[0]) if shape is not None and len(shape) == 2 else None


def _guilty_field(evidence: Evidence, said: re.Match[str], limit: int | None) -> tuple[dict[str, Any] | None, bool]:
    """Return the integer field that holds the value, and whether its numbers prove it."""
    integers = [f for f in evidence.batch_fields if "max" in f]
    named = next((int(v) for v in (said["target"], said["index"]) if v is not None), None)
    for field in integers:
        if named is not None and named in (field["min"], field["max"]):
            return field, True
        if named is None and limit is not None and (field["max"] >= limit or field["min"] < 0):
            return field, "index out of range" in said.string
    return max(integers, key=lambda f: int(f["max"]), default=None), False


# --- a target that the loss is not meant for ---------------------------------------------------------------------------


def _outside(evidence: Evidence) -> Suspect | None:
    """Targets beyond what a loss of torch's is defined for: its value is finite, and its minimum lies at infinity."""
    body, onset = evidence.note(NoteKind.TARGETS), evidence.onset
    if body is None or onset is None or not evidence.is_spike:
        return None
    high = "and above" if body["high"] is None else f"to {body['high']:g}"
    return Suspect(
        cause="bad-target",
        grade=Grade.PROVED,
        summary=f"{body['outside']} targets of {body['function']} are {in_words(body['least'])} to {in_words(body['most'])}, where it takes {body['low']:g} {high}",
        location=Location(step=int(body["step"]), phase="forward", source=body["source"], samples=tuple(body["samples"])),
        exhibits=(
            Exhibit(claim=f"targets outside of {body['low']:g} {high}, of {body['of']}", value=float(body["outside"]), threshold=0.0),
            Exhibit(claim="the one furthest out", value=max(float(body["least"]), float(body["most"]), key=abs)),
        ),
        fixes=(
            "scale or clamp targets where batches are made (masks of 0 and 255 are to be divided by 255), or leave those samples out",
        ),
        depth=1,
    )  # fmt: skip


# --- targets that belong to other inputs -------------------------------------------------------------------------------


def _others(evidence: Evidence) -> Suspect | None:
    """Inputs of the usual kind, on which a classifier that had learnt does worse than by guessing."""
    found = bad_batch(evidence)
    if found is None or not evidence.is_spike or not targets_are_apart(evidence, found):
        return None
    assert found.chance is not None
    return Suspect(
        cause="bad-target",
        grade=Grade.SUPPORTED,
        summary=f"the targets of step {found.step} do not belong to its inputs: a model that has {in_words(found.usual)} elsewhere has {in_words(found.batch)}, guessing has {in_words(found.chance)}",
        location=Location(step=found.step, phase="batch"),
        exhibits=(
            Exhibit(claim=f"loss of the batch of step {found.step} on the state before step {found.healthy_step}, against guessing", value=found.batch, threshold=found.chance),
            Exhibit(claim=f"loss of the batch of step {found.healthy_step} on the state before step {found.step}", value=found.state, threshold=found.usual),
            Exhibit(claim="largest change of a layer's spread at that step, 1 is usual", value=layers_change(evidence, found.step), threshold=1.0),
        ),
        fixes=(
            f"look at how the batches from step {found.step} on pair inputs with targets: a shuffle, a filter or an offset that only one of them took",
        ),
    )  # fmt: skip


# --- a target that the loss has no value for ---------------------------------------------------------------------------


def _nonfinite_target(evidence: Evidence) -> Suspect | None:
    name = inherited_field(evidence)
    if name is None or not enters_at_the_loss(evidence):
        return None
    field = next((f for f in evidence.batch_fields if f["field"] == name), None)
    nan, inf = (field["nan"], field["inf"]) if field else (0, 0)
    count = nan + inf
    samples = [i for i, n in enumerate(field.get("sample_nonfinite", [])) if n] if field else []
    # a script's advantages or teacher's values are fields too, and what made them bad is not in the trace
    is_known = count and not evidence.is_taped
    spelled = _as_written(evidence, name) if evidence.is_taped else ""
    what = f"`{spelled}` ({_name(name)})" if spelled else _name(name)
    fix = f"mask or repair the non-finite elements of {what} where batches are made"
    made = f"find where the script gets {what}: if it computes it, outside of the graph, the first NaN or Inf is there"
    return Suspect(
        cause="bad-target",
        grade=Grade.PROVED if is_known else Grade.SUPPORTED,
        summary=f"{what} holds {nonfinite_in_words(nan, inf)}, and enters at the loss",
        location=_place(evidence, tuple(samples), phase="batch", parameter=name),
        exhibits=(Exhibit(claim=f"non-finite values in {_name(name)}", value=float(count), threshold=0.0),),
        fixes=(made, fix) if evidence.is_taped else (fix,),
        predictions=() if evidence.is_taped or not 0 < len(samples) < (evidence.batch_size or 0) else _DROP,
    )


def _as_written(evidence: Evidence, name: str) -> str:
    """Return what the script's line calls a field that is an operand: the tape names it by its function and its place."""
    birth, operand = evidence.birth, _OPERAND.fullmatch(name)
    if birth is None or operand is None:
        return ""
    return operand_in(birth.code, operand["function"], int(operand["index"]))


def _undefined_at_target(evidence: Evidence) -> Suspect | None:
    """A birth whose argument is a tensor of the batch that goes to the loss without passing through the model."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None or birth.phase != "forward" or birth.kind == "carried":
        return None
    if divides_by_count_of_batch(birth, evidence):
        return None  # nothing counted, and that is no fault of a target
    given = next((i for i in birth.inputs if _batch_field(evidence, birth, i) and _undefined(bare(birth.op), i)), None)
    if given is None or not enters_at_the_loss(evidence):
        return None
    name = _batch_field(evidence, birth, given).removeprefix("batch").strip()
    direct = given.origin.startswith("batch") or bool(made_only_of(evidence, given, _SAME))
    what = _name(name) if direct else f"what is made of {_name(name)}"
    proved = birth.fp64 == "non-finite"
    return Suspect(
        cause="bad-target",
        grade=Grade.PROVED if proved else Grade.SUPPORTED,
        summary=f"{bare(birth.op)} of {what}, which holds {in_words(given.low)}{_zeros(given)}",
        location=_place(evidence, tuple(onset.samples), phase=birth.phase, parameter=name),
        exhibits=(
            Exhibit(claim=f"smallest value of {what}, as the op got it", value=given.low, threshold=0.0),
            *([Exhibit(claim=f"zeros in {what}", value=float(given.zero), threshold=0.0)] if given.zero else []),
            Exhibit(claim=f"the op in fp64 is {birth.fp64}"),
        ),
        fixes=(
            f"mask the elements of {_name(name)} for which {bare(birth.op)} has no value, and take the mean over the rest",
            "check targets where batches are made",
        ),
        predictions=(*((Prediction(trial="fp64", expect="persists"),) if proved else ()), *(_DROP if onset.samples else ())),
        depth=1,
    )  # fmt: skip


def _forbidden(evidence: Evidence) -> Suspect | None:
    """A label whose class a mask has forbidden: its log-probability is -inf by design."""
    birth, onset = evidence.birth, evidence.onset
    count = int(birth.facts.get("masked_targets", 0)) if birth is not None else 0
    if birth is None or onset is None or birth.kind != "mask-escaped" or not count:
        return None
    return Suspect(
        cause="bad-target",
        grade=Grade.PROVED,
        summary=f"{count} labels name a class that a mask has set to -inf: their loss is infinite",
        location=_place(evidence, tuple(onset.samples), phase="forward", parameter=""),
        exhibits=(
            Exhibit(claim="labels whose log-probability is -inf", value=float(count), threshold=0.0),
            Exhibit(claim=f"the mask: {birth.facts.get('mask_op')} in {birth.facts.get('mask_module') or 'the model'}"),
        ),
        fixes=(
            "make mask and labels agree where batches are made, or leave such labels out (`ignore_index`)",
            "mask with a large finite number: the loss is then large, and finite",
        ),
        predictions=_DROP if onset.samples else (),
    )


def _too_long(evidence: Evidence) -> Suspect | None:
    """A transcript that CTC cannot align: more labels, with a blank between equal ones, than there are frames."""
    birth, onset = evidence.birth, evidence.onset
    if birth is None or onset is None or bare(birth.op).strip("_") != "ctc_loss" or birth.phase != "forward":
        return None
    lengths = [birth.arguments.get(n) for n in ("input_lengths", "target_lengths")]
    frames, labels = (v if isinstance(v, list) else [] for v in lengths)
    over = [i for i, (f, t) in enumerate(zip(frames, labels, strict=False)) if t > f]
    samples = tuple(onset.samples) or tuple(over)
    return Suspect(
        cause="bad-target",
        grade=Grade.PROVED if over else Grade.SUPPORTED,
        summary=(
            f"the transcript of sample {over[0]} has {labels[over[0]]} labels for {frames[over[0]]} frames: CTC has no path"
            if over
            else "CTC has no path for a transcript: too few frames for its labels and the blanks between equal ones"
        ),
        location=_place(evidence, samples, phase="forward", parameter=""),
        exhibits=(
            Exhibit(claim=f"bad losses, of {birth.of}", value=float(birth.bad), threshold=0.0),
            *((Exhibit(claim="labels of that sample, against its frames", value=float(labels[over[0]]), threshold=float(frames[over[0]])),) if over else ()),
        ),
        fixes=("leave out samples with more labels than frames, or pass `zero_infinity=True` to the loss",),
        predictions=_DROP if onset.samples else (),
    )  # fmt: skip


def _undefined(op: str, given: Operand) -> bool:
    return (op in _AT_ZERO and given.zero > 0) or (op in _BELOW_ZERO and given.low < 0.0)


def _batch_field(evidence: Evidence, birth: Birth, given: Operand) -> str:
    """Return the batch field that an operand is, but for its sign, shape, dtype, scale and offset; '' otherwise."""
    if given.origin.startswith("batch"):
        return given.origin
    origins = made_only_of(evidence, given, _SAME | _AFFINE)
    return origins.pop() if len(origins) == 1 and min(origins).startswith("batch") else ""


def _zeros(given: Operand) -> str:
    return f" ({given.zero} zeros of {given.numel})" if given.zero else ""


def _place(evidence: Evidence, samples: tuple[int, ...], *, phase: str, parameter: str) -> Location:
    at = place_of(evidence)
    return Location(step=at.step, phase=phase, module=at.module, parameter=parameter or None, op=at.op, source=at.source,
                    samples=samples)  # fmt: skip


def _name(field: str | None) -> str:
    return f"field {field!r}" if field else "the batch"


CAUSE = Cause(slug="bad-target", doc=__doc__ or "", examine=examine)
