"""An input is bad: non-finite, corrupt, or so far out that the model has never seen its like.

What it looks like
------------------
NaN or a spike at one step, with one batch, whatever the precision and the rate; the same sample fails again in the next
epoch. Or a pocket of batches with a high loss, before any update that stands out.

Why training breaks
-------------------
A NaN in one pixel is a NaN in the mean loss and in every gradient. A finite outlier of 1e3 times its peers drives exp,
squares and fp16 products over their range, and its gradient outweighs the rest of the batch.

Evidence
--------
Proof is a count: non-finite elements in a field of the batch, by sample, from which the NaN is inherited. A finite
outlier: max|x| of a sample 1000 or more times the median of its peers (or of the field's past), and the same sample
found by leaving samples out. In a spike: the losses of single samples on the state before, and whether the batch's
spread left its past by 10 in either direction.

Fix
---
Check batches where they are loaded (finite, range, length), drop or repair these samples, and log sample ids. To get
past a pocket, skip its batches; fix the source: a division in the preprocessing, a hole in a file, a decoding error.

How it is confirmed
-------------------
drop-samples leaves these samples out and must cure; drop-placebo leaves out as many others and must not. Where the whole
batch is bad, swap-batch must cure. A mean falls without its largest term by itself: of a finite loss that comes back with
the next batch it tells nothing, unless the sample's input stands out as well.

When it is mistaken
-------------------
A sample that only triggers an undefined operation (an empty mask, a zero norm, a log of zero) is not bad: those causes
come first. For bad-target, where the field enters at the loss, or where every layer makes of the inputs what it makes of
others. Spikes that go with the sample can still be the state's:
PaLM's skipped batches did no harm when they were met later.

References
----------
prs-eth/Marigold#111 (NaN pixels); PaLM (arXiv 2204.02311, skipping 200 to 500 batches); BLOOM (a million samples of
backslashes); OLMo 2 (arXiv 2501.00656, repeated n-grams); ml-engineering, training-loss-patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, Suspect
from nanhunt.diagnosis.dynamics import growth, over_baseline, rate_jump
from nanhunt.diagnosis.entry import enters_at_the_loss, inherited_field
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.exchange import OWN, bad_batch, targets_are_apart
from nanhunt.diagnosis.ops import EXPS
from nanhunt.diagnosis.reading import bare, in_words, nonfinite_in_words
from nanhunt.interventions import Prediction
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: max|x| of a sample over the median of its peers', or of a batch over its past, that makes a far outlier.
_FAR = 1e3
#: Spread of a batch over its past's that makes a pocket of other data: a change of scale, or one token repeated.
_SPREAD = 10.0
#: Losses before a spike, and behind it, that say whether it stays.
_AROUND, _BEHIND = 8, 3
#: Loss over the worst sample's from which a sample is called bad beside it.
_SHARE = 0.1
#: Repetitions of one n-gram from which OLMo 2 masks a sequence.
_REPEATS = 32
#: Share of a batch that may still be called a few samples.
_FEW = 0.25
#: Rise of the loss before a NaN: then the run diverged, and samples only differ in when they overflow.
_DIVERGED = 3.0

_DROP = (Prediction(trial="drop-samples", expect="cured"), Prediction(trial="drop-placebo", expect="persists"))
#: The same of a loss that is back at once: without its largest term a mean is always lower.
_DROPPED_IN_VAIN = (
    Prediction(trial="drop-samples", expect="cured", confirms=False),
    Prediction(trial="drop-placebo", expect="persists"),
)
_SWAP = (Prediction(trial="swap-batch", expect="cured"),)


def examine(evidence: Evidence) -> Suspect | None:
    """Count non-finite inputs, then look for outliers among the samples, then among the batches."""
    if evidence.is_nonfinite:
        return _nonfinite_input(evidence) or _carried_by_samples(evidence)
    if evidence.is_spike:
        found = _samples_of_a_spike(evidence) or _pocket(evidence) or _batch_alone(evidence)
        return _with_repetition(evidence, found) or _repetitive(evidence)
    return None


def _nonfinite_input(evidence: Evidence) -> Suspect | None:
    name = inherited_field(evidence)
    if name is None or enters_at_the_loss(evidence):
        return None
    field = next((f for f in evidence.batch_fields if f["field"] == name), None)
    nan, inf = (field["nan"], field["inf"]) if field else (0, 0)
    count, held = nan + inf, nonfinite_in_words(nan, inf)
    samples = [i for i, n in enumerate(field.get("sample_nonfinite", [])) if n] if field else []
    partly = 0 < len(samples) < (evidence.batch_size or 0)
    what = f"field {name!r}" if name else "the batch"
    return Suspect(
        cause="bad-sample",
        grade=Grade.PROVED if count else Grade.SUPPORTED,
        summary=f"{what} holds {held} before the model sees it{_of(samples)}",
        location=_place(evidence, samples, phase="batch", parameter=name),
        exhibits=(
            Exhibit(claim=f"non-finite values in {what}, of {field['numel'] if field else 'an unknown number'}", value=count, threshold=0.0),
            *(Exhibit(claim=f"non-finite values in sample {i}", value=field["sample_nonfinite"][i]) for i in samples[:4] if field),
        ),
        fixes=(
            f"repair or drop {_named(samples)} of step {evidence.onset.step if evidence.onset else '?'}{_rank(evidence)}, and find where "
            f"{what} gets its {'NaN' if nan or not inf else 'Inf'}",
            "check torch.isfinite of every float field where batches are loaded",
        ),
        predictions=_DROP if partly else _SWAP,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Outlier:
    """A field, its far-out samples, and the largest ratio."""

    field: str
    samples: list[int]
    ratio: float
    amax: float


def _outlier(evidence: Evidence) -> _Outlier | None:
    """Return the field whose samples stand out most, at least 1000 times their peers' median."""
    found = []
    for field in evidence.batch_fields:
        sizes = [float(v) for v in field.get("sample_amax", [])]
        usual = median(sizes) if sizes else 0.0
        far = [i for i, v in enumerate(sizes) if usual > 0.0 and v >= _FAR * usual]
        if far and len(far) * 2 < len(sizes):
            found.append(_Outlier(str(field["field"]), far, max(sizes) / usual, max(sizes)))
    return max(found, key=lambda o: o.ratio, default=None)


def _carried_by_samples(evidence: Evidence) -> Suspect | None:
    """Samples that carry a fault which was born inside the step: bad where they stand out themselves."""
    birth, note = evidence.birth, evidence.note(NoteKind.SAMPLES)
    if birth is None or birth.facts.get("inherited") or _diverged(evidence):
        return None
    carriers = list(note["samples"]) if note else []
    outlier = _outlier(evidence)
    if outlier is not None and (not carriers or set(carriers) <= set(outlier.samples)):
        return _outlying(evidence, outlier, carriers)
    constant = any(0.0 < i.amax == i.amin for i in birth.inputs)  # a mask times a number: the code's own infinity
    few = 0 < len(carriers) <= _FEW * (evidence.batch_size or 0)
    if not few or birth.fp64 != "beyond-range" or constant:
        return None
    return Suspect(
        cause="bad-sample",
        grade=Grade.CONSISTENT,
        summary=f"the fault goes with {_named(carriers)}, though no number in the batch stands out",
        location=_place(evidence, carriers),
        exhibits=(Exhibit(claim=f"the step is healthy without {_named(carriers)} ({note['method'] if note else ''})"),),
        fixes=(f"look at {_named(carriers)} of step {evidence.onset.step if evidence.onset else '?'}",),
    )


def _outlying(evidence: Evidence, outlier: _Outlier, carriers: list[int]) -> Suspect:
    samples = carriers or outlier.samples
    where = f"field {outlier.field!r}" if outlier.field else "the batch"
    return Suspect(
        cause="bad-sample",
        grade=Grade.SUPPORTED if carriers else Grade.CONSISTENT,
        summary=f"{_named(samples)} is {in_words(outlier.ratio)} times as large as its peers in {where}",
        location=_place(evidence, samples),
        exhibits=(
            Exhibit(claim=f"max|x| of {_named(samples)} over its peers' median", value=outlier.ratio, threshold=_FAR),
            Exhibit(claim=f"max|x| in {where}", value=outlier.amax),
        ),
        fixes=(
            "clip or standardise the field where batches are loaded, and drop what is beyond",
            f"look at {_named(samples)}",
        ),
        predictions=_DROP if carriers else (),
        depth=_depth(evidence),
    )


def _depth(evidence: Evidence) -> int:
    """1 where plain arithmetic overflowed: a sound op given too much. exp and discarded branches are faults themselves."""
    birth = evidence.birth
    sound = birth is not None and birth.phase == "forward" and birth.fp64 == "beyond-range"
    return int(sound and birth is not None and bare(birth.op) not in EXPS and not birth.facts.get("discarded_by"))


def _samples_of_a_spike(evidence: Evidence) -> Suspect | None:
    """Samples whose own loss stands out on the state before the step that spikes."""
    onset = evidence.onset
    assert onset is not None
    note = next((n for n in evidence.notes(NoteKind.SAMPLE_LOSSES) if n["step"] == onset.step), None)
    if note is None or not note["outliers"]:
        return None
    losses, outliers = note["losses"], list(note["outliers"])
    what = "loss"
    if not any(_stands_out(losses, i, outliers) for i in outliers) and note.get("norms"):
        what = "gradient norm"
        losses = [float(note["norms"].get(str(i), 0.0)) for i in range(len(losses))]
    usual = median(v for i, v in enumerate(losses) if i not in outliers)
    size = {i: losses[i] if math.isfinite(losses[i]) else math.inf for i in outliers}
    worst = max(size.values())
    # beside a giant, what is merely hard is an outlier as well
    bad = [i for i in outliers if size[i] >= _SHARE * worst]
    far = _outlier(evidence)
    field = far if far is not None and set(far.samples) & set(bad) else None
    looked_at = f"field {field.field!r} of {_named(bad)}" if field is not None else _named(bad)
    return Suspect(
        cause="bad-sample",
        grade=Grade.SUPPORTED,
        summary=f"the {what} of {_named(bad)} is {in_words(worst)} on the state before the step, {in_words(usual)} of its peers",
        location=_place(evidence, bad),
        exhibits=(
            Exhibit(claim=f"largest {what} among {_named(bad)}, against the others' median", value=worst, threshold=usual),
            *([Exhibit(claim=f"max|x| in {looked_at} over its peers' median", value=field.ratio, threshold=_FAR)] if field else []),
        ),
        fixes=(f"look at {looked_at} of step {onset.step}; drop or repair it", "clip the gradient norm, so that one sample cannot move the weights far"),
        predictions=_DROP if far or _stays_up(evidence, note["step"]) else _DROPPED_IN_VAIN,
    )  # fmt: skip


def _stays_up(evidence: Evidence, step: int) -> bool:
    """Whether the losses behind a spike are away from those before it: then its update has done harm."""
    losses = sorted(evidence.scalars("loss").items())
    before = [x for s, x in losses if s < step][-_AROUND:]
    after = [x for s, x in losses if s > step][:_BEHIND]
    return bool(before and after) and not median(after) <= OWN * median(before)


def _repetitions(evidence: Evidence) -> tuple[str, list[int], list[int]]:
    """Return the integer field whose samples repeat an n-gram 32 times or more, those samples, and all counts."""
    for field in evidence.batch_fields:
        counts = [int(c) for c in field.get("sample_repeats", [])]
        many = [i for i, c in enumerate(counts) if c >= _REPEATS]
        if many and len(many) < len(counts):
            return str(field["field"]), many, counts
    return "", [], []


def _with_repetition(evidence: Evidence, found: Suspect | None) -> Suspect | None:
    """Add what the samples repeat to a suspect that was found by their loss."""
    name, many, counts = _repetitions(evidence)
    if found is None or not many or (found.location.samples and not set(found.location.samples) & set(many)):
        return found
    exhibit = Exhibit(
        claim=f"longest repetition of one n-gram in {_named(many)} of field {name!r}",
        value=float(max(counts)),
        threshold=float(_REPEATS),
    )
    return replace(found, exhibits=(*found.exhibits, exhibit))  # fmt: skip


def _repetitive(evidence: Evidence) -> Suspect | None:
    """Sequences that say one thing over and over, in a batch whose loss is high before any unusual update."""
    onset = evidence.onset
    assert onset is not None
    name, many, counts = _repetitions(evidence)
    if onset.phase != "forward" or not many or rate_jump(evidence) is not None:
        return None
    return Suspect(
        cause="bad-sample",
        grade=Grade.CONSISTENT,
        summary=f"{_named(many)} of field {name!r} repeat one n-gram {max(counts)} times",
        location=_place(evidence, many, phase="batch", parameter=name),
        exhibits=(Exhibit(claim=f"longest repetition of an n-gram of 1 to 13 tokens in {_named(many)}", value=float(max(counts)), threshold=float(_REPEATS)),),
        fixes=("mask the loss of sequences that repeat an n-gram 32 times or more, or drop them",),
        predictions=_DROP,
    )  # fmt: skip


def _stands_out(losses: list[float], index: int, outliers: list[int]) -> bool:
    others = [v for i, v in enumerate(losses) if i not in outliers and math.isfinite(v)]
    return not math.isfinite(losses[index]) or not others or losses[index] > 3.0 * abs(median(others))


def _pocket(evidence: Evidence) -> Suspect | None:
    """Batches whose spread left its past, at a loss that is high before any unusual update."""
    onset = evidence.onset
    assert onset is not None
    if onset.phase != "forward" or rate_jump(evidence) is not None:
        return None
    for field, series in evidence.history("batch", "std").items():
        ratio = over_baseline(series, onset.step)
        if ratio is None or 1.0 / _SPREAD < ratio < _SPREAD:
            continue
        others = {s: over_baseline(series, s, onset.step) for s in series if s > onset.step}
        pocket = [onset.step, *(s for s, r in others.items() if r is not None and not 1.0 / _SPREAD < r < _SPREAD)]
        steps = f"step {pocket[0]}" if len(pocket) == 1 else f"steps {pocket[0]} to {pocket[-1]}"
        return Suspect(
            cause="bad-sample",
            grade=Grade.SUPPORTED,
            summary=f"field {field[1]!r} of {steps} has {in_words(ratio)} times its usual spread",
            location=_place(evidence, [], phase="batch", parameter=field[1]),
            exhibits=(Exhibit(claim=f"standard deviation of field {field[1]!r} over its median before", value=ratio, threshold=_SPREAD),),
            fixes=(f"look at the batches of {steps}; skip them, and standardise the field where batches are loaded",),
            # one step is swapped: of a longer pocket the rest would stay
            predictions=_SWAP if len(pocket) == 1 else (),
        )  # fmt: skip
    return None


def _batch_alone(evidence: Evidence) -> Suspect | None:
    found = bad_batch(evidence)
    if found is None or targets_are_apart(evidence, found):
        return None
    step, healthy = found.step, found.healthy_step
    return Suspect(
        cause="bad-sample",
        grade=Grade.SUPPORTED,
        summary=f"the batch of step {step} has a loss of {in_words(found.batch)} on the state of step {healthy} too, {in_words(found.usual)} is usual",
        location=Location(step=step, phase="batch"),
        exhibits=(
            Exhibit(claim=f"loss of the batch of step {step} on the state before step {healthy}", value=found.batch, threshold=found.usual),
            Exhibit(claim=f"loss of the batch of step {healthy} on the state before step {step}", value=found.state, threshold=found.usual),
        ),
        fixes=(f"look at the batches from step {step} on; skip them, or mix what is new into the rest",),
        predictions=(),
    )  # fmt: skip


def _diverged(evidence: Evidence) -> bool:
    rise = growth(evidence.scalars("loss"), evidence.onset.step if evidence.onset else 0)
    return rise is not None and rise.factor >= _DIVERGED


def _place(evidence: Evidence, samples: list[int], phase: str | None = None, parameter: str | None = None) -> Location:
    onset = evidence.onset
    assert onset is not None
    return Location(step=onset.step, phase=phase or onset.phase, parameter=parameter or None, samples=tuple(samples))


def _rank(evidence: Evidence) -> str:
    """Return whose batch it is, where several ranks read their own."""
    onset = evidence.onset
    return f" of rank {onset.rank}" if onset is not None and evidence.ranks.rank_count > 1 else ""


def _named(samples: list[int]) -> str:
    if not samples:
        return "the batch"
    shown = ", ".join(map(str, samples[:8])) + (" …" if len(samples) > 8 else "")
    return f"sample {shown}" if len(samples) == 1 else f"samples {shown}"


def _of(samples: list[int]) -> str:
    return f", in {_named(samples)}" if samples else ""


CAUSE = Cause(slug="bad-sample", doc=__doc__ or "", examine=examine)
