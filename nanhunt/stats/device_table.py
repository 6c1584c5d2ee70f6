"""DeviceTable: rows of statistics that wait on a CUDA device until one copy brings them all to the host.

A row is `device_code`'s: counts, sums and extremes of both passes and the bins of exponents, 1200 bytes. The table is
made once and used by every step; it grows by doubling where a step has more tensors than any before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats.sampling import EXACT, SPARSE, count_extremes
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.stats.triton_kernel import BINS, COUNTS, LOWEST, ROW, is_told_by_the_second, launch, launch_many

__all__ = ["DeviceTable"]

_FIRST_ROWS = 1024
#: What the smallest magnitude is subtracted from, so that zeros are the neutral element of both extremes.
_NONE = 0x7FFFFFFF
_INFINITY = 0x7F800000


class DeviceTable:
    """Statistics of one device's tensors, in the order in which they were added."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables = [self._zeros(_FIRST_ROWS)]
        #: rows of each table that are taken
        self._used = [0]
        #: of each tensor, its table, its row, its elements, and whether the exponents of a part of them are counted
        self._places: list[tuple[int, int, int, bool]] = []

    def add(self, tensor: Tensor) -> int:
        """Measure a tensor as it stands; return its number. Nothing waits for the device."""
        row = self._room(1)
        launch(tensor, self._tables[-1], row)
        self._places.append((len(self._tables) - 1, row, tensor.numel(), tensor.numel() > EXACT))
        return len(self._places) - 1

    def add_many(self, tensors: Sequence[Tensor], *, exact: bool = False) -> list[int]:
        """Measure tensors that nobody writes into meanwhile, by a launch for each dtype; return their numbers."""
        row, first = self._room(len(tensors)), len(self._places)
        launch_many(tensors, self._tables[-1], row, exact=exact)
        self._places += [
            (len(self._tables) - 1, row + i, t.numel(), not exact and t.numel() > EXACT) for i, t in enumerate(tensors)
        ]
        return list(range(first, len(self._places)))

    def amax(self, number: int) -> Tensor:
        """Return a tensor's largest finite magnitude so far, as a float64 scalar on the device."""
        table, row, *_ = self._places[number]
        first, _, second, _ = self._tables[table][row].view(torch.int32)[18:22].view(torch.float32)
        return torch.where(first.isfinite(), first, second).double()

    def fetch(self) -> list[TensorStats]:
        """Return the statistics of every tensor, with one wait for the device, and start afresh."""
        words = [table[:used].cpu().numpy() for table, used in zip(self._tables, self._used, strict=True)]
        found = [_decoded(words[table][row], size, sampled) for table, row, size, sampled in self._places]
        rows = sum(map(len, self._tables))
        self._tables = [self._tables[0].zero_() if len(self._tables) == 1 else self._zeros(rows)]
        self._used, self._places = [0], []
        return found

    def _room(self, rows: int) -> int:
        """Return the first of so many free rows of the last table, which is made where there are none."""
        if self._used[-1] + rows > len(self._tables[-1]):
            self._tables.append(self._zeros(max(rows, 2 * len(self._tables[-1]))))
            self._used.append(0)
        self._used[-1] += rows
        return self._used[-1] - rows

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros(rows, ROW, dtype=torch.int64, device=self._device)


def _decoded(words: npt.NDArray[np.int64], numel: int, sampled: bool) -> TensorStats:
    """Turn a row that has reached the host into a value."""
    counts = dict(zip(COUNTS, words[: len(COUNTS)].tolist(), strict=True))
    sums, halves = words[5:9].view(np.float64), words[9:].view(np.int32)
    top, low, (total, squares) = int(halves[0]), _NONE - int(halves[1]), sums[:2].tolist()
    if is_told_by_the_second(top, low):
        top, low, (total, squares) = int(halves[2]), _NONE - int(halves[3]), sums[2:].tolist()
    bins = halves[4 : 4 + BINS].astype(np.int64)
    amax, amin = _magnitude(top), _magnitude(low) if 0 < low < _INFINITY else 0.0
    if sampled:
        bins *= SPARSE
        count_extremes(bins, LOWEST, amax, amin)
    used = np.flatnonzero(bins)
    exponents = ExponentHistogram()
    if used.size:
        first, last = int(used[0]), int(used[-1])
        exponents = ExponentHistogram(lowest=LOWEST + first, counts=tuple(bins[first : last + 1].tolist()))
    return TensorStats(
        numel=numel,
        **counts,
        amax=amax,
        amin=amin,
        sum=total,
        sum_of_squares=squares,
        exponents=exponents,
    )


def _magnitude(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))
