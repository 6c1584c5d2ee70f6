"""Adam's health as rows: a measure, the parameter that is worst by it in the onset's step, and the median of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.diagnosis.recording import HEALTH, Recording
from nanhunt.report import words

__all__ = ["Health", "HealthRow", "health_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthRow:
    """One measure: its short name, the worst parameter's values over the steps, and what the number means."""

    key: str
    label: str
    says: str
    parameter: str
    #: steps and values up to the last step that is told
    steps: tuple[int, ...]
    values: tuple[float, ...]
    worst: str
    median: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The rows, of which step, and of which optimizer ('' where the trace does not say)."""

    optimizer: str
    step: int
    rows: tuple[HealthRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    label: str
    says: str
    #: whether the largest or the smallest is the worst
    worst: Callable[..., str] = max
    told: Callable[[float], str] = words.number


_MEASURES = {
    "rms_t": _Measure(
        label="gradient over √v", says="gradient in units of its second moment, after the update: near 1 in a steady state"
    ),
    "v_stale": _Measure(
        label="gradient over old √v", says="the same against the second moment that stood before the gradient came"
    ),
    "kappa_eps": _Measure(label="√v̂ over ε", says="√v̂ over ε: below some 10 the ε decides the step", worst=min),
    "v_zero": _Measure(
        label="v is zero", says="share of elements with v = 0 and m ≠ 0: their update is m/ε", told=words.percent
    ),
    "v_stuck": _Measure(
        label="v is stuck", told=words.percent,
        says="share of elements whose v keeps its bits against β₂: its format takes no decay",
    ),
    "frozen": _Measure(
        label="weight is stuck", told=words.percent,
        says="share of elements with a gradient whose weight did not change by a bit",
    ),
    "update_lr": _Measure(
        label="update over lr", says="rms of the update over the learning rate: 0.23 to 1 in ordinary training"
    ),
}  # fmt: skip


def health_of(diagnosis: Diagnosis) -> Health | None:
    """Return the optimizer's health at the onset, or in the last step before it; None where it was not taken."""
    recording = diagnosis.recording
    last = recording.health_step(diagnosis.onset.step if diagnosis.onset else None) if recording else None
    if recording is None or last is None:
        return None
    rows = (row for key in HEALTH for row in _row(recording, key, last))
    return Health(optimizer=str(recording.optimizer.get("class", "")), step=last, rows=tuple(rows))


def _row(recording: Recording, key: str, last: int) -> Iterator[HealthRow]:
    measure = _MEASURES[key]
    there = {name: value for name, value in recording.health_at(key, last).items() if math.isfinite(value)}
    if not there:
        return
    name = measure.worst(there, key=lambda parameter: there[parameter])
    own = [(step, value) for step, value in sorted(recording.health_of(key, name).items()) if step <= last]
    yield HealthRow(
        key=key, label=measure.label, says=measure.says, parameter=name,
        steps=tuple(step for step, _ in own), values=tuple(value for _, value in own),
        worst=measure.told(there[name]), median=measure.told(_median(there.values())),
    )  # fmt: skip


def _median(values: Iterable[float]) -> float:
    ranked = sorted(values)
    return ranked[len(ranked) // 2]
