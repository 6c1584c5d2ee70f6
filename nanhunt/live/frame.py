"""One frame of the live view: state, curves, the tensors with the least room, alarms; and the same as plain lines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.text import Text

from nanhunt.live.alarms import Alarm
from nanhunt.live.curve import Curve
from nanhunt.live.pace import Pace
from nanhunt.live.run import LiveRun
from nanhunt.live.tightest import Tight
from nanhunt.report.page import Page, column, middle
from nanhunt.report.sparkline import sparkline
from nanhunt.report.words import binades, counted, number, percent, place, printable

__all__ = ["Frame", "alarm_line", "plain_line"]

#: Binades of room below which a tensor is marked.
_NEAR = 2.0
#: Cells of a curve's label and of its numbers, and of a tensor's numbers.
_LABEL, _NUMBERS, _TENSOR = 11, 12, 49
#: Cells that a name keeps where a terminal is too narrow for the numbers.
_NARROWEST, _NAME = 40, 10
_STYLES = {"fault": "bold red", "alarm": "yellow", "note": "dim"}
_SIGNS = {"fault": "✗", "alarm": "!", "note": "·"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What a frame shows; `now` is by the clock that `pace` was told."""

    path: str
    run: LiveRun
    pace: Pace
    now: float
    width: int
    #: tensors shown
    tensors: int = 8

    def page(self) -> Page:
        """Return the frame's lines, none wider than `width`."""
        page = Page(max(self.width, _NARROWEST))
        self._state(page)
        self._curves(page)
        self._tensors(page)
        self._alarms(page)
        return page

    @property
    def silent(self) -> str:
        """Return what a silence of the writer may mean; '' where there is none."""
        quiet = self.pace.silence(self.now) if self.run.ended is None else None
        if quiet is None:
            return ""
        usual = self.pace.seconds_a_step
        steps = "" if usual is None else f", a step took {number(usual)} s"
        return f"nothing was written for {_clock(quiet)}{steps}: trials, a long step, or the writer is gone"

    def _state(self, page: Page) -> None:
        run = self.run
        state = self._standing()
        room = page.width - len(state) - 2
        name = Text(middle(printable(self.path), min(len(self.path), room)), "bold")
        page.row(name.append(f"  {state}", "bold red" if run.onset is not None else "green"), indent=0)
        if run.last_step is None:
            page.put(Text("no step is finished yet", "dim"))
            return
        asked = run.manifest.settings.get("steps")
        parts = [f"{run.steps} of {asked}" if isinstance(asked, int) else counted(run.steps, "step")]
        seconds = self.pace.seconds_a_step
        if seconds is not None and run.ended is None:
            parts.append(f"{number(1 / seconds)} steps/s" if seconds < 1 else f"{number(seconds)} s a step")
            if isinstance(asked, int) and asked > run.steps and run.onset is None:
                parts.append(f"{_clock((asked - run.steps) * seconds)} left")
        _field(page, "step", f"{run.last_step}", ", ".join(parts))
        if "lr" in run.scalars:
            _field(page, "lr", number(run.scalars["lr"]), "")
        if "loss_scale" in run.scalars:
            last = f", the last in step {run.last_skipped}" if run.skipped else ""
            skipped = f"{counted(run.skipped, 'step')} skipped{last}"
            _field(page, "loss scale", number(run.scalars["loss_scale"]), skipped)

    def _standing(self) -> str:
        """Return what the run does, as far as its file shows."""
        if self.run.ended is not None:
            return "finished" if self.run.ended == "end" else self.run.ended
        quiet = self.pace.silence(self.now)
        if quiet is not None:
            return f"silent for {_clock(quiet)}"
        return "fault found, being looked into" if self.run.onset is not None else "running"

    def _curves(self, page: Page) -> None:
        for label, curve in (("loss", self.run.loss), ("grad norm", self.run.grad_norm)):
            if curve.values:
                page.row(_curve_line(label, curve, self.run.onset, page.width))

    def _tensors(self, page: Page) -> None:
        if not self.run.tight:
            return
        page.heading("least room", f"binades that its largest may grow in its own format, in step {self.run.recorded}")
        shown = self.run.tight[: self.tensors]
        width = column((place(t.module, t.name) for t in shown), max(page.width - _TENSOR - 2, _NAME))
        head = f"{'':<{width}}  {'role':<11} {'format':<6} {'largest':>9} {'room':>8} {'subnormal':>9}"
        page.row(Text(head, "dim"))
        for tight in shown:
            page.row(_tensor_line(tight, width))

    def _alarms(self, page: Page) -> None:
        alarms, silent = self.run.alarms, self.silent
        if not alarms.count and not silent:
            return
        more = alarms.count - len(alarms.latest)
        page.heading("alarms", f"{more} earlier" if more else "")
        for alarm in alarms.latest:
            page.put(
                Text(f"{_SIGNS[alarm.level]} ", _STYLES[alarm.level]), Text(alarm_line(alarm), _STYLES[alarm.level])
            )
        if silent:
            page.put(Text("! ", "yellow"), Text(silent, "yellow"))


def plain_line(run: LiveRun) -> str:
    """Return the newest step in one line, for a log."""
    parts = [f"step {run.last_step}", f"loss {number(run.loss.last)}"]
    if "grad_norm" in run.scalars:
        parts.append(f"grad norm {number(run.scalars['grad_norm'])}")
    if "lr" in run.scalars:
        parts.append(f"lr {number(run.scalars['lr'])}")
    if "loss_scale" in run.scalars:
        parts.append(f"loss scale {number(run.scalars['loss_scale'])}, {run.skipped} skipped")
    if run.tight:
        tight = run.tight[0]
        parts.append(
            f"least room {binades(tight.margin)} ({place(tight.module, tight.name)} {tight.role}, {tight.format})"
        )
    return "  ".join(parts)


def alarm_line(alarm: Alarm) -> str:
    """Return an alarm in one line."""
    return f"step {alarm.step}: {alarm.text}"


def _field(page: Page, label: str, value: str, aside: str) -> None:
    page.row(Text(f"{label:<{_LABEL}}", "dim").append(f"{value:<{_NUMBERS}}").append(aside, "dim"))


def _curve_line(label: str, curve: Curve, onset: int | None, width: int) -> Text:
    """Return label, newest value and curve."""
    line = Text(f"{label:<{_LABEL}}", "dim").append(f"{number(curve.last):<{_NUMBERS}}")
    # an onset that is told before its own step is drawn as the next cell, which is where it comes
    for cell in sparkline(curve.steps, curve.values, onset=onset, width=width - _LABEL - _NUMBERS - 2):
        line.append(cell.char, "bold red" if cell.mark else "cyan")
    return line


def _tensor_line(tight: Tight, width: int) -> Text:
    """Return a tensor's place, role, format, largest magnitude, room and subnormal share."""
    line = Text(middle(place(tight.module, tight.name), width), "cyan")
    line.append(f"  {tight.role:<11} {tight.format[:6]:<6} ", "dim")
    room = "infinite" if tight.margin == -math.inf else f"{tight.margin:+.1f}"
    line.append(f"{number(tight.amax):>9} {room:>8}", "yellow" if tight.margin < _NEAR else "")
    return line.append(f" {percent(tight.subnormal) if tight.subnormal > 0.0 else '':>9}", "dim")


def _clock(seconds: float) -> str:
    """Return a duration as '45 s', '3:20' or '2:03:20'."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = f"{whole // 60 % 60:02}:{whole % 60:02}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes.lstrip("0")
