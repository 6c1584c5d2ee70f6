"""How much the score hangs on each number that was chosen: thresholds moved up and down, and chosen anew without a family.

A report is a pure function of its trace, so a threshold of a cause is tried on the traces that are there, and one of the
loss's watch on the scalars in them. For every value of a grid around the one shipped: how many programs are right. Then
leave-one-family-out: for each model family the value that does best on all other families is taken (of equals the one
nearest to the shipped), and the family is scored with it. Where that total falls far below the shipped one, the number
was fitted to the corpus.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nanhunt.diagnosis import diagnose as diagnosing
from nanhunt.diagnosis.cause import NotApplicable, Suspect
from nanhunt.diagnosis.causes import CAUSES
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.errors import NanhuntError
from nanhunt.trace.onset import SpikeWatch, StepScalars
from nanhunt.trace.reader import Trace
from tests.corpus.runner import Run

__all__ = ["THRESHOLDS", "Sensitivity", "Threshold", "scaled", "sensitivities", "without_their_family"]

#: Factors on the shipped value.
GRID = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
_CAUSES = "nanhunt.diagnosis.causes."


@dataclass(frozen=True, slots=True)
class Threshold:
    """A module's constant, and the causes whose answer it changes; none: the loss's watch, or a replay."""

    module: str
    name: str
    causes: tuple[str, ...]

    @property
    def shown(self) -> str:
        """What is shipped."""
        value = getattr(importlib.import_module(self.module), self.name)
        return " and ".join(f"{x:g}" for x in (value.values() if isinstance(value, dict) else [value]))

    def times(self, factor: float) -> contextlib.AbstractContextManager[None]:
        """Multiply it inside the body."""
        return self.replaced(lambda own: scaled(own, factor))

    @contextlib.contextmanager
    def replaced(self, by: Callable[[Any], Any]) -> Iterator[None]:
        """Put `by(it)` in its place inside the body, in its module and in those that have imported it."""
        own = getattr(importlib.import_module(self.module), self.name)
        loaded = [m for n, m in sys.modules.items() if n == self.module or n.startswith("nanhunt.")]
        holders = [m for m in loaded if m.__name__ == self.module or self._is_imported_by(m, own)]
        for module in holders:
            setattr(module, self.name, by(own))
        try:
            yield
        finally:
            for module in holders:
                setattr(module, self.name, own)

    def _is_imported_by(self, module: ModuleType, own: object) -> bool:
        return not self.name.startswith("_") and getattr(module, self.name, None) is own


def scaled(value: Any, factor: float) -> Any:
    """Return a threshold times a factor; a number of steps stays one."""
    if isinstance(value, dict):
        return {key: scaled(part, factor) for key, part in value.items()}
    return type(value)(max(1, round(value * factor))) if isinstance(value, int) else value * factor


def _of(cause: str, *names: str) -> tuple[Threshold, ...]:
    return tuple(Threshold(_CAUSES + cause.replace("-", "_"), name, (cause,)) for name in names)


def _shared(module: str, name: str, *causes: str) -> tuple[Threshold, ...]:
    return (Threshold(f"nanhunt.diagnosis.{module}", name, causes),)


_MASKED = ("fully-masked-softmax", "mask-fill-overflow", "activation-overflow", "attention-logit-growth", "bad-sample")
_REPEATED, _LOADED = ("hardware-fault", "nondeterminism"), ("bad-init", "poisoned-state", "singular-gradient")
_RATES = ("learning-rate-too-high", "gradient-explosion", "bad-sample", "attention-logit-growth", "adam-v-collapse")
#: Every threshold that was chosen by looking at runs, and not given by a format's arithmetic.
THRESHOLDS = (
    *_of("activation-overflow", "_AWAY"),
    *_of("adam-v-collapse", "_OUTLIER", "_COHERENT"),
    *_of("attention-logit-growth", "_LARGE", "_STRONG", "_SHARP", "_GROWN"),
    *_of("bad-init", "_DIVERGED", "_SOON"),
    *_of("bad-sample", "_FAR", "_SPREAD", "_SHARE", "_FEW", "_DIVERGED"),
    *_of("gradient-explosion", "_LEAP", "_NORMAL_LOSS", "_CLIFF", "_DECADES", "_RECORDS"),
    *_of("learning-rate-too-high", "_FAR", "_DIVERGED"),
    *_of("lost-update", "_FROZEN"),
    *_of("low-precision-accumulation", "LOST", "_KEPT", "_REACH"),
    *_of("optimizer-state", "_SIGN_DESCENT", "_FOREIGN", "_FIT", "_BEHIND", "_SOON", "_REACH"),
    *_of("output-logit-drift", "_FAR", "_SPREADS", "_GROWN", "_TRIPLED", "_FLAT"),
    *_of("training-loop-bug", "_WRITTEN", "_WRITTEN_MORE", "_OFTEN"),
    *_shared("births", "_MASK", *_MASKED),
    *_shared("depth", "_GROWN", "bad-init"),
    *_shared("depth", "_ABOVE", "bad-init"),
    *_shared("dynamics", "_JUMP", *_RATES),
    *_shared("dynamics", "_REACH", *_RATES),
    *_shared("exchange", "OWN", "bad-sample", "bad-target"),
    *_shared("first_loss", "_TIMES", "bad-init"),
    *_shared("first_loss", "_NATS", "bad-init"),
    *_shared("leap", "_STEEP", "singular-gradient"),
    *_shared("repetition", "_ROUNDING", *_REPEATED),
    *_shared("repetition", "_LIKE_HEALTHY", *_REPEATED),
    *_shared("repetition", "_NO_ROUNDING", *_REPEATED),
    *_shared("weights", "_GAP", *_LOADED),
    *_shared("weights", "_FEW", *_LOADED),
    *_shared("weights", "_TOWERS", *_LOADED),
    *_shared("weights", "_SPAN", *_LOADED),
    *(
        Threshold("nanhunt.trace.onset", name, ())
        for name in (
            *("ALARM", "LEAD", "EARLY", "AWAY", "LIKE", "RUN", "RUN_RISE", "SLOW_STEPS", "SLOW_RISE", "SLOW_NOISE"),
            *("REBOUND_STEPS", "REBOUND", "BASELINE", "PATIENCE", "GAP"),
        )
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What moving one threshold does: programs right by factor, and right when it is chosen without their family."""

    threshold: Threshold
    #: the value when it was measured
    shipped: str
    right: dict[float, int]
    left_out: int
    of: int

    @property
    def plateau(self) -> tuple[float, float]:
        """The factors between which nothing changes."""
        own = self.right[1.0]
        low = high = 1.0
        for factor in reversed([f for f in self.right if f < 1.0]):
            if self.right[factor] != own:
                break
            low = factor
        for factor in (f for f in self.right if f > 1.0):
            if self.right[factor] != own:
                break
            high = factor
        return low, high


def sensitivities(runs: Sequence[Run], thresholds: Sequence[Threshold] = THRESHOLDS) -> list[Sensitivity]:
    """Try every threshold on the runs' traces, a few at a time in processes that share what was read."""
    traces = []
    for run in runs:
        with contextlib.suppress(NanhuntError, OSError):
            traces.append(_Known.of(run, Trace.open(run.folder / "trace.parquet")))
    _TRACES[:] = traces
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_tried, thresholds))


#: What forked children look at.
_TRACES: list[_Known] = []


@dataclass(frozen=True, slots=True)
class _Known:
    """A trace with the answers that the shipped thresholds give."""

    run: Run
    evidence: Evidence
    answers: dict[str, Suspect | NotApplicable | None]

    @classmethod
    def of(cls, run: Run, trace: Trace) -> _Known:
        evidence = Evidence(trace)
        answers = {c.slug: diagnosing._answer(c, evidence) for c in CAUSES} if evidence.onset else {}
        return cls(run, evidence, answers)

    def is_right(self, changed: Sequence[str]) -> bool:
        """Whether the first suspect is right, with the answers of `changed` asked anew."""
        answers = self.answers | {c.slug: diagnosing._answer(c, self.evidence) for c in CAUSES if c.slug in changed}
        suspects = [diagnosing._with_trials(s, self.evidence) for s in answers.values() if isinstance(s, Suspect)]
        first = next((s for s in diagnosing._ranked(suspects) if s.grade != "refuted"), None)
        return first is not None and first.cause in self.run.job.program.truth.causes

    @property
    def is_faulty(self) -> bool:
        """Whether something ought to be found."""
        return self.run.job.faulty and self.run.job.program.cause is not None

    @property
    def is_of_the_loss(self) -> bool:
        """Whether the loss's watch is what found it, or ought to have."""
        onset = self.evidence.onset
        return onset.kind in ("loss-spike", "divergence") if onset else self._spikes

    @property
    def _spikes(self) -> bool:
        return self.is_faulty and not set(self.run.job.program.truth.kind).isdisjoint(("loss-spike", "divergence"))

    def is_seen(self) -> bool:
        """Whether the loss's watch calls this run what it is."""
        return _alarms(self.evidence) == self.is_faulty


def _tried(threshold: Threshold) -> Sensitivity:
    if threshold.causes:
        judged = [t for t in _TRACES if t.is_faulty and t.answers]
    else:
        judged = [t for t in _TRACES if t.is_of_the_loss or not t.is_faulty]
    right: dict[float, list[bool]] = {}
    for factor in GRID:
        with threshold.times(factor):
            right[factor] = [t.is_right(threshold.causes) if threshold.causes else t.is_seen() for t in judged]
    families = [t.run.job.program.truth.family for t in judged]
    left_out = without_their_family(right, families)
    totals = {factor: sum(values) for factor, values in right.items()}
    return Sensitivity(threshold=threshold, shipped=threshold.shown, right=totals, left_out=left_out, of=len(judged))


def without_their_family(right: dict[float, list[bool]], families: Sequence[str]) -> int:
    """Return how many are right where the value for each model family is chosen on all others."""
    return sum(
        sum(r for r, f in zip(right[_best(right, families, family)], families, strict=True) if f == family)
        for family in set(families)
    )


def _best(right: dict[float, list[bool]], families: Sequence[str], without: str) -> float:
    """Return the factor that is right most often outside of a family, of equals the one nearest to what is shipped."""

    def score(factor: float) -> tuple[int, float]:
        others = sum(r for r, f in zip(right[factor], families, strict=True) if f != without)
        return others, -abs(math.log(factor))

    return max(right, key=score)


def _alarms(evidence: Evidence) -> bool:
    """Whether the loss's watch, fed with the scalars of the trace, sees a fault."""
    watch = SpikeWatch()
    norms, updates = evidence.scalars("grad_norm"), _update_norms(evidence)
    for step, loss in sorted(evidence.scalars("loss").items()):
        event = watch.observe(
            StepScalars(step=step, loss=loss, grad_norm=norms.get(step), update_norm=updates.get(step))
        )
        if event is not None and event.verdict == "fault":
            return True
    last = watch.finish()
    return last is not None and last.verdict == "fault"


def _update_norms(evidence: Evidence) -> dict[int, float]:
    squares: dict[int, Any] = {}
    for series in evidence.history("update", "l2").values():
        for step, norm in series.items():
            if math.isfinite(norm):
                squares[step] = squares.get(step, 0.0) + norm * norm
    return {step: math.sqrt(total) for step, total in squares.items()}
