"""What attention scores and output logits did from step to step, as the softmax probe heard them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from nanhunt.diagnosis.evidence import Evidence, Health

__all__ = ["Attention", "Logits", "attentions", "is_rising", "output_logits"]

#: How far mean and spread of one tensor may be apart when two probes measured it, in spreads.
_ALIKE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The scores of one module's attention: by step the largest one, or a bound that no score passes."""

    module: str
    scores: dict[int, float]
    #: whether `scores` are bounds of a fused attention, whose scores do not exist outside of it
    is_bound: bool
    #: by step, where the scores themselves were computed
    exact: dict[int, float]
    #: mean over rows of -Σ p ln p, in nats, by step
    entropy: dict[int, float]
    #: columns of a row
    keys: float

    def grown(self, until: int) -> float:
        """Return how many times the score rose up to a step; 1 where it did not rise, or began below 0.

        Two values or more of the last third stand above the whole first half: the score rose over steps, and one
        batch's high score is no rise. A collapse at the very end takes nothing from it.
        """
        past = [v for s, v in sorted(self.scores.items()) if s <= until and math.isfinite(v)]
        half, third = past[: len(past) // 2], past[-max(3, len(past) // 3) :]
        if len(past) < 4 or sum(v > max(half) for v in third) < 2 or median(half) <= 0.0:
            return 1.0
        return max(third) / median(half)

    @property
    def largest(self) -> float:
        """The largest score, or bound, of all steps."""
        return max((v for v in self.scores.values() if math.isfinite(v)), default=0.0)

    def is_saturated(self, until: int) -> bool:
        """Whether the rows' entropy is a quarter or less of what it can be, on the last step that tells it."""
        past = [v for s, v in sorted(self.entropy.items()) if s <= until and math.isfinite(v)]
        return bool(past) and self.keys > 1 and past[-1] <= 0.25 * math.log(self.keys)

    def at(self, until: int) -> float:
        """Return the largest score known up to a step, the exact one where it was computed."""
        exact = [v for s, v in self.exact.items() if s <= until and math.isfinite(v)]
        bound = [v for s, v in self.scores.items() if s <= until and math.isfinite(v)]
        return max(exact or bound, default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """The logits that a cross-entropy or log-softmax took, by step: mean log Z, their mean, their spread."""

    #: the innermost module that put them out; where none did, the one in which the loss took them
    module: str
    log_z: dict[int, float]
    shift: dict[int, float]
    spread: dict[int, float]


def is_rising(values: list[float]) -> bool:
    """Whether the second half lies wholly above the first."""
    half = len(values) // 2
    return half > 0 and max(values[:half]) < min(values[half:])


def attentions(evidence: Evidence) -> list[Attention]:
    """Return every attention that was heard, in the order of the modules' names."""
    exact, entropy = _by_module(evidence.health("score_max", "zoom")), _by_module(evidence.health("entropy"))
    own, bounds = _by_module(evidence.health("score_max")), _by_module(evidence.health("score_bound"))
    keys = _by_module(evidence.health("keys")) | _by_module(evidence.health("keys", "zoom"))
    fused = _by_module(evidence.health("entropy", "zoom"))
    return [
        Attention(
            module=module,
            scores=own.get(module) or bounds.get(module, {}),
            is_bound=module not in own,
            exact=exact.get(module, {}) | own.get(module, {}),
            entropy=entropy.get(module) or fused.get(module, {}),
            keys=max(keys.get(module, {}).values(), default=0.0),
        )
        for module in sorted(own.keys() | bounds.keys())
    ]


def output_logits(evidence: Evidence) -> Logits | None:
    """Return the logits heard on most steps, of several the last module's; None where no loss took any."""
    log_z, shift = _by_module(evidence.health("log_z")), _by_module(evidence.health("shift"))
    spread = _by_module(evidence.health("spread"))
    module = max(log_z, key=lambda m: len(log_z[m]), default=None)
    if module is None:
        return None
    found = Logits(module=module, log_z=log_z[module], shift=shift.get(module, {}), spread=spread.get(module, {}))
    return replace(found, module=_maker(evidence, found) or module)


def _maker(evidence: Evidence, logits: Logits) -> str:
    """Return the innermost module whose output has the mean and the spread of the logits in the first step that has both."""
    step = next((s for s in sorted(logits.shift) if math.isfinite(logits.shift[s])), None)
    if step is None or not logits.spread.get(step):
        return ""
    mean, spread = logits.shift[step], logits.spread[step]
    rows = evidence.cells("output", ["module", "mean", "std"], step=step)
    near = _ALIKE * spread
    alike = [module for module, own, std in rows if abs(own - mean) < near and abs(std - spread) < near]
    return max(alike, key=lambda m: m.count(".") + bool(m), default="")


def _by_module(values: list[Health]) -> dict[str, dict[int, float]]:
    """Return {"h.0.attn": {7: 31.5}}, of several calls in a step the largest; NaN only where there is nothing else."""
    series: dict[str, dict[int, float]] = {}
    for health in values:
        steps = series.setdefault(health.module, {})
        before = steps.get(health.step, math.nan)
        steps[health.step] = health.value if math.isnan(before) else max(before, health.value)
    return series
