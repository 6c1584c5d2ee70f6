"""Every tensor of a run, its statistics merged over all steps, read from the trace in one pass.

How it works. Rows come in tables of some ten thousand, and leave three arrays behind them, a line a tensor: extremes;
counts by binary exponent; and counts by depth, the binades below that row's own amax, which tell what a scale that
follows each step's amax would leave (`formats.shared_scale`). Adding up is exact and in any order. Memory is that of one
table and of the lines, so it does not grow with the steps.

Gradients of outputs carry the loss scale of their step in the trace; here it is divided out. A scale that is no power of
two moves their histogram by the nearest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nanhunt.formats.catalogue import FORMATS
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.formats.number_format import NumberFormat
from nanhunt.formats.shared_scale import CLASS_TOPS, DEPTHS, Lost, depth_limits
from nanhunt.trace.columns import codes, floats, integers, lengths_of, lines_of, mask
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import NoteKind

__all__ = ["ROLES", "MergedTensor", "merged_tensors"]

ROLES = ("output", "grad_output", "weight", "grad", "exp_avg", "exp_avg_sq", "update")

_COLUMNS = (
    "step", "seq", "role", "module", "name", "dtype", "numel", "posinf", "neginf", "amax", "amin", "l2", "exp_lo", "exp_hist",
)  # fmt: skip
#: Exponents beyond these are rounded to them where energy is concerned: 4^500 a million times over is still a float.
_FAR = 500
_FOURS = np.ldexp(1.0, 2 * np.arange(-_FAR, _FAR + 1))

_FORMAT_OF = {alias: fmt.name for fmt in FORMATS for alias in fmt.aliases}

_Key = tuple[str, str, str]
_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedTensor:
    """What the trace says of one tensor over all its steps."""

    module: str
    role: str
    name: str
    dtypes: tuple[str, ...]
    amax: float
    #: smallest non-zero magnitude
    amin: float
    #: sqrt(mean of squares) over all elements of all steps; None where the trace does not tell
    rms: float | None
    exponents: ExponentHistogram | None
    #: the `seq` of its first row with an infinity, None without one: what overflowed already is not in `amax`
    first_infinite: int | None
    #: counts and energy by class of the row's amax and by depth below it, (classes, DEPTHS)
    depths: _Ints
    energies: _Floats
    #: by who shares a scale ("row", "block", "32", "16") and format; empty where no step was looked at for that
    shared: Mapping[tuple[str, str], Lost]
    #: whether those stand for a part of the elements
    sampled: bool = False
    #: on how many steps of the trace rows and blocks were looked at, and how many it has: all else is of all steps
    looked: tuple[int, int] = (0, 0)

    @property
    def formats(self) -> tuple[str, ...]:
        """The names of the formats that the run held it in."""
        return tuple(_FORMAT_OF[dtype] for dtype in self.dtypes if dtype in _FORMAT_OF)

    def under_own_scale(self, fmt: NumberFormat) -> Lost | None:
        """Return what `fmt` loses where each step's tensor has one scale, by its own amax; None without histograms."""
        if self.exponents is None:
            return None
        lost = Lost()
        for klass in range(len(CLASS_TOPS)):
            below, flushing = depth_limits(fmt, klass)
            counts, energies = self.depths[klass], self.energies[klass]
            lost += Lost(
                of=int(counts.sum()),
                flushed=int(counts[flushing:].sum()),
                subnormal=int(counts[below:flushing].sum()),
                energy=float(energies.sum()),
                flushed_energy=float(energies[flushing:].sum()),
            )
        return lost


def merged_tensors(trace: Trace) -> list[MergedTensor]:
    """Return all tensors of the replay that have a finite element, in the order of their first row.

    `amax` is 0.0 where all of them are zero, in all steps.
    """
    loss_scales = {s: v for s, v in trace.scalars("loss_scale").items() if 0.0 < v < math.inf}
    lines = _Lines()
    for table in trace.tables(_COLUMNS, roles=ROLES, passes=["replay"]):
        lines.add(table, loss_scales)
    return list(lines.tensors(*_shared(trace)))


class _Lines:
    """The arrays, a line a tensor; they grow as tensors and exponents are met."""

    def __init__(self) -> None:
        self._of: dict[_Key, int] = {}
        self._dtypes: list[dict[str, None]] = []
        self._amax, self._amin = np.zeros(0), np.zeros(0)
        self._numel, self._squares = np.zeros(0), np.zeros(0)
        self._infinite = np.zeros(0)
        self.steps: set[int] = set()
        #: exponent of the first column of `_counts`
        self._low = 0
        self._counts = np.zeros((0, 0), np.int64)
        self._depths = np.zeros((0, len(CLASS_TOPS) * DEPTHS), np.int64)
        self._energies = np.zeros((0, len(CLASS_TOPS) * DEPTHS))

    def add(self, table: Any, loss_scales: Mapping[int, float]) -> None:
        """Merge a table's rows."""
        amax = floats(table.column("amax"))
        if not (amax >= 0.0).all():  # NaN and null alike are left out
            table, amax = table.filter(mask(amax >= 0.0)), amax[amax >= 0.0]
        if table.num_rows == 0:
            return
        self.steps.update(np.unique(integers(table.column("step"))).tolist())
        line = self._lines_of(table)
        factor = _loss_scale(table, loss_scales)
        # a loss scale below 1 takes the largest numbers beyond float64
        with np.errstate(over="ignore"):
            unscaled = np.minimum(amax / factor, np.finfo(np.float64).max)
        np.maximum.at(self._amax, line, unscaled)
        amin = floats(table.column("amin")) / factor
        np.minimum.at(self._amin, line, np.where(amin > 0.0, amin, np.inf))
        infinite = (floats(table.column("posinf")) > 0.0) | (floats(table.column("neginf")) > 0.0)
        np.minimum.at(self._infinite, line, np.where(infinite, floats(table.column("seq")), np.inf))
        l2 = floats(table.column("l2")) / factor
        known = np.isfinite(l2)
        self._squares += np.bincount(line[known], (l2 * l2)[known], len(self._of))
        self._numel += np.bincount(line[known], floats(table.column("numel"))[known], len(self._of))
        self._add_histograms(table, line, amax, np.rint(np.log2(factor)).astype(np.int64))

    def _add_histograms(self, table: Any, line: _Ints, amax: _Floats, moved: _Ints) -> None:
        """Merge the counts by exponent and by depth; `moved` is the loss scale's exponent."""
        lengths, exponent, counts = _bins(table)
        if counts.size == 0:
            return
        significand, top = np.frexp(amax)
        depth = np.clip(np.repeat(top - 1, lengths) - exponent, 0, DEPTHS - 1)
        klass = np.searchsorted(np.array(CLASS_TOPS), 2.0 * significand)
        at = np.repeat((line * len(CLASS_TOPS) + klass) * DEPTHS, lengths) + depth
        if moved.any():
            exponent -= np.repeat(moved, lengths)
        energy = counts * _FOURS[np.clip(exponent, -_FAR, _FAR) + _FAR]
        # float64 counts to 2^53 exactly
        self._depths += np.bincount(at, counts, self._depths.size).astype(np.int64).reshape(self._depths.shape)
        self._energies += np.bincount(at, energy, self._energies.size).reshape(self._energies.shape)
        self._reach(int(exponent.min()), int(exponent.max()))
        at = np.repeat(line * self._counts.shape[1] - self._low, lengths) + exponent
        self._counts += np.bincount(at, counts, self._counts.size).astype(np.int64).reshape(self._counts.shape)

    def _reach(self, low: int, high: int) -> None:
        """Make room for exponents from `low` to `high`."""
        width = self._counts.shape[1]
        if not width:
            self._low, width = low, 0
        before, after = max(self._low - low, 0), max(high + 1 - self._low - width, 0)
        self._counts, self._low = np.pad(self._counts, ((0, 0), (before, after))), self._low - before

    def _lines_of(self, table: Any) -> _Ints:
        """Return each row's line, and make room for new ones."""
        lines, dtypes = lines_of(table, self._of)
        for line, dtype in dtypes:
            if line == len(self._dtypes):
                self._dtypes.append({})
            self._dtypes[line][dtype] = None
        self._grow(len(self._of) - self._amax.size)
        return lines

    def _grow(self, by: int) -> None:
        """Add lines."""
        self._amax = np.pad(self._amax, (0, by))
        self._amin = np.pad(self._amin, (0, by), constant_values=np.inf)
        self._infinite = np.pad(self._infinite, (0, by), constant_values=np.inf)
        self._numel, self._squares = np.pad(self._numel, (0, by)), np.pad(self._squares, (0, by))
        more = ((0, by), (0, 0))
        self._counts, self._depths = np.pad(self._counts, more), np.pad(self._depths, more)
        self._energies = np.pad(self._energies, more)

    def tensors(
        self, shared: Mapping[_Key, Mapping[tuple[str, str], Lost]], sampled: set[_Key], looked: set[int]
    ) -> Iterator[MergedTensor]:
        """Yield what the lines hold."""
        shape = (len(CLASS_TOPS), DEPTHS)
        steps = len(looked), len(self.steps | looked)
        for key, at in self._of.items():
            histogram = ExponentHistogram(self._low, tuple(self._counts[at].tolist())).trimmed()
            yield MergedTensor(
                module=key[0], role=key[1], name=key[2], dtypes=tuple(self._dtypes[at]),
                amax=float(self._amax[at]), amin=float(self._amin[at]) if np.isfinite(self._amin[at]) else 0.0,
                rms=math.sqrt(self._squares[at] / self._numel[at]) if self._numel[at] else None,
                exponents=histogram if histogram.counts else None,
                first_infinite=int(self._infinite[at]) if np.isfinite(self._infinite[at]) else None,
                depths=self._depths[at].reshape(shape), energies=self._energies[at].reshape(shape),
                shared=shared.get(key, {}), sampled=key in sampled, looked=steps,
            )  # fmt: skip


def _loss_scale(table: Any, loss_scales: Mapping[int, float]) -> _Floats:
    """Return what each row's numbers are too large by: the loss scale of its step, 1 for all but gradients of outputs."""
    roles, role = codes(table.column("role"))
    scaled = np.array([word == "grad_output" for word in roles])[role]
    if not loss_scales or not scaled.any():
        return np.ones(table.num_rows)
    steps, inverse = np.unique(integers(table.column("step")), return_inverse=True)
    return np.where(scaled, np.array([loss_scales.get(int(s), 1.0) for s in steps])[inverse], 1.0)


def _bins(table: Any) -> tuple[_Ints, _Ints, _Floats]:
    """Return how many bins each row's histogram has, and exponent and count of every bin, row after row."""
    lists = table.column("exp_hist").combine_chunks()
    low, lengths = integers(table.column("exp_lo")), lengths_of(lists)
    counts = integers(lists.flatten()).astype(np.float64)
    exponent = np.arange(counts.size) + np.repeat(low - (np.cumsum(lengths) - lengths), lengths)
    return lengths, exponent, counts


def _shared(trace: Trace) -> tuple[dict[_Key, dict[tuple[str, str], Lost]], set[_Key], set[int]]:
    """Return what row and block scales leave of each tensor, added up over the notes, who was seen in part, and the steps."""
    found: dict[_Key, dict[tuple[str, str], Lost]] = {}
    sampled: set[_Key] = set()
    steps: set[int] = set()
    for body in trace.notes_of(NoteKind.BLOCKS):
        looks = [tuple(look) for look in body["looks"]]
        steps.add(int(body["step"]))
        for role, module, name, numel, seen, of, energy, *lost in body["tensors"]:
            of_tensor = found.setdefault((module, role, name), {})
            if seen < numel:
                sampled.add((module, role, name))
            for look, flushed, subnormal, flushed_energy in zip(looks, lost[::3], lost[1::3], lost[2::3], strict=True):
                part = Lost(of=of, flushed=flushed, subnormal=subnormal, energy=energy, flushed_energy=flushed_energy)
                of_tensor[look] = of_tensor.get(look, Lost()) + part
    return found, sampled, steps
