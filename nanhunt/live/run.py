"""LiveRun: what a run's rows come to so far. It grows with the width of a terminal, not with the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanhunt.live.alarms import Alarms
from nanhunt.live.curve import Curve
from nanhunt.live.tightest import Tight, tightest
from nanhunt.trace.columns import codes, floats, integers, mask
from nanhunt.trace.onset import StepScalars
from nanhunt.trace.schema import Manifest, Note, NoteKind

__all__ = ["COLUMNS_READ", "LiveRun"]

#: All that is looked at.
COLUMNS_READ = (
    "step", "pass", "phase", "role", "module", "name", "dtype", "numel", "nan", "posinf", "neginf", "subnormal", "amax",
    "l2", "value",
)  # fmt: skip
_ONSETS = {NoteKind.ONSET.value, NoteKind.EXCEPTION.value}


@dataclass(slots=True)
class LiveRun:
    """A run as far as its rows were added, in the order of writing."""

    manifest: Manifest
    loss: Curve = field(default_factory=Curve)
    grad_norm: Curve = field(default_factory=Curve)
    alarms: Alarms = field(default_factory=Alarms)
    #: the latest scalars of the replay by name: lr, loss_scale …
    scalars: dict[str, float] = field(default_factory=dict)
    first_step: int | None = None
    last_step: int | None = None
    steps: int = 0
    skipped: int = 0
    last_skipped: int | None = None
    tight: tuple[Tight, ...] = ()
    #: the step that `tight` is of
    recorded: int | None = None
    #: the step of the replay's own onset
    onset: int | None = None
    #: "end", why the run ended before it, or None
    ended: str | None = None
    #: what the running step has shown so far: of a large one the rows come in several batches
    _scalars: dict[str, float] = field(default_factory=dict)
    _squares: float | None = None
    _bad: tuple[str, str, str] | None = None

    def add(self, table: Any) -> None:
        """Take a table of rows, with at least `COLUMNS_READ`."""
        if not table.num_rows:
            return
        (passes, pass_), (phases, phase) = codes(table.column("pass")), codes(table.column("phase"))
        here = np.array([word == "replay" for word in passes])[pass_] & np.array([p != "load" for p in phases])[phase]
        table = table.select(list(COLUMNS_READ)).filter(mask(here))
        steps = integers(table.column("step"))
        starts = np.flatnonzero(np.diff(steps, prepend=-1 - steps[:1])).tolist()
        for start, end in zip(starts, [*starts[1:], steps.size], strict=True):
            # a step that the replay went back to was shown already
            if self.last_step is None or steps[start] > self.last_step:
                self._step(int(steps[start]), table.slice(start, end - start))

    def note(self, notes: Iterable[Note]) -> None:
        """Take notes: the onset is the replay's own alarm."""
        for note in notes:
            step = note.body.get("step")
            if note.kind in _ONSETS and isinstance(step, int) and self.onset is None:
                self.onset = step
                self.alarms.raised(step, _fault(note.body), "fault")
            elif note.kind == NoteKind.MEANT.value and self.onset is not None:
                self.alarms.raised(self.onset, "the leap is meant: no fault", "note")
                self.onset = None

    def _step(self, step: int, table: Any) -> None:
        """Take rows of one step; its loss comes last of all and closes it."""
        roles, role = codes(table.column("role"))
        scalar = np.array([word == "scalar" for word in roles])[role]
        self._scalars |= _root_scalars(table.filter(mask(scalar)))
        tensors = table.filter(mask(~scalar))
        if tensors.num_rows:
            self._look(step, tensors)
        if "loss" in self._scalars:
            self._close(step)

    def _look(self, step: int, tensors: Any) -> None:
        """Take the tensors of a recorded step."""
        self.tight = tightest(tensors, self.tight if self.recorded == step else ())
        self.recorded = step
        self._bad = self._bad or _first_bad(tensors)
        roles, role = codes(tensors.column("role"))
        updates = np.array([word == "update" for word in roles])[role]
        if updates.any():
            norms = floats(tensors.column("l2"))[updates]
            self._squares = (self._squares or 0.0) + float(np.square(norms[np.isfinite(norms)]).sum())

    def _close(self, step: int) -> None:
        """Take what the step has shown as a whole."""
        scalars, bad, squares = self._scalars, self._bad, self._squares
        self._scalars, self._bad, self._squares = {}, None, None
        self.scalars = scalars
        self.first_step = step if self.first_step is None else self.first_step
        self.last_step, self.steps = step, self.steps + 1
        self.loss.add(step, scalars["loss"])
        if "grad_norm" in scalars:
            self.grad_norm.add(step, scalars["grad_norm"])
        if scalars.get("skipped"):
            self.skipped, self.last_skipped = self.skipped + 1, step
        self.alarms.look_at_finiteness(step, scalars, bad)
        self.alarms.look_at_scale(step, scalars.get("loss_scale"))
        if not scalars.get("skipped") and math.isfinite(scalars["loss"]):
            norms = {
                "grad_norm": scalars.get("grad_norm"),
                "update_norm": None if squares is None else math.sqrt(squares),
            }
            self.alarms.look_for_a_spike(StepScalars(step=step, loss=scalars["loss"], **norms))


def _fault(body: dict[str, Any]) -> str:
    """Return what an onset or an exception says of itself."""
    what = body.get("detail") or body.get("message") or body.get("kind") or body.get("type")
    where = " ".join(str(body[key]) for key in ("module", "op", "source") if body.get(key))
    return f"the replay found a fault: {what}" + (f" ({where})" if where else "")


def _root_scalars(table: Any) -> dict[str, float]:
    """Return the scalars of the root by name, those that were measured."""
    if not table.num_rows:
        return {}
    (modules, module), (names, name) = codes(table.column("module")), codes(table.column("name"))
    values = table.column("value").to_pylist()
    return {
        names[place]: value
        for place, of, value in zip(name.tolist(), module.tolist(), values, strict=True)
        if not modules[of] and value is not None
    }


def _first_bad(tensors: Any) -> tuple[str, str, str] | None:
    """Return role, module and name of the first tensor that is not finite; -inf in an output is a mask's, as a rule."""
    roles, role = codes(tensors.column("role"))
    outside = integers(tensors.column("nan")) + integers(tensors.column("posinf"))
    outside += integers(tensors.column("neginf")) * (np.array(roles) != "output")[role]
    if not outside.any():
        return None
    at = int(np.argmax(outside > 0))
    modules, module = codes(tensors.column("module"))
    names, name = codes(tensors.column("name"))
    return roles[role[at]], modules[module[at]], names[name[at]]
