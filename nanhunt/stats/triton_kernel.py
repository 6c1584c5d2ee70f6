"""Statistics of CUDA tensors by Triton: one lean pass over every element, and a second look at the spans that ask for it.

How it works. A program has a span of a tensor, and keeps five numbers a lane: the largest and the smallest bits of the
magnitude (as integers: floats of one sign compare as their bits do), the zeros, the sum and the sum of squares. That is
all that an ordinary span needs. Where its extremes say that there is something subnormal, something non-finite or something
whose square is not, it reads its span once more, out of the cache, counts these exactly and takes sums in fp64. Then it
counts exponents of those of its tiles that `sampling` says. Programs add to their tensor's row by atomics; the device
decides, and the host waits for nothing.

What was chosen. A second look of 512 lanes: wider, it takes registers that the first pass needs. Many tensors go into one
launch, by a table of addresses; one that is about to be overwritten goes alone, at once, and its launch by the compiled code.

Not covered: dtypes other than fp32, bf16 and fp16, which `torch_kernel` measures.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from nanhunt.stats.device_code import measure_many, measure_one, peaks_of_many
from nanhunt.stats.sampling import every_of

__all__ = ["BINS", "COUNTS", "LOWEST", "ROW", "launch", "launch_many", "launch_peaks", "on", "sent", "start"]

#: fp32's exponents, subnormals included.
LOWEST, BINS = -149, 277
#: Words of a row, and its counts in their order: `device_code` has the whole layout.
COUNTS = ("zero", "subnormal", "nan", "posinf", "neginf")
ROW = 148
#: Elements of a tile, warps; tiles of a span, and of a span of a tensor that is small: counting a tile's exponents takes
#: 3 µs, and the 32 of a long span would follow each other
_WIDTH, _WARPS = 2048, 4
_TILES, _FEW_TILES, _SMALL = 16, 2, 1 << 17
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: of each, the bits of the smallest normal magnitude in fp32
_TINY = {torch.float32: 0x00800000, torch.bfloat16: 0x00800000, torch.float16: 0x38800000}
#: bytes that an address must be a multiple of for wide loads
_ALIGNED = 16
#: A compiled kernel's own call is as here since Triton 3.3. 3.2's takes no constants beside the arguments.
_IS_DIRECT = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)


def launch(tensor: Tensor, table: Tensor, row: int) -> None:
    """Measure a tensor without gaps in memory into a row of the table ((rows, `ROW`), int64, zeros); nothing waits."""
    size, dtype = tensor.numel(), tensor.dtype
    if not size:
        return
    tiles = _tiles(size)
    kind = (dtype, tensor.data_ptr() % _ALIGNED == 0, tiles)
    grid, fixed = (-(-size // (_WIDTH * tiles)), 1), (_TINY[dtype], _WIDTH, tiles)
    start(measure_one, kind, grid, (tensor, table), (size, row, every_of(size)), fixed)


def start(
    kernel: Any,
    kind: tuple[Any, ...],
    grid: tuple[int, int],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    fixed: tuple[Any, ...],
) -> None:
    """Launch a kernel on its first tensor's device by its compiled code: for Triton to find it takes 25 µs, and this some 5.

    `kind` is all that its machine code depends on but for the device and the widths of its numbers: dtypes, alignments,
    `fixed`. Its numbers must not be specialized.
    """
    device = tensors[0].device
    key = (kernel, kind, device, *[number >> 31 > 0 for number in numbers])
    with on(device):
        known = _STARTS.get(key)
        if known is None:
            compiled = kernel[grid](*tensors, *numbers, *fixed, num_warps=_WARPS)
            _STARTS[key] = _starter(compiled, device, fixed)
        else:
            known(grid, *[tensor.data_ptr() for tensor in tensors], *numbers)


#: How to start a kernel, by what its machine code depends on.
_STARTS: dict[tuple[Any, ...], Callable[..., None]] = {}


def _starter(compiled: Any, device: torch.device, fixed: tuple[Any, ...]) -> Callable[..., None]:
    """Return what launches a compiled kernel."""
    if not _IS_DIRECT:
        return lambda grid, *args: compiled[(*grid, 1)](*args)
    run, function, packed = compiled.run, compiled.function, compiled.packed_metadata
    stream_of, index = torch._C._cuda_getCurrentRawStream, device.index

    def start_compiled(grid: tuple[int, int], *args: int) -> None:
        run(grid[0], grid[1], 1, stream_of(index), function, packed, None, None, None, *args, *fixed)

    return start_compiled


_HERE = contextlib.nullcontext()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the current one, where it is not."""
    return _HERE if torch._C._cuda_getDevice() == device.index else torch.cuda.device(device)


def sent(table: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Send a table from the host; nothing waits."""
    return torch.from_numpy(np.ascontiguousarray(table)).pin_memory().to(device, non_blocking=True)


def launch_many(tensors: Sequence[Tensor], table: Tensor, first: int, *, exact: bool = False) -> None:
    """Measure many tensors into the rows from `first` on, by a launch for each dtype and kind of size; nothing waits.

    With `exact`, exponents are those of every element whatever the size.
    """
    for (dtype, is_aligned, tiles), facts in _alike(tensors, first).items():
        there, programs = _told(tuple(facts), tiles, table.device, exact)
        with on(table.device):
            measure_many[(len(programs),)](
                there, programs, table, dtype=_DTYPES[dtype], aligned=_ALIGNED if is_aligned else 2,
                tiny=_TINY[dtype], width=_WIDTH, tiles=tiles, num_warps=_WARPS,
            )  # fmt: skip


def launch_peaks(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bits of the largest magnitude of each, (tensors,) int32 on their device: a NaN is above infinity's."""
    device = tensors[0].device
    peaks = torch.zeros(len(tensors), dtype=torch.int32, device=device)
    for (dtype, is_aligned, tiles), facts in _alike(tensors, 0).items():
        there, programs = _told(tuple(facts), tiles, device, False)
        with on(device):
            peaks_of_many[(len(programs),)](
                there, programs, peaks, dtype=_DTYPES[dtype], aligned=_ALIGNED if is_aligned else 2,
                width=_WIDTH, tiles=tiles, num_warps=_WARPS,
            )  # fmt: skip
    return peaks


_Facts = tuple[int, int, int]


def _alike(tensors: Sequence[Tensor], first: int) -> dict[tuple[torch.dtype, bool, int], list[_Facts]]:
    """Return address, elements and row of those that have elements, by what machine code depends on."""
    groups: dict[tuple[torch.dtype, bool, int], list[_Facts]] = {}
    for row, tensor in enumerate(tensors, first):
        if size := tensor.numel():
            address = tensor.data_ptr()
            kind = (tensor.dtype, address % _ALIGNED == 0, _tiles(size))
            groups.setdefault(kind, []).append((address, size, row))
    return groups


@functools.lru_cache(maxsize=64)
def _told(facts: tuple[_Facts, ...], tiles: int, device: torch.device, exact: bool) -> tuple[Tensor, Tensor]:
    """Return what the kernel is told, on the device: tensors lie where they lay a step before, mostly."""
    sizes = tuple(size for _, size, _ in facts)
    every = [1 if exact else every_of(size) for size in sizes]
    there = np.concatenate([np.array(facts, np.int64), np.array(every, np.int64)[:, None]], axis=1)
    return sent(there, device), _programs(sizes, tiles, device)


@functools.lru_cache(maxsize=64)
def _programs(sizes: tuple[int, ...], tiles: int, device: torch.device) -> Tensor:
    """Return the (tensor, span) of each program, on the device."""
    spans = -(-np.array(sizes, np.int64) // (_WIDTH * tiles))
    whose = np.repeat(np.arange(len(sizes)), spans)
    return sent(np.stack([whose, np.arange(len(whose)) - (spans.cumsum() - spans)[whose]], axis=1), device)


def _tiles(size: int) -> int:
    return _TILES if size >= _SMALL else _FEW_TILES
