"""Adam's second moment is too small, or too old, for the gradient that arrives.

What it looks like
------------------
A loss spike at an unchanged learning rate, 1 to 8 steps after single tensors (often embeddings) moved by many times
the rate. Forward and backward are clean in every precision; the same batch on another state does no harm.

Why training breaks
-------------------
Adam divides by sqrt(v), and v remembers 1/(1 - β2) steps: 1000 at 0.999. A gradient k times its past gives
RMS_t = k/sqrt(1 + (1 - β2)(k² - 1)), at most 1/sqrt(1 - β2) = 31.6 at 0.999 and 4.5 at 0.95. Where v itself was lost
(rounded to zero in fp16 or 8 bits, reset, restored from elsewhere), the update has no bound but m/ε.

Evidence
--------
rms(Δw)/lr of a parameter against its own past: 0.23 is steady state, 1 a coherent direction. No sequence of gradients
takes an intact Adam past (1 - β1)/sqrt(1 - β2)/sqrt(1 - β1²/β2), 7.3 at (0.9, 0.999): beyond that, v does not belong
to these gradients. An optimizer of one's own is held to it where it kept it before. The mean of v cannot fall faster than β2 a step either. `v_zero`, `v_stale` and RMS_t say how.

Fix
---
Keep v in fp32, or raise ε above what its format flushes. Lower β2 to 0.95 … 0.99. Clip the update by its own RMS
(StableAdamW: lr / max(1, RMS_t)). Warm up again after a change of batch size, data or rate.

How it is confirmed
-------------------
The trial v-floor raises v to at least g² before the update and leaves all else alone: the spike must go.

When it is mistaken
-------------------
For learning-rate-too-high: there the rate is the outlier, and updates per rate stay below 1. For bad-sample: there the
loss is high before any unusual update. A reset of both moments gives 1 per rate, not more: optimizer-state. Any smaller
step cures this too, so lr-0.1 tells nothing.

References
----------
Wortsman et al. 2023 (arXiv 2304.13013, StableAdamW); Bai et al. 2025 (arXiv 2506.04805); Li et al. 2023 (arXiv
2309.01507, zero point of 8-bit moments); Molybog et al. 2023 (arXiv 2304.09871).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from nanhunt.diagnosis.cause import Cause, Exhibit, Grade, Location, NotApplicable, Suspect
from nanhunt.diagnosis.dynamics import blamed_steps, first_step, over_baseline
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.diagnosis.reading import in_words
from nanhunt.interventions import Prediction

__all__ = ["CAUSE", "update_bound"]

#: An update of this many times the parameter's own past, and above a coherent direction's 1, is an outlier.
_OUTLIER, _COHERENT = 3.0, 1.05
#: Least part of a weight's movement that was made after its update, and over the most of the steps before, from which
#: the movement does not tell of the update: what is measured of such writing is a lower bound.
_FOREIGN, _FOREIGN_MORE = 0.01, 10.0
#: Ends of the names of optimizers that keep both moments and divide otherwise.
_OTHERS = ("NAdam", "RAdam")


@dataclass(frozen=True, slots=True)
class _Update:
    """One parameter's update in units of the rate, and the median before it."""

    parameter: str
    step: int
    size: float
    usual: float | None


def examine(evidence: Evidence) -> Suspect | NotApplicable | None:
    """Look for an update that the second moment should have held back."""
    if not (evidence.is_spike or evidence.is_nonfinite) or evidence.beta2 is None:
        return None
    blamed = blamed_steps(evidence)
    updates = evidence.health_series("update_lr")
    if evidence.is_nonfinite and blamed[-1] < first_step(evidence):
        return None
    if not evidence.hears("rms_t") or not any(s in series for series in updates.values() for s in blamed):
        return NotApplicable(reason=f"no moments were recorded at the steps that can be blamed ({_span(blamed)})")
    worst = _worst(_by_the_optimizer(evidence, updates, blamed), blamed)
    if worst is None:
        return None
    bound, fallen = _bound(evidence), _fallen(evidence, worst)
    stale = over_baseline(evidence.health_series("v_stale").get(worst.parameter, {}), worst.step)
    broken = bound is not None and worst.size > bound and _kept_before(evidence, worst, bound)
    if not broken and fallen is None and (stale is None or stale < _OUTLIER):
        return None
    return _accused(evidence, worst, bound if broken else None, fallen)


def _by_the_optimizer(
    evidence: Evidence, updates: dict[str, dict[int, float]], blamed: tuple[int, ...]
) -> dict[str, dict[int, float]]:
    """Return the updates without those that something else made: a loop that writes into a weight after its update."""
    outside, moved = evidence.health_series("moved_outside"), evidence.history("update", "l2")

    def own(parameter: str, step: int) -> bool:
        module, _, name = parameter.rpartition(".")
        series = outside.get(parameter, {})
        usual = max((v for s, v in series.items() if s < blamed[0]), default=0.0)
        total = moved.get((module, name), {}).get(step, math.inf)
        return not series.get(step, 0.0) > max(_FOREIGN * total, _FOREIGN_MORE * usual)

    return {p: {s: v for s, v in series.items() if s not in blamed or own(p, s)} for p, series in updates.items()}


def _worst(updates: dict[str, dict[int, float]], blamed: tuple[int, ...]) -> _Update | None:
    """Return the largest outlier among the updates that can be blamed."""
    found = []
    for parameter, series in updates.items():
        past = [v for s, v in series.items() if s < blamed[0] and math.isfinite(v)]
        usual = median(past) if past else None
        for step in blamed:
            size = series.get(step, math.nan)
            if math.isfinite(size) and size > _COHERENT and (usual is None or size >= _OUTLIER * usual):
                found.append(_Update(parameter, step, size, usual))
    return max(found, key=lambda u: u.size, default=None)


def update_bound(evidence: Evidence) -> float | None:
    """Return the largest rms(Δw)/lr that any gradients can give an intact Adam; None where its formula is another.

    By Cauchy-Schwarz over the two exponential sums; the decoupled decay adds at most wd · max|w|, and 5 % is left for
    rounding. NAdam, RAdam and optimizers with trust ratios follow other formulas.
    """
    return _bound(evidence) if _is_adam(evidence) else None


def _is_adam(evidence: Evidence) -> bool:
    name = str(evidence.optimizer.get("class", ""))
    return name.endswith(("Adam", "AdamW")) and not name.endswith(_OTHERS)


def _bound(evidence: Evidence) -> float | None:
    """Return that bound by the betas alone, whatever the optimizer is called: the largest of its groups."""
    groups = evidence.optimizer.get("groups") or [{}]
    betas = [g.get("betas") for g in groups]
    if str(evidence.optimizer.get("class", "")).endswith(_OTHERS) or not all(_are_two(b) for b in betas):
        return None
    pairs = [(float(b[0]), float(b[1])) for b in betas]
    if not all(0.0 <= beta1 * beta1 < beta2 < 1.0 for beta1, beta2 in pairs):
        return None
    largest = max((v for s in evidence.history("weight").values() for v in s.values() if math.isfinite(v)), default=0.0)
    decay = max(abs(float(g.get("weight_decay", 0.0))) for g in groups) * largest
    longest = max((1.0 - a) / math.sqrt(1.0 - b) / math.sqrt(1.0 - a * a / b) for a, b in pairs)
    return 1.05 * longest + decay


def _are_two(betas: object) -> bool:
    return isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, (int, float)) for b in betas)


def _kept_before(evidence: Evidence, update: _Update, bound: float) -> bool:
    """Whether the bound is this optimizer's: Adam's by name, or of one that kept moments and stayed within it before.

    A trust ratio or a scale of its own shows in each update, not in one.
    """
    return _is_adam(evidence) or (update.usual is not None and update.usual <= bound)


def _fallen(evidence: Evidence, update: _Update) -> float | None:
    """Return the factor by which the mean of v fell in one step before the update, where β2 does not allow it."""
    module, _, name = update.parameter.rpartition(".")
    means = evidence.history("exp_avg_sq", "mean", modules=[module]).get((module, name), {})
    for step in (update.step, update.step - 1):
        before, after = means.get(step - 1), means.get(step)
        if before and after is not None and after < 0.98 * (evidence.beta2 or 0.0) * before:
            return after / before
    return None


def _accused(evidence: Evidence, worst: _Update, bound: float | None, fallen: float | None) -> Suspect:
    onset = evidence.onset
    assert onset is not None
    certain = evidence.is_spike and worst.step >= onset.step
    module, _, _name = worst.parameter.rpartition(".")
    return Suspect(
        cause="adam-v-collapse",
        grade=Grade.PROVED if bound is not None and _is_adam(evidence) else Grade.SUPPORTED,
        summary=f"{worst.parameter} moved by {in_words(worst.size)} learning rates, because its second moment is too small",
        location=Location(step=worst.step, phase="update", module=module, parameter=worst.parameter),
        exhibits=_exhibits(evidence, worst, bound, fallen),
        fixes=(
            "keep exp_avg_sq in fp32 and do not round, reset or reload it without exp_avg",
            "clip each tensor's update by its own RMS (lr / max(1, RMS_t), as StableAdamW does)",
            f"lower β2 from {evidence.beta2} to 0.95 … 0.99, so that v follows the gradient",
        ),
        predictions=(Prediction(trial="v-floor", expect="cured"),) if certain else (),
        depth=1 if evidence.is_nonfinite else 0,
    )


def _exhibits(evidence: Evidence, worst: _Update, bound: float | None, fallen: float | None) -> tuple[Exhibit, ...]:
    exhibits = [
        Exhibit(claim=f"rms(Δw)/lr of {worst.parameter}, against its own past", value=worst.size, threshold=worst.usual)
    ]
    if bound is not None:
        exhibits.append(
            Exhibit(claim="no gradients take an intact Adam beyond this", value=worst.size, threshold=bound)
        )
    if fallen is not None:
        claim = "the mean of its exp_avg_sq changed by this factor in one step; Adam cannot go below β2"
        exhibits.append(Exhibit(claim=claim, value=fallen, threshold=evidence.beta2))
    zeros = [evidence.health_at("v_zero", s).get(worst.parameter, 0.0) for s in (worst.step - 1, worst.step)]
    if max(zeros) > 0.0:
        exhibits.append(Exhibit(claim="share of its elements with v = 0 and m ≠ 0", value=max(zeros)))
    stale = evidence.health_at("v_stale", worst.step).get(worst.parameter)
    if stale is not None and math.isfinite(stale):
        exhibits.append(Exhibit(claim="the gradient's RMS over that of the v which stood before it", value=stale))
    exhibits.append(Exhibit(claim="the learning rate at that step", value=evidence.scalars("lr").get(worst.step)))
    return tuple(exhibits)


def _span(steps: tuple[int, ...]) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}" if steps else "none"


CAUSE = Cause(slug="adam-v-collapse", doc=__doc__ or "", examine=examine)
