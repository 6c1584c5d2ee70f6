"""When a finite run goes wrong: robust alarms on loss and gradient norm, grouped into events with their lead.

What was chosen. Median and MAD (× 1.4826) over the last 129 accepted values; a value that alarms is not accepted, so a
burst does not hide its own continuation, and a non-finite value never enters. Alarm at z > 8; the event's lead is the
first step with z > 4 in any series before it. Gradient and update norms are judged on a log scale, where they are
roughly symmetric; only rises alarm.

What it costs. MAD over five values is a poor estimate, so the threshold is widened by 1 + 6/n, and a rise must also be
material: a twentieth of the loss, a doubling of a norm. An alarm accuses nobody: what counts is whether the loss stays
away from its baseline on the steps after it. A hard batch that recovers at once is noted as benign.

The synthetic operating characteristics behind these numbers: no false alarm in 10 000 steps of a drifting Gaussian
loss, 2.4 of a log-normal norm; a loss with a heavy upper tail (batches of one sample) does alarm by itself; a loss step of +0.2 at noise 0.03 is seen with probability 1.

Near zero a loss is log-normal: what is left are a few mistakes, and from step to step it changes by factors. Where these
are large (`HEAVY`), a rise of the loss must stand out on the log scale as well, and one that was seen before there was a
baseline is held, when it is decided, against the noise of all that has come by then. Noise is what a straight line
through both neighbours leaves: a steep fall is no noise, nor is a loss that doubles from step to step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

__all__ = ["ALARM", "LEAD", "Event", "Series", "SpikeWatch", "StepScalars"]

ALARM, LEAD = 8.0, 4.0
WINDOW = 129
#: Values before anything can be judged.
BASELINE = 5
#: Steps watched after an alarm before it is decided.
PATIENCE = 8
#: Steps without a sign that a lead may bridge.
GAP = 2
#: Before there is a baseline: rise over the median of the n losses so far from which a step counts, times 1 + 4/n, for
#: one loss alone says little of its noise; and the loss that is still away.
EARLY, AWAY = 3.0, 2.0
#: Times a loss that the run has come back from, up to which a peak is like it.
LIKE = 1.5
#: Rises in a row from one of the first losses on, and what they come to, of a run that is running away; of five in a
#: row noise makes one in 720.
RUN, RUN_RISE = 5, 8.0
#: A slow rise: steps that it takes to see one, its size over the run's first third, and in units of the steps' noise.
SLOW_STEPS, SLOW_RISE, SLOW_NOISE = 24, 1.3, 6.0

#: Noise of the log of a loss from which it changes by factors from step to step; z on that scale counts so many times,
#: for logs have no heavy tail; and noises that an early rise must have on it.
HEAVY, HEAVY_TIMES, HEAVY_RISE = 0.5, 2.0, 2.5

#: Least spread of a loss most of whose values are exactly zero: what rounds to that has a scale of its own.
NOTHING = 1e-3

#: A loss that fell and rose again: steps that it takes to see one, and its last level over its first.
REBOUND_STEPS, REBOUND = 12, 1.1


@dataclass(slots=True)
class Series:
    """One scalar over steps, and the accepted values that define normal."""

    name: str
    log: bool
    #: rise over the median that is material: a share of it, or (log) a difference of logs
    material: float
    #: floor of the MAD: a share of the median, or (log) a difference of logs
    floor: float
    accepted: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    scores: dict[int, float] = field(default_factory=dict)

    def score(self, value: float | None) -> float | None:
        """Return the robust z of a rise; None where it cannot be judged (too few values, or not finite)."""
        if value is None or not math.isfinite(value) or len(self.accepted) < BASELINE:
            return None
        x = self._scaled(value)
        centre = median(self.accepted)
        spread = median(abs(a - centre) for a in self.accepted)
        floor = self.floor if self.log else self.floor * abs(centre)
        rise = x - centre
        if rise < (self.material if self.log else self.material * abs(centre)):
            return min(rise, 0.0)
        if centre == 0.0 and not self.log:
            floor = NOTHING
        z = rise / (1.4826 * max(spread, floor, 1e-12)) / (1.0 + 6.0 / len(self.accepted))
        return z if self.log else min(z, self._on_the_log_scale(value))

    def _on_the_log_scale(self, value: float) -> float:
        """Return the robust z of a rise of the logs, which bounds it where the values change by factors; else inf."""
        noise = log_noise(self.accepted)
        if noise is None or noise < HEAVY or value <= 0.0:
            return math.inf
        logs = [math.log(max(a, 1e-300)) for a in self.accepted]
        centre = median(logs)
        spread = max(noise, 1.4826 * median(abs(a - centre) for a in logs))
        return HEAVY_TIMES * (math.log(value) - centre) / spread / (1.0 + 6.0 / len(logs))

    def observe(self, step: int, value: float | None, *, accept: bool = True) -> float | None:
        """Score a value, remember the score, and let it into the baseline where it may."""
        z = self.score(value)
        if z is not None:
            self.scores[step] = z
        if accept and value is not None and math.isfinite(value) and (z is None or z <= LEAD):
            self.accepted.append(self._scaled(value))
        return z

    @property
    def baseline(self) -> float | None:
        """The median of the accepted values, in the series' own unit; None where there is none."""
        if not self.accepted:
            return None
        centre = median(self.accepted)
        return math.exp(centre) if self.log else centre

    def _scaled(self, value: float) -> float:
        return math.log(max(value, 1e-300)) if self.log else value


def _usual(losses: list[float]) -> float:
    """Return the usual one of a few losses: of some that are exactly zero, where no factor says anything, the largest."""
    return max(losses) if 0.0 in losses else median(losses)


def log_noise(values: Iterable[float]) -> float | None:
    """Return the robust deviation of the logs of positive values from the line through their neighbours; None of too few."""
    logs = [math.log(max(x, 1e-300)) for x in values if x >= 0.0]
    bends = [abs(b - 0.5 * (a + c)) for a, b, c in zip(logs, logs[1:], logs[2:], strict=False)]
    return 1.4826 * median(bends) / math.sqrt(1.5) if len(bends) >= max(1, BASELINE - 2) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScalars:
    """What the watch sees of one step."""

    step: int
    loss: float
    grad_norm: float | None = None
    update_norm: float | None = None


@dataclass(slots=True, kw_only=True)
class Event:
    """A run of alarms, from its lead to its decision."""

    lead_step: int
    #: the series that led: "loss", "grad_norm" or "update_norm"
    lead: str
    alarm_step: int
    severity: float
    peak_loss: float
    peak_step: int
    baseline_loss: float
    #: "pending", "fault" or "benign"
    verdict: str = "pending"
    #: "loss-spike" or "divergence"
    kind: str = "loss-spike"
    #: steps after the alarm, by whether the loss stood above the lead threshold
    after: list[bool] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    #: raised before there was a baseline
    early: bool = False
    #: seen by its trend at the end, and by no alarm
    slow: bool = False


class SpikeWatch:
    """Follows a run's scalars step by step and decides which spike is a fault."""

    def __init__(self) -> None:
        self.loss = Series("loss", log=False, material=0.05, floor=0.01)
        self.grad_norm = Series("grad_norm", log=True, material=math.log(2.0), floor=0.1)
        self.update_norm = Series("update_norm", log=True, material=math.log(2.0), floor=0.1)
        self.event: Event | None = None
        self.past: list[Event] = []
        self.losses: dict[int, float] = {}
        #: the step and the loss from which each loss has been above the one before, and how many steps
        self._rise: tuple[int, float, int] = (0, math.inf, 0)
        self._last = math.inf
        self._updates: dict[int, float] = {}

    def observe(self, scalars: StepScalars) -> Event | None:
        """Take a step's scalars; return an event when it is decided ("fault" or "benign")."""
        accept = self.event is None
        z_loss = self.loss.observe(scalars.step, scalars.loss, accept=accept)
        z_norm = self.grad_norm.observe(scalars.step, scalars.grad_norm, accept=accept)
        self.update_norm.observe(scalars.step, scalars.update_norm, accept=accept)
        first, low, rises = self._rise
        self._rise = (first, low, rises + 1) if scalars.loss > self._last else (scalars.step, scalars.loss, 0)
        self._last = scalars.loss
        early = self._early(scalars)
        self.losses[scalars.step] = scalars.loss
        self._updates[scalars.step] = scalars.update_norm or 0.0
        if self.event is None:
            if early is not None:
                self.event = early
            elif max(z_loss or 0.0, z_norm or 0.0) > ALARM:
                self.event = self._opened(scalars, max(z_loss or 0.0, z_norm or 0.0))
            return None
        return self._followed(scalars, z_loss)

    def _early(self, scalars: StepScalars) -> Event | None:
        """Return the event of a loss that multiplies within the first steps, where no baseline can be had.

        The state that was loaded gave the losses before it: what comes after an update is held against those. The update
        before it leads, where it is the longest so far; of a loss that is on its way already, the one that began it.
        """
        before = [x for x in self.losses.values() if math.isfinite(x)]
        first, low, rises = self._rise
        if len(self.losses) >= BASELINE:  # a rise from one of the first losses on made its own baseline high
            away = len(self.losses) - rises < BASELINE and rises >= RUN and scalars.loss > RUN_RISE * low > 0.0
            return self._early_event(scalars, first, "update_norm") if away else None
        if not before or not scalars.loss > EARLY * (1.0 + 4.0 / len(before)) * _usual(before) > 0.0:
            return None
        if rises > 1:
            return self._early_event(scalars, first, "update_norm")
        last = max(self.losses)
        moved = self._updates.get(last, 0.0) > 0.0 and self._updates[last] >= max(self._updates.values())
        return self._early_event(scalars, last if moved else scalars.step, "update_norm" if moved else "loss")

    def _early_event(self, scalars: StepScalars, lead_step: int, lead: str) -> Event:
        """Return an event that is held against the losses up to its lead."""
        before = [x for s, x in self.losses.items() if s <= lead_step and math.isfinite(x)]
        return Event(
            lead_step=lead_step,
            lead=lead,
            alarm_step=scalars.step,
            severity=2 * ALARM,
            peak_loss=scalars.loss,
            peak_step=scalars.step,
            baseline_loss=_usual(before),
            losses=[scalars.loss],
            early=True,
        )

    def forget(self, before: int) -> None:
        """Forget the values of the steps before one, for a run without an end; the baselines stay as they are.

        A loss as high as one that is forgotten then counts as never seen.
        """
        series = (self.loss.scores, self.grad_norm.scores, self.update_norm.scores)
        for values in (self.losses, self._updates, *series):
            for step in [step for step in values if step < before]:
                del values[step]

    def finish(self) -> Event | None:
        """Decide a pending event when no more steps come: a fault where the loss was still away from its baseline."""
        event = self.event
        if event is None:
            return self._slow() or self._rebound()
        above = [*event.after] or [event.peak_loss > event.baseline_loss * 1.5]
        return self._closed("fault" if above[-1] and event.severity > ALARM else "benign")

    def _slow(self) -> Event | None:
        """Return the event of a loss that crept up over the whole replay, widening its own baseline as it went."""
        steps = [s for s, x in sorted(self.losses.items()) if math.isfinite(x)]
        losses = [self.losses[s] for s in steps]
        if len(steps) < SLOW_STEPS:
            return None
        third = len(steps) // 3
        begins, ends = median(losses[:third]), median(losses[-third:])
        noise = 1.4826 * median(abs(b - a) for a, b in pairwise(losses)) / math.sqrt(2.0)
        if not (begins > 0.0 and ends > SLOW_RISE * begins and ends - begins > SLOW_NOISE * noise):
            return None
        middles = [median(losses[max(0, i - 2) : i + 3]) for i in range(len(losses))]
        last_low = max(i for i, x in enumerate(middles) if x <= begins + 0.1 * (ends - begins))
        if min(middles[-third:]) <= begins + 0.5 * (ends - begins):
            return None
        peak = max(steps, key=lambda s: self.losses[s])
        event = Event(
            lead_step=steps[min(last_low + 1, len(steps) - 1)],
            lead="loss",
            alarm_step=steps[min(last_low + 1, len(steps) - 1)],
            severity=(ends - begins) / max(noise, 1e-12),
            peak_loss=self.losses[peak],
            peak_step=peak,
            baseline_loss=begins,
            verdict="fault",
            kind="divergence",
            losses=losses[last_low + 1 :] or losses[-1:],
            slow=True,
        )
        self.past.append(event)
        return event

    def _rebound(self) -> Event | None:
        """Return the event of a loss that had fallen, rose again beyond where it began, and stayed there.

        While it falls its own past is no baseline: what it is held against is its lowest level. A loss that comes back
        to where it began is none: batches that were repeated after a resume, and then came to an end, look so.
        """
        steps = [s for s, x in sorted(self.losses.items()) if math.isfinite(x)]
        losses = [self.losses[s] for s in steps]
        if len(steps) < REBOUND_STEPS:
            return None
        smooth = [median(losses[max(0, i - 1) : i + 2]) for i in range(len(losses))]
        low = min(range(len(smooth)), key=lambda i: smooth[i])
        tail = losses[max(low + 1, len(losses) - 5) :]
        noise = 1.4826 * median(abs(b - a) for a, b in pairwise(losses)) / math.sqrt(2.0)
        if len(tail) < 5 or smooth[low] <= 0.0:
            return None
        far = min(tail) > AWAY * smooth[low] and median(tail) - smooth[low] > SLOW_NOISE * noise
        if not far or median(tail) < REBOUND * median(losses[:3]):
            return None
        lead = next((i for i in range(low, len(losses)) if losses[i] > 1.5 * smooth[low]), low)
        peak = max(range(low, len(losses)), key=lambda i: losses[i])
        event = Event(
            lead_step=steps[lead],
            lead="loss",
            alarm_step=steps[lead],
            severity=(median(tail) - smooth[low]) / max(noise, 1e-12),
            peak_loss=losses[peak],
            peak_step=steps[peak],
            baseline_loss=smooth[low],
            verdict="fault",
            kind="divergence",
            losses=losses[lead:],
            slow=True,
        )
        self.past.append(event)
        return event

    def _has_seen_such(self, event: Event) -> bool:
        """Whether the loss has been as high before, behind its first low, and came back: a loss with a heavy tail.

        Peaks alone are compared so: one that stays up is none, where there are steps enough behind it to tell.
        """
        before = [x for s, x in sorted(self.losses.items()) if s < event.lead_step and math.isfinite(x)]
        low = next((i for i, x in enumerate(before) if x <= event.baseline_loss), len(before))
        is_peak = len(event.after) <= 3 or median(event.losses) < 0.5 * event.peak_loss
        return is_peak and event.peak_loss <= LIKE * max(before[low:], default=0.0)

    def _is_noise(self, event: Event) -> bool:
        """Whether what was seen without a baseline is what this loss does from step to step, elsewhere."""
        finite = [x for x in event.losses if math.isfinite(x)]
        elsewhere = range(
            event.lead_step + len(event.losses), 1 << 63
        )  # a loss that leaps about has its own noise there
        noise = log_noise(x for s, x in sorted(self.losses.items()) if s in elsewhere and math.isfinite(x))
        before = [x for s, x in self.losses.items() if s < event.lead_step and math.isfinite(x) and x > 0.0]
        if noise is None and len(before) > 1 and math.log(max(before) / min(before)) > HEAVY_RISE * HEAVY:
            # it leapt about before it rose: as much afterwards is the same noise, but for leaps that grow
            grows = median(event.losses[len(event.losses) // 2 :]) > LIKE * max(before)
            noise = None if grows else log_noise(finite)
        if not event.early or noise is None or noise < HEAVY or not finite or event.baseline_loss <= 0.0:
            return False
        return math.log(max(median(finite), 1e-300) / event.baseline_loss) < HEAVY_RISE * noise

    def _opened(self, scalars: StepScalars, severity: float) -> Event:
        lead_step, lead = self._lead(scalars.step)
        return Event(
            lead_step=lead_step,
            lead=lead,
            alarm_step=scalars.step,
            severity=severity,
            peak_loss=scalars.loss,
            peak_step=scalars.step,
            baseline_loss=self.loss.baseline or scalars.loss,
            losses=[scalars.loss],
        )

    def _lead(self, alarm: int) -> tuple[int, str]:
        """Return the first step of the chain of leading signs that ends in the alarm, and its series."""
        signs = sorted(
            (step, order, series.name)
            for order, series in enumerate((self.loss, self.grad_norm, self.update_norm))
            for step, z in series.scores.items()
            if z > LEAD and step <= alarm
        )
        chain = [signs[-1]] if signs else [(alarm, 0, "loss")]
        for sign in reversed(signs[:-1]):
            if chain[-1][0] - sign[0] > GAP:
                break
            chain.append(sign)
        return chain[-1][0], chain[-1][2]

    def _followed(self, scalars: StepScalars, z_loss: float | None) -> Event | None:
        event = self.event
        assert event is not None
        above = scalars.loss > AWAY * event.baseline_loss if event.early else (z_loss or 0.0) > LEAD
        event.after.append(above)
        event.losses.append(scalars.loss)
        if scalars.loss > event.peak_loss:
            event.peak_loss, event.peak_step = scalars.loss, scalars.step
        event.severity = max(event.severity, z_loss or 0.0)
        if not above and not any(event.after[-3:]):
            recovered = len(event.after) <= 3
            return self._closed("benign" if recovered else "fault") if len(event.after) >= 2 else None
        if len(event.after) >= PATIENCE:
            return self._closed("fault" if sum(event.after) >= PATIENCE // 2 else "benign")
        return None

    def _closed(self, verdict: str) -> Event:
        event = self.event
        assert event is not None
        if verdict == "fault" and (self._has_seen_such(event) or self._is_noise(event)):
            verdict = "benign"
        event.verdict = verdict
        tail = event.losses[-3:]
        rising = len(event.losses) > 4 and min(tail) > 1.2 * event.losses[0] and event.losses[-1] >= max(tail)
        event.kind = "divergence" if rising and event.losses[0] > event.baseline_loss else "loss-spike"
        self.past.append(event)
        self.event = None
        return event
