"""The output logits drift together: log Z runs away from zero.

What it looks like
------------------
Late in training the head's logits become large, all of them, mostly negative, while the loss is flat. Then a spike, or
an overflow where the logits are held in half precision.

Why training breaks
-------------------
The loss is log Z - z_y and does not see what all logits share, so nothing but weight decay or a z-loss holds it. The
shift costs bits: bf16 has steps of 1 at 128 and of 4 at 512, so that differences between logits are rounded away.

Evidence
--------
log Z, the mean logit and the logits' spread are heard at every cross-entropy and log-softmax. A drift is log Z of 30 or
more, three times what it was and still rising; or a mean logit of 30 or more, 3 or more spreads from zero, doubled and
rising; while the loss has stayed within 20 % of its median. The lead window alone counts: at the onset of a spike log Z
is high because the loss is.

Fix
---
A z-loss of 1e-4 · log² Z (1e-5 in OLMo-core), or a little weight decay on the head. Compute logits and loss in fp32.

How it is confirmed
-------------------
Subtracting the mean logit changes no loss in exact arithmetic; if that mends the step, it was range or rounding. No
trial does it.

When it is mistaken
-------------------
For attention-logit-growth, which grows inside the model; for learning-rate-too-high, where the loss rises with the
logits. Logits that are large from the start are an offset, and no drift.

References
----------
PaLM (arXiv 2204.02311, z-loss); Wortsman et al. 2023 (arXiv 2309.14322); OLMo 2 (arXiv 2501.00656).
"""

from __future__ import annotations

from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.diagnosis.scores import Logits, is_rising, output_logits
from nanhunt.trace.schema import NoteKind

__all__ = ["CAUSE"]

#: A mean logit of this size, this many standard deviations from zero, and this many times its first recorded one.
_FAR, _SPREADS, _GROWN = 30.0, 3.0, 2.0
#: Growth of log Z that is a drift: that of sharper logits alone is slower.
_TRIPLED = 3.0
_FIXES = (
    "add a z-loss of 1e-4 · log² Z (added, not subtracted)",
    "put a little weight decay on the head, and compute the loss in fp32",
)
#: A loss that has stayed within this factor of its median is flat.
_FLAT = 1.2
#: Recorded steps that make a trend.
_STEPS = 5


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for a mean of the model's output that ran away while the loss stood still."""
    onset = evidence.onset
    if onset is None or not (evidence.is_nonfinite or evidence.is_spike):
        return None
    heard = output_logits(evidence)
    drift = evidence.note(NoteKind.DRIFT)
    if heard is not None and (drift or _has_drifted(evidence, heard)):
        return _heard(evidence, heard, alone=bool(drift))
    if _labels(evidence) is None:
        return None
    key = _logits(evidence)
    if key is None:
        return None
    means = evidence.before(evidence.history("output", "mean", modules=[key[0]])[key])
    spreads = evidence.before(evidence.history("output", "std", modules=[key[0]])[key])
    losses = evidence.before(evidence.scalars("loss"))
    if len(means) < _STEPS or len(losses) < _STEPS:
        if evidence.is_nonfinite:
            return None
        return NotApplicable(reason=f"fewer than {_STEPS} steps were recorded before the onset: no trend can be told")
    if losses[-1] > _FLAT * median(losses) or not _drifts(means, spreads[-1]):
        return None
    return Suspect(
        cause="output-logit-drift",
        grade=Grade.CONSISTENT,
        summary=f"the mean logit drifted from {in_words(means[0])} to {in_words(means[-1])} at a flat loss",
        location=Location(step=onset.step, phase="forward", module=key[0]),
        exhibits=(
            Exhibit(claim="mean of the logits on the last step before the onset", value=means[-1], threshold=_FAR),
            Exhibit(claim="mean of the logits on the first recorded step", value=means[0]),
            Exhibit(claim="standard deviation of the logits beside it", value=spreads[-1]),
            Exhibit(claim="loss on the last step before the onset, against its median", value=losses[-1], threshold=median(losses)),
        ),
        fixes=_FIXES,
        depth=1,
    )  # fmt: skip


def _has_drifted(evidence: Evidence, heard: Logits) -> bool:
    """Whether the logits ran away before the onset, at a flat loss."""
    log_z, losses = evidence.before(heard.log_z), evidence.before(evidence.scalars("loss"))
    shifts, spreads = evidence.before(heard.shift), evidence.before(heard.spread)
    if len(log_z) < _STEPS or len(losses) < _STEPS or losses[-1] > _FLAT * median(losses):
        return False
    sizes = [abs(z) for z in log_z]
    ran = is_rising(sizes) and sizes[-1] >= max(_FAR, _TRIPLED * sizes[0])
    return ran or bool(shifts and spreads and _drifts(shifts, spreads[-1]))


def _heard(evidence: Evidence, heard: Logits, *, alone: bool) -> Suspect:
    onset = evidence.onset
    assert onset is not None
    steps = [s for s in sorted(heard.log_z) if alone or s < onset.step] or sorted(heard.log_z)
    first, last = steps[0], steps[-1]
    losses = evidence.scalars("loss")
    return Suspect(
        cause="output-logit-drift",
        grade=Grade.SUPPORTED,
        summary=f"log Z of the output logits ran from {in_words(heard.log_z[first])} at step {first} to {in_words(heard.log_z[last])} at step {last}",
        location=Location(step=onset.step, phase="forward", module=heard.module),
        exhibits=(
            Exhibit(claim=f"log Z at step {last}, against step {first}", value=heard.log_z[last], threshold=heard.log_z[first]),
            Exhibit(claim=f"mean logit at step {last}, against step {first}", value=heard.shift.get(last), threshold=heard.shift.get(first)),
            Exhibit(claim="standard deviation of the logits beside it", value=heard.spread.get(last)),
            Exhibit(claim=f"loss at step {last}, against step {first}", value=losses.get(last), threshold=losses.get(first)),
        ),
        fixes=_FIXES,
        depth=1,
    )  # fmt: skip


def _drifts(means: list[float], spread: float) -> bool:
    sizes = [abs(m) for m in means]
    return is_rising(sizes) and sizes[-1] >= max(_FAR, _SPREADS * spread, _GROWN * sizes[0])


def _labels(evidence: Evidence) -> int | None:
    """Return the largest label of the batch, where there are whole-number labels."""
    found = [int(f["max"]) for f in evidence.batch_fields if "max" in f and f["max"] >= 1]
    return max(found, default=None)


def _logits(evidence: Evidence) -> tuple[str, str] | None:
    """Return the key of the model's own output whose last dimension has room for every label."""
    classes = _labels(evidence) or 0
    for module, name, shape in evidence.cells("output", ["module", "name", "shape"], modules=[""]):
        if shape is not None and len(shape) >= 2 and shape[-1] > classes:
            return module, name
    return None


CAUSE = Cause(slug="output-logit-drift", doc=__doc__ or "", examine=examine)
