"""What a watcher is called for: each alarm is raised once, and says at which step and by what.

A spike is told by `trace.onset`, the rule that the replay itself goes by. A non-finite gradient in a step that the scaler
skips is ordinary work. None of these is a verdict: that is the report's.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from nanhunt.report.words import number, place, prose
from nanhunt.trace.onset import Event, SpikeWatch, StepScalars

__all__ = ["Alarm", "Alarms"]

#: Alarms that are shown, and steps whose losses are remembered.
_SHOWN, _REMEMBERED = 8, 2000
#: Falls of the loss scale within so many steps that are no longer its search for the right one.
_FALLS, _WITHIN = 3, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm; `level` "fault" is what the replay itself found."""

    step: int
    text: str
    level: Literal["fault", "alarm", "note"] = "alarm"


@dataclass(slots=True)
class Alarms:
    """The latest alarms, and how many there were."""

    latest: deque[Alarm] = field(default_factory=lambda: deque(maxlen=_SHOWN))
    count: int = 0
    _watch: SpikeWatch = field(default_factory=SpikeWatch)
    _open: Event | None = None
    _scale: float | None = None
    _falls: deque[int] = field(default_factory=lambda: deque(maxlen=_FALLS))
    #: whether the last step had one: a run that stays non-finite is told once
    _is_bad: bool = False
    _seen: int = 0

    def since(self, count: int) -> list[Alarm]:
        """Return the alarms behind the first `count`, those that are still kept."""
        new = self.count - count
        return list(self.latest)[-new:] if new > 0 else []

    def raised(self, step: int, text: str, level: Literal["fault", "alarm", "note"] = "alarm") -> None:
        """Add an alarm."""
        self.latest.append(Alarm(step=step, text=prose(text), level=level))
        self.count += 1

    def look_at_finiteness(self, step: int, scalars: dict[str, float], tensor: tuple[str, str, str] | None) -> None:
        """Alarm where loss, gradient norm or a tensor (its role, module and name) is not finite, at the first such step."""
        skipped = bool(scalars.get("skipped"))
        loss, norm = scalars.get("loss", 0.0), scalars.get("grad_norm", 0.0)
        bad = not math.isfinite(loss)
        text = f"loss is {number(loss)}"
        if not bad and not skipped:
            bad = not math.isfinite(norm) or tensor is not None
            text = "" if math.isfinite(norm) else f"gradient norm is {number(norm)}"
        if bad and tensor is not None:
            role, module, name = tensor
            first = f"first not finite: {role} of {place(module, name)}"
            text = f"{text}; {first}" if text else first
        if bad and not self._is_bad:
            self.raised(step, text)
        self._is_bad = bad

    def look_for_a_spike(self, scalars: StepScalars) -> None:
        """Alarm where a spike begins, and say where the loss has come back from it."""
        decided = self._watch.observe(scalars)
        self._seen += 1
        if self._seen % _REMEMBERED == 0:
            self._watch.forget(scalars.step - _REMEMBERED)
            self._watch.past.clear()
        event = self._watch.event
        if event is not None and event is not self._open:
            since = f", first sign at step {event.lead_step} ({event.lead})" if event.lead_step < scalars.step else ""
            self.raised(
                scalars.step, f"spike: loss {number(scalars.loss)}, it was {number(event.baseline_loss)}{since}"
            )
        if decided is not None and decided.verdict == "benign":
            self.raised(scalars.step, f"the loss is back from the spike of step {decided.alarm_step}", "note")
        elif decided is not None:
            self.raised(scalars.step, f"the loss stays away since step {decided.alarm_step} ({decided.kind})")
        self._open = event

    def look_at_scale(self, step: int, scale: float | None) -> None:
        """Alarm where the loss scale keeps falling."""
        before, self._scale = self._scale, scale
        if before is None or scale is None or not scale < before:
            return
        self._falls.append(step)
        if len(self._falls) == _FALLS and step - self._falls[0] < _WITHIN:
            self.raised(step, f"the loss scale fell {_FALLS} times within {_WITHIN} steps, to {number(scale)}")
            self._falls.clear()
