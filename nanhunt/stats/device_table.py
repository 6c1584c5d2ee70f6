"""DeviceTable: rows of statistics that wait on a CUDA device until one copy brings them all to the host.

A row is `device_code`'s: counts, sums and extremes of both passes and the bins of exponents, 1200 bytes. The table is
made once and used by every step; it grows by doubling where a step has more tensors than any before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanhunt.stats.columns import Ints, StatsColumns
from nanhunt.stats.sampling import count_extremes, every_of
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
        #: of each tensor, its table, its row, its elements, and of how many tiles one has its exponents counted
        self._places: list[tuple[int, int, int, int]] = []

    def add(self, tensor: Tensor) -> int:
        """Measure a tensor as it stands; return its number. Nothing waits for the device."""
        row = self._room(1)
        launch(tensor, self._tables[-1], row)
        self._places.append((len(self._tables) - 1, row, tensor.numel(), every_of(tensor.numel())))
        return len(self._places) - 1

    def add_many(self, tensors: Sequence[Tensor], *, exact: bool = False) -> list[int]:
        """Measure tensors that nobody writes into meanwhile, by a launch for each dtype; return their numbers."""
        row, first = self._room(len(tensors)), len(self._places)
        launch_many(tensors, self._tables[-1], row, exact=exact)
        self._places += [
            (len(self._tables) - 1, row + i, t.numel(), 1 if exact else every_of(t.numel()))
            for i, t in enumerate(tensors)
        ]
        return list(range(first, len(self._places)))

    def amax(self, number: int) -> Tensor:
        """Return a tensor's largest finite magnitude so far, as a float64 scalar on the device."""
        table, row, *_ = self._places[number]
        first, _, second, _ = self._tables[table][row].view(torch.int32)[18:22].view(torch.float32)
        return torch.where(first.isfinite(), first, second).double()

    def fetch(self) -> StatsColumns:
        """Return the statistics of every tensor, with one wait for the device, and start afresh."""
        words = [table[:used].cpu().numpy() for table, used in zip(self._tables, self._used, strict=True)]
        places = np.array([place for place, *_ in self._places], np.int64)
        begins = np.cumsum([0, *self._used[:-1]])
        rows = np.concatenate(words)[begins[places] + np.array([row for _, row, *_ in self._places], np.int64)]
        found = _decoded(
            rows,
            np.array([size for *_, size, _ in self._places], np.int64),
            np.array([every for *_, every in self._places], np.int64),
        )
        size = sum(map(len, self._tables))
        self._tables = [self._tables[0].zero_() if len(self._tables) == 1 else self._zeros(size)]
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


def _decoded(words: npt.NDArray[np.int64], numel: Ints, every: Ints) -> StatsColumns:
    """Turn rows that have reached the host into columns."""
    columns: dict[str, npt.NDArray[Any]] = {"numel": numel.astype(np.int64)}
    columns |= {name: words[:, at] for at, name in enumerate(COUNTS)}
    sums, halves = words[:, 5:9].copy().view(np.float64), words[:, 9:].copy().view(np.int32)
    top, low = halves[:, 0], _NONE - halves[:, 1]
    again = is_told_by_the_second(top, low)
    top, low = np.where(again, halves[:, 2], top), np.where(again, _NONE - halves[:, 3], low)
    columns["amax"], amin = _magnitude(top), _magnitude(low)
    columns["amin"] = np.where((low > 0) & (low < _INFINITY), amin, 0.0)
    columns["sum"], columns["sum_of_squares"] = (np.where(again, sums[:, 2 + i], sums[:, i]) for i in range(2))
    bins = halves[:, 4 : 4 + BINS].astype(np.int64)
    bins *= every[:, None]
    for row in np.flatnonzero(every > 1):
        count_extremes(bins[row], LOWEST, float(columns["amax"][row]), float(columns["amin"][row]))
    return StatsColumns.of_bins(columns, bins, LOWEST)


def _magnitude(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    return bits.astype(np.int32).view(np.float32).astype(np.float64)
