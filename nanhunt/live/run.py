"""LiveRun: what a run's rows come to so far. It grows with the width of a terminal, not with the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

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
Ints = npt.NDArray[np.int64]
_ONSETS = {NoteKind.ONSET.value, NoteKind.EXCEPTION.value}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """A table's columns as arrays, taken apart once for all of its steps."""

    table: Any
    steps: Ints
    #: words and each row's place among them
    roles: tuple[list[str], Ints]
    modules: tuple[list[str], Ints]
    names: tuple[list[str], Ints]
    is_tensor: npt.NDArray[np.bool_]
    is_update: npt.NDArray[np.bool_]
    is_bad: npt.NDArray[np.bool_]
    l2: npt.NDArray[np.float64]
    #: rows of the root's scalars that were measured, ascending, and their values
    at: Ints
    values: list[float]

    @classmethod
    def of(cls, table: Any) -> _Rows:
        """Take a table apart."""
        roles, role = codes(table.column("role"))
        modules, module = codes(table.column("module"))
        is_scalar = np.array([word == "scalar" for word in roles])[role]
        outside = integers(table.column("nan")) + integers(table.column("posinf"))
        # -inf in an output is a mask's, as a rule
        outside += integers(table.column("neginf")) * (np.array(roles) != "output")[role]
        of_root = is_scalar & np.array([not word for word in modules])[module]
        told = table.column("value").filter(mask(of_root)).to_pylist()
        found = zip(np.flatnonzero(of_root).tolist(), told, strict=True)
        measured = [(row, value) for row, value in found if value is not None]
        return cls(
            table=table,
            steps=integers(table.column("step")),
            roles=(roles, role),
            modules=(modules, module),
            names=codes(table.column("name")),
            is_tensor=~is_scalar,
            is_update=np.array([word == "update" for word in roles])[role],
            is_bad=(outside > 0) & ~is_scalar,
            l2=floats(table.column("l2")),
            at=np.array([row for row, _ in measured], np.int64),
            values=[value for _, value in measured],
        )

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield each step with its first row and the one behind its last."""
        starts = np.flatnonzero(np.diff(self.steps, prepend=-1 - self.steps[:1])).tolist()
        for start, end in zip(starts, [*starts[1:], self.steps.size], strict=True):
            yield int(self.steps[start]), start, end

    def scalars(self, start: int, end: int) -> dict[str, float]:
        """Return the root's scalars among some rows by name."""
        names, name = self.names
        first, last = np.searchsorted(self.at, (start, end)).tolist()
        return {names[name[self.at[i]]]: self.values[i] for i in range(first, last)}

    def first_bad(self, start: int, end: int) -> tuple[str, str, str] | None:
        """Return role, module and name of the first tensor among some rows that is not finite."""
        found = np.flatnonzero(self.is_bad[start:end])
        if not found.size:
            return None
        at = start + int(found[0])
        role, module, name = (words[of[at]] for words, of in (self.roles, self.modules, self.names))
        return role, module, name


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
    #: the step that `tight` is of
    recorded: int | None = None
    #: the step of the replay's own onset
    onset: int | None = None
    #: "end", why the run ended before it, or None
    ended: str | None = None
    #: what the running step has shown so far: of a large one the rows come in several batches
    _scalars: dict[str, float] = field(default_factory=dict)
    _squares: float | None = None
    #: what `tight` was, and tables of the same step that came since: most steps' are never asked for
    _tight: tuple[Tight, ...] = ()
    _unread: list[Any] = field(default_factory=list)
    _bad: tuple[str, str, str] | None = None

    def add(self, table: Any) -> None:
        """Take a table of rows, with at least `COLUMNS_READ`."""
        if not table.num_rows:
            return
        (passes, pass_), (phases, phase) = codes(table.column("pass")), codes(table.column("phase"))
        here = np.array([word == "replay" for word in passes])[pass_] & np.array([p != "load" for p in phases])[phase]
        rows = _Rows.of(table.select(list(COLUMNS_READ)).filter(mask(here)))
        for step, start, end in rows.spans():
            # a step that the replay went back to was shown already
            if self.last_step is None or step > self.last_step:
                self._step(step, rows, start, end)

    @property
    def tight(self) -> tuple[Tight, ...]:
        """The tensors with the least room in the newest step that was recorded."""
        for table in self._unread:
            self._tight = tightest(table, self._tight)
        self._unread.clear()
        return self._tight

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

    def _step(self, step: int, rows: _Rows, start: int, end: int) -> None:
        """Take rows of one step; its loss comes last of all and closes it."""
        self._scalars |= rows.scalars(start, end)
        if rows.is_tensor[start:end].any():
            self._look(step, rows, start, end)
        if "loss" in self._scalars:
            self._close(step)

    def _look(self, step: int, rows: _Rows, start: int, end: int) -> None:
        """Take the tensors of a recorded step."""
        if self.recorded != step:
            self._tight = ()
            self._unread.clear()
        self._unread.append(rows.table.slice(start, end - start))
        self.recorded = step
        self._bad = self._bad or rows.first_bad(start, end)
        updates = rows.is_update[start:end]
        if updates.any():
            norms = rows.l2[start:end][updates]
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
