"""What a page may draw of a trace: every tensor's history by step, Adam's health, the batch. Read when it is asked for.

How it works. One pass over the rows fills arrays of tensors by columns; a column is a step, or of a long run several
steps, merged as micro-batches are: largest `amax`, smallest `amin`, sums of counts. So memory does not grow with the
steps. Gradients of outputs are as the run had them, with the loss scale on them: that is what their format has to hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.diagnosis.evidence import Evidence
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.trace.columns import floats, integers, lengths_of, lines_of
from nanhunt.trace.schema import NoteKind

__all__ = ["HEALTH", "ROLES", "Histories", "Recording", "TensorHistory", "fold"]

ROLES = ("output", "grad_output", "weight", "grad", "exp_avg_sq", "update")
#: Per-parameter scalars of `probes.optimizer` that a page shows.
HEALTH = ("rms_t", "v_stale", "kappa_eps", "v_zero", "v_stuck", "frozen", "update_lr")

_COLUMNS = (
    "step", "role", "module", "name", "dtype", "numel", "nan", "posinf", "neginf", "zero", "amax", "amin", "l2", "exp_lo",
    "exp_hist",
)  # fmt: skip
#: Columns of a page: more are narrower than two pixels of a laptop's screen.
_MOST = 240
#: Steps before and behind the onset that are never merged.
_BEFORE, _BEHIND = 100, 40
#: Exponents that are told apart: beyond float32's both ends nothing but float64 goes, and is counted at the end.
_LOWEST, _HIGHEST = -160, 136

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorHistory:
    """One tensor over the columns; NaN where it was not observed.

    `amax` and `amin` (of the non-zero ones) are 0.0 of a tensor of zeros. `bad` counts NaN and Inf, `infinite` the
    latter alone. `before` counts exponents in the columns before the onset's, `at` in the onset's; without an onset all
    is `before`.
    """

    module: str
    role: str
    name: str
    dtype: str
    numel: int
    amax: _Floats
    amin: _Floats
    rms: _Floats
    bad: _Ints
    infinite: _Ints
    #: share of elements that are zero
    zero: _Floats
    before: ExponentHistogram
    at: ExponentHistogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """All tensors, in the order of their first rows, over `columns`: (first step, last step) each."""

    columns: tuple[tuple[int, int], ...]
    tensors: tuple[TensorHistory, ...]


class Recording:
    """Views of a trace for a page that draws it; each is read on first use. None changes the trace."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence

    @cached_property
    def histories(self) -> Histories:
        """Every tensor of the replay's passes, folded to some 240 columns."""
        trace, onset = self._evidence.trace, self._evidence.onset
        columns = fold(trace.steps, None if onset is None else onset.step)
        lines = _Lines(columns, None if onset is None else onset.step)
        for table in trace.tables(_COLUMNS, roles=ROLES, passes=["replay"]):
            lines.add(table)
        return Histories(columns=columns, tensors=tuple(lines.histories()))

    def health_step(self, last: int | None) -> int | None:
        """Return the last step, `last` or before, of which Adam's health was taken; None where there is none."""
        steps = (self._evidence.health_step(key, last) for key in HEALTH)
        return max((step for step in steps if step is not None), default=None)

    def health_at(self, key: str, step: int) -> dict[str, float]:
        """Return a scalar of `HEALTH` in one step by parameter; {} where it was not taken."""
        return self._evidence.health_at(key, step)

    def health_of(self, key: str, parameter: str) -> dict[int, float]:
        """Return a scalar of `HEALTH` of one parameter by step."""
        return self._evidence.health_of(key, parameter)

    @property
    def batch(self) -> list[dict[str, Any]]:
        """The fields of the onset's micro-batch (`facts.batch_facts`)."""
        return self._evidence.batch_fields

    @property
    def optimizer(self) -> dict[str, Any]:
        """The optimizer's class and groups (`facts.optimizer_facts`)."""
        return self._evidence.optimizer

    @property
    def birth_code(self) -> str:
        """The source line of the root birth; '' where there is none."""
        return self._evidence.birth.code if self._evidence.birth else ""

    @property
    def sample_losses(self) -> list[float]:
        """The loss of each sample of the bad step alone; [] where it was not taken."""
        body = self._evidence.note(NoteKind.SAMPLE_LOSSES)
        return [float(loss) for loss in body.get("losses", [])] if body else []


def fold(steps: tuple[int, ...], onset: int | None) -> tuple[tuple[int, int], ...]:
    """Return (first, last) step of each column, 240 or so at most; the steps around the onset have one each."""
    if len(steps) <= _MOST:
        return tuple((step, step) for step in steps)
    centre = onset if onset in steps else steps[-1]
    at = steps.index(centre)
    low, high = max(at - _BEFORE, 0), min(at + _BEHIND + 1, len(steps))
    width = -(-(len(steps) - (high - low)) // (_MOST - (high - low)))
    chunks = [*_chunks(steps[:low], width), *_chunks(steps[low:high], 1), *_chunks(steps[high:], width)]
    return tuple((chunk[0], chunk[-1]) for chunk in chunks)


def _chunks(steps: tuple[int, ...], width: int) -> Iterator[tuple[int, ...]]:
    return (steps[i : i + width] for i in range(0, len(steps), width))


class _Lines:
    """Arrays of a line a tensor and a column a column of the page."""

    def __init__(self, columns: tuple[tuple[int, int], ...], onset: int | None) -> None:
        self._firsts = np.array([first for first, _ in columns], np.int64)
        #: the onset's column; behind the last one where there is none
        self._onset = len(columns) if onset is None else self._column(np.array([onset]))[0]
        self._of: dict[tuple[str, str, str], int] = {}
        self._dtypes: list[str] = []
        self._grids = {
            name: np.zeros((0, len(columns))) for name in ("numel", "nan", "inf", "zero", "squares", "finite")
        }
        self._amax = np.zeros((0, len(columns)))
        self._amin = np.zeros((0, len(columns)))
        self._numel = np.zeros(0, np.int64)
        self._counts = np.zeros((0, 2, _HIGHEST - _LOWEST + 1))

    def _column(self, steps: _Ints) -> _Ints:
        return np.maximum(np.searchsorted(self._firsts, steps, side="right") - 1, 0)

    def add(self, table: Any) -> None:
        """Merge a table's rows."""
        if not table.num_rows or not self._firsts.size:
            return
        line, column = self._lines_of(table), self._column(integers(table.column("step")))
        cell = line * self._firsts.size + column
        number = {
            name: np.nan_to_num(floats(table.column(name))) for name in ("numel", "nan", "posinf", "neginf", "zero")
        }
        infinite = number["posinf"] + number["neginf"]
        finite = number["numel"] - number["nan"] - infinite
        l2 = np.nan_to_num(floats(table.column("l2")), posinf=0.0)
        parts = {"numel": number["numel"], "nan": number["nan"], "inf": infinite, "zero": number["zero"],
                 "squares": np.minimum(l2, 1e150) ** 2, "finite": finite}  # fmt: skip
        for name, values in parts.items():
            np.add.at(self._grids[name].reshape(-1), cell, values)
        np.maximum.at(self._numel, line, number["numel"].astype(np.int64))
        amax, amin = floats(table.column("amax")), floats(table.column("amin"))
        np.maximum.at(self._amax.reshape(-1), cell, np.where(amax >= 0.0, amax, -1.0))
        np.minimum.at(self._amin.reshape(-1), cell, np.where(amin > 0.0, amin, np.inf))
        self._add_histograms(table, line, column)

    def _add_histograms(self, table: Any, line: _Ints, column: _Ints) -> None:
        lists = table.column("exp_hist").combine_chunks()
        low, lengths = integers(table.column("exp_lo")), lengths_of(lists)
        counts = integers(lists.flatten())
        if not counts.size:
            return
        exponent = np.arange(counts.size) + np.repeat(low - (np.cumsum(lengths) - lengths), lengths)
        when = (column >= self._onset).astype(np.int64)
        kept = np.repeat(column <= self._onset, lengths)
        at = np.clip(exponent, _LOWEST, _HIGHEST) - _LOWEST
        np.add.at(
            self._counts, (np.repeat(line, lengths)[kept], np.repeat(when, lengths)[kept], at[kept]), counts[kept]
        )

    def _lines_of(self, table: Any) -> _Ints:
        """Return each row's line, and make room for new ones."""
        lines, dtypes = lines_of(table, self._of)
        for line, dtype in dtypes:
            if line == len(self._dtypes):
                self._dtypes.append(dtype)
        self._grow(len(self._of) - self._numel.size)
        return lines

    def _grow(self, by: int) -> None:
        more = ((0, by), (0, 0))
        self._grids = {name: np.pad(grid, more) for name, grid in self._grids.items()}
        self._amax = np.pad(self._amax, more, constant_values=-1.0)
        self._amin = np.pad(self._amin, more, constant_values=np.inf)
        self._numel = np.pad(self._numel, (0, by))
        self._counts = np.pad(self._counts, ((0, by), (0, 0), (0, 0)))

    def histories(self) -> Iterator[TensorHistory]:
        """Yield what the lines hold."""
        seen = self._grids["numel"] > 0
        whole = np.maximum(self._grids["numel"], 1.0)
        rms = np.sqrt(self._grids["squares"] / np.maximum(self._grids["finite"], 1.0))
        for (module, role, name), at in self._of.items():
            yield TensorHistory(
                module=module, role=role, name=name, dtype=self._dtypes[at], numel=int(self._numel[at]),
                amax=np.where(self._amax[at] >= 0.0, self._amax[at], np.nan),
                amin=np.where(seen[at], np.where(np.isfinite(self._amin[at]), self._amin[at], 0.0), np.nan),
                rms=np.where(seen[at] & (self._grids["finite"][at] > 0), rms[at], np.nan),
                bad=(self._grids["nan"][at] + self._grids["inf"][at]).astype(np.int64),
                infinite=self._grids["inf"][at].astype(np.int64),
                zero=np.where(seen[at], self._grids["zero"][at] / whole[at], np.nan),
                before=_histogram(self._counts[at, 0]), at=_histogram(self._counts[at, 1]),
            )  # fmt: skip


def _histogram(counts: _Floats) -> ExponentHistogram:
    filled = np.flatnonzero(counts)
    if not filled.size:
        return ExponentHistogram()
    first, last = int(filled[0]), int(filled[-1])
    return ExponentHistogram(_LOWEST + first, tuple(counts[first : last + 1].astype(np.int64).tolist()))
