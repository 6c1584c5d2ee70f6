"""DeviceTable: rows of statistics that wait on a CUDA device until one copy brings them all to the host.

A row is `device_code`'s: counts, sums, extremes and the bins of exponents, 1184 bytes. The table is made once and used by
every step; it grows by doubling where a step has more tensors than any before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanhunt.stats.columns import Ints, StatsColumns
from nanhunt.stats.sampling import every_of
from nanhunt.stats.triton_kernel import BINS, COUNTS, LOWEST, ROW, launch, launch_many

__all__ = ["DeviceTable"]

_FIRST_ROWS = 1024
#: What the smallest magnitude is subtracted from, so that zeros are the neutral element of both extremes.
_NONE = 0x7FFFFFFF
_INFINITY = 0x7F800000
#: Where a row's halves of words have the bits of the largest magnitude.
_TOP = 14


class DeviceTable:
    """Statistics of one device's tensors, in the order in which they were added."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tables = [self._zeros(_FIRST_ROWS)]
        #: rows of each table that are taken: one behind the other, they are the tensors in their order
        self._used = [0]
        #: of each tensor, its elements, and of how many tiles one has its exponents counted
        self._sizes: list[int] = []
        self._every: list[int] = []
        self._landing: Tensor | None = None

    def add(self, tensor: Tensor) -> int:
        """Measure a tensor without gaps in memory as it stands; return its number. Nothing waits for the device."""
        row, size = self._room(1), tensor.numel()  # it may make a table
        launch(tensor, self._tables[-1], row)
        self._sizes.append(size)
        self._every.append(every_of(size))
        return len(self._sizes) - 1

    def add_many(self, tensors: Sequence[Tensor], *, exact: bool = False) -> list[int]:
        """Measure tensors that nobody writes into meanwhile, by a launch for each dtype; return their numbers."""
        row, first = self._room(len(tensors)), len(self._sizes)
        launch_many(tensors, self._tables[-1], row, exact=exact)
        sizes = [tensor.numel() for tensor in tensors]
        self._sizes += sizes
        self._every += [1] * len(sizes) if exact else map(every_of, sizes)
        return list(range(first, len(self._sizes)))

    def amax(self, number: int) -> Tensor:
        """Return a tensor's largest finite magnitude so far, as a float64 scalar on the device."""
        for table, used in zip(self._tables, self._used, strict=True):
            if number < used:
                return table[number].view(torch.int32)[_TOP].view(torch.float32).double()
            number -= used
        raise IndexError(number)

    def fetch(self) -> StatsColumns:
        """Return the statistics of every tensor, with one wait for the device, and start afresh."""
        rows = self._landed()
        found = _decoded(rows, np.array(self._sizes, np.int64), np.array(self._every, np.int64))
        size = sum(map(len, self._tables))
        self._tables = [self._tables[0].zero_() if len(self._tables) == 1 else self._zeros(size)]
        self._used, self._sizes, self._every = [0], [], []
        return found

    def _landed(self) -> npt.NDArray[np.int64]:
        """Return the rows on the host, until they are asked for again: in pinned memory, where a copy is three times as fast."""
        count, begin = sum(self._used), 0
        if self._landing is None or len(self._landing) < count:
            self._landing = torch.empty(max(count, _FIRST_ROWS), ROW, dtype=torch.int64, device="cpu", pin_memory=True)
        for table, used in zip(self._tables, self._used, strict=True):
            self._landing[begin : begin + used].copy_(table[:used], non_blocking=True)
            begin += used
        torch.cuda.current_stream(self._device).synchronize()
        rows: npt.NDArray[np.int64] = self._landing[:count].numpy()
        return rows

    def _room(self, rows: int) -> int:
        """Return the first of so many free rows of the last table, which is made where there are none."""
        if self._used[-1] + rows > len(self._tables[-1]):
            self._tables.append(self._zeros(max(rows, 2 * len(self._tables[-1]))))
            self._used.append(0)
        self._used[-1] += rows
        return self._used[-1] - rows

    def _zeros(self, rows: int) -> Tensor:
        with torch.inference_mode(False):  # made in a teacher's forward, it could be cleared nowhere else
            return torch.zeros(rows, ROW, dtype=torch.int64, device=self._device)


def _decoded(words: npt.NDArray[np.int64], numel: Ints, every: Ints) -> StatsColumns:
    """Turn rows that have reached the host into columns, which share no memory with them."""
    columns: dict[str, npt.NDArray[Any]] = {"numel": numel}
    columns |= {name: words[:, at].copy() for at, name in enumerate(COUNTS)}
    columns["sum"], columns["sum_of_squares"] = (words[:, at].copy().view(np.float64) for at in (5, 6))
    halves = words.view(np.int32)
    low = _NONE - halves[:, _TOP + 1]
    amax, amin = _magnitude(halves[:, _TOP]), np.where((low > 0) & (low < _INFINITY), _magnitude(low), 0.0)
    bins, sampled = np.ascontiguousarray(halves[:, _TOP + 2 : _TOP + 2 + BINS]), every > 1
    for extremes in (amax, amin):  # a sampled tensor's are counted, once where no tile holds one of its size
        rows = np.flatnonzero(sampled & (extremes > 0.0))
        place = np.frexp(extremes[rows])[1] - 1 - LOWEST
        bins[rows, place] = np.where(bins[rows, place], bins[rows, place], -1)
    return StatsColumns.of_bins(columns | {"amax": amax, "amin": amin}, bins, LOWEST, every=every)


def _magnitude(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    return bits.astype(np.int32).view(np.float32).astype(np.float64)
