"""Pages: stretches of a tensor that hold one value, and stretches that stand twice, as torn and repeated writes leave them.

How it works. A tensor's bytes are cut into blocks of 1 KiB, and each block's 128 words are multiplied by fixed odd numbers
and added up modulo 2^64. Equal blocks have equal sums. The sum is linear, so a block of one repeated word is known by its
first word alone: one reading of the tensor serves both questions, at 0.3 s a GB. Whatever the sums say is compared byte by
byte before it is told.

Blocks are counted from the tensor's start, and a second time from the file's pages: a copy that was torn in memory keeps
the tensor's own grid, one that was torn on its way to the disk the file's. A region of 4 KiB holds three whole blocks of 1
KiB wherever it begins.

What it costs in memory. 16 bytes for each block that is kept. Of large files only blocks whose sum ends in enough zero
bits are kept, the same ones in every tensor, so that equal regions are still met: at most some 4 million.

Not covered: equal regions at a distance that is no multiple of 1 KiB on either grid; values of one byte, which repeat by
themselves; moments, of which one may be a copy of another by design.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanhunt.inspection.facts import Run, Twin

__all__ = ["PAGE", "Pages", "runs_of"]

#: A file's page, the least that is told; and a block, small enough that three lie in every page.
PAGE, BLOCK = 4096, 1024
#: Blocks kept at most, and different values in a page that is no pattern: random bf16 weights have some 700 of 2048.
_MOST_BLOCKS, _LEAST_VALUES = 1 << 22, 64
#: More runs than this are the tensor's structure: a mask, blocks on a diagonal, padded columns.
_MOST_RUNS = 64
#: Pairs of equal blocks that are compared: a table with the same rows a million times is told after a few of them.
_MOST_PAIRS = 4096
#: Bytes read at once.
_PIECE = 1 << 24

_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.int64]

_FACTORS: _Words = np.random.default_rng(4096).integers(-(2**63), 2**63 - 1, size=BLOCK // 8, dtype=np.int64) | 1
#: what a block of ones adds up to: the factors' sum modulo 2^64
_OF_ONES = np.ones(BLOCK // 8, dtype=np.int64) @ _FACTORS


class Pages:
    """Blocks of all tensors so far, by their sums; tensors stay where they are, mapped."""

    def __init__(self, total_bytes: int) -> None:
        """Keep as few blocks of `total_bytes`, on two grids, as memory allows."""
        every = max(2 * total_bytes // BLOCK // _MOST_BLOCKS, 1)
        self._mask = np.int64((1 << (every - 1).bit_length()) - 1)
        self._tensors: list[_Taken] = []
        self._sums: list[_Words] = []
        self._places: list[_Words] = []
        self._owners: list[npt.NDArray[np.int32]] = []
        self._whole: dict[tuple[int, int], list[int]] = {}

    def add(self, name: str, flat: Tensor, shape: tuple[int, ...]) -> tuple[tuple[Run, ...], str]:
        """Take in a tensor's elements; return its runs of one value, and the name of a tensor with the very same bytes."""
        data = _bytes_of(flat)
        if len(data) < PAGE:
            return (), ""
        sums, constant = _sums_of(data)
        runs = runs_of(data, constant, flat, shape)
        twin = self._copied(sums, data)
        self._tensors.append(_Taken(name=name, flat=flat, row=shape[-1] if len(shape) > 1 else 1))
        if twin is not None:
            return runs, self._tensors[twin].name
        lead = -flat.data_ptr() % BLOCK
        for begin in {0, lead}:
            found, repeated = (sums, constant) if begin == 0 else _sums_of(data[begin:])
            kept = np.flatnonzero(~repeated & ((found & self._mask) == 0))
            self._sums.append(found[kept])
            self._places.append(kept * BLOCK + begin)
            self._owners.append(np.full(len(kept), len(self._tensors) - 1, dtype=np.int32))
        return runs, ""

    def _copied(self, sums: _Words, data: _Bytes) -> int | None:
        """Return an earlier tensor that holds the same bytes."""
        key = (len(data), int(np.bitwise_xor.reduce(sums * np.arange(1, 2 * len(sums), 2))) if len(sums) else 0)
        earlier = self._whole.setdefault(key, [])
        earlier_same = (i for i in earlier if np.array_equal(self._tensors[i].data, data))
        found = next(earlier_same, None)
        earlier.append(len(self._tensors))
        return found

    def twins(self) -> list[Twin]:
        """Return the regions that stand twice, the largest first, each pair of tensors and distance once."""
        found: dict[tuple[int, int, int], Twin] = {}
        known: dict[tuple[int, int, int], int] = {}
        for (i, at_i), (j, at_j) in self._equal_blocks():
            key = (i, j, at_j - at_i)
            # the same place in two tensors: the one was copied from the other, and a part of it has not moved since
            if (at_i == at_j and i != j) or at_i < known.get(key, -1):
                continue
            region = _region(self._tensors[i].data, at_i, self._tensors[j].data, at_j)
            known[key] = region[0] + region[1]
            twin = self._twin(i, j, *region, at_j - at_i)
            if twin is not None and (key not in found or twin.bytes > found[key].bytes):
                found[key] = twin
        return sorted(found.values(), key=lambda t: -t.bytes)

    def _equal_blocks(self) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield two places, (tensor, byte), that have the same sum, the earlier one first."""
        if not self._sums:
            return
        sums, places = np.concatenate(self._sums), np.concatenate(self._places)
        owners = np.concatenate(self._owners)
        order = np.lexsort((places, owners, sums))
        same = np.flatnonzero(sums[order[1:]] == sums[order[:-1]])[:_MOST_PAIRS]
        pairs = sorted(
            sorted((int(owners[k]), int(places[k])) for k in (order[index], order[index + 1])) for index in same
        )
        for first, second in pairs:
            if first != second:
                yield first, second

    def _twin(self, i: int, j: int, at: int, size: int, distance: int) -> Twin | None:
        """Return a region that is equal, in whole elements; None of a pattern, a slice or a copy."""
        a, b = self._tensors[i], self._tensors[j]
        wide = a.flat.element_size()
        start, stop = -(-at // wide), (at + size) // wide
        if (stop - start) * wide < PAGE or a.flat.dtype != b.flat.dtype or distance % wide:
            return None
        if i == j and abs(distance) < size:
            return None  # it overlaps itself: a pattern with that period
        page = a.data[start * wide : start * wide + PAGE].view(_word(wide))
        if len(np.unique(page)) < _LEAST_VALUES or stop - start in (a.flat.numel(), b.flat.numel()):
            return None
        other = start + distance // wide
        ends = ((a.row, start), (a.row, stop), (b.row, other), (b.row, other + stop - start))
        return Twin(
            first=a.name,
            second=b.name,
            at=(start, other),
            elements=stop - start,
            bytes=(stop - start) * wide,
            whole_rows=min(a.row, b.row) > 1 and all(at % row == 0 for row, at in ends),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A tensor that was taken in: its elements in memory's order, and how many its rows have."""

    name: str
    flat: Tensor
    row: int

    @property
    def data(self) -> _Bytes:
        return _bytes_of(self.flat)


def runs_of(data: _Bytes, constant: npt.NDArray[np.bool_], flat: Tensor, shape: tuple[int, ...]) -> tuple[Run, ...]:
    """Return the longest stretches of one finite value; () where there are so many that they are the tensor's make."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], constant, [False])).astype(np.int8)))
    spans = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= PAGE // BLOCK - 1]
    if not spans or len(spans) > _MOST_RUNS:
        return ()
    wide = flat.element_size()
    values = data[: len(data) // wide * wide].view(_word(wide))
    row = shape[-1] if len(shape) > 1 else 1
    runs = []
    for first, last in spans:
        start, stop = first * BLOCK // wide, last * BLOCK // wide
        value = values[start]
        if not (values[start:stop] == value).all():
            continue
        start -= _same_before(values, start, value)
        stop += _same_after(values, stop, value)
        number = float(flat[start].item())
        if (stop - start) * wide < PAGE or stop - start == len(values) or not math.isfinite(number):
            continue
        whole = row > 1 and start % row == 0 and stop % row == 0
        runs.append(Run(start=start, stop=stop, value=number, whole_rows=whole, on_pages=_paged(flat, start, stop)))
    return tuple(dict.fromkeys(runs))


def _paged(flat: Tensor, start: int, stop: int) -> bool:
    """Whether both ends lie on a page of the file or of the tensor, or are the tensor's ends."""
    wide = flat.element_size()
    inner = [at * wide for at in (start, stop) if 0 < at < flat.numel()]
    return any(all((base + at) % PAGE == 0 for at in inner) for base in (0, flat.data_ptr()))


def _same_before(values: npt.NDArray[np.generic], at: int, value: np.generic) -> int:
    window = values[max(at - BLOCK, 0) : at][::-1] != value
    return int(window.argmax()) if window.any() else len(window)


def _same_after(values: npt.NDArray[np.generic], at: int, value: np.generic) -> int:
    window = values[at : at + BLOCK] != value
    return int(window.argmax()) if window.any() else len(window)


def _region(a: _Bytes, at: int, b: _Bytes, other: int) -> tuple[int, int]:
    """Return where the equal bytes around two equal places begin in `a`, and how many they are; 0 of unequal places."""
    if not np.array_equal(a[at : at + BLOCK], b[other : other + BLOCK]):
        return at, 0
    before, after = _equal(a[:at][::-1], b[:other][::-1]), _equal(a[at:], b[other:])
    return at - before, before + after


def _equal(a: _Bytes, b: _Bytes) -> int:
    """Return how many bytes two arrays begin with alike."""
    done, length, step = 0, min(len(a), len(b)), PAGE
    while done < length:
        end = min(done + step, length)
        differs = a[done:end] != b[done:end]
        if differs.any():
            return done + int(differs.argmax())
        done, step = end, min(2 * step, _PIECE)
    return length


def _sums_of(data: _Bytes) -> tuple[_Words, npt.NDArray[np.bool_]]:
    """Return each whole block's sum, and whether it is one word over and over."""
    blocks = len(data) // BLOCK
    sums, constant = np.empty(blocks, dtype=np.int64), np.empty(blocks, dtype=np.bool_)
    step = _PIECE // BLOCK
    for begin in range(0, blocks, step):
        end = min(begin + step, blocks)
        words = data[begin * BLOCK : end * BLOCK].view(np.int64).reshape(-1, BLOCK // 8)
        sums[begin:end] = words @ _FACTORS
        constant[begin:end] = sums[begin:end] == words[:, 0] * _OF_ONES
    return sums, constant


def _bytes_of(flat: Tensor) -> _Bytes:
    return flat.view(torch.uint8).numpy()


def _word(wide: int) -> np.dtype[np.unsignedinteger]:
    """Return whole numbers as wide as an element: NaN equals NaN among them."""
    return np.dtype(f"u{wide}")
