"""Statistics of CUDA tensors by Triton: one lean pass over every element, and a second one over what it points at.

How it works. The first pass keeps five numbers a lane: the largest and the smallest bits of the magnitude (as integers:
floats of one sign compare as their bits do), the zeros, the sum and the sum of squares. That is all that an ordinary tensor
needs. The second pass counts exponents; and only where the extremes say that there is something subnormal, something
non-finite or something whose square is not, it reads the tensor once more, counts these exactly and takes sums in fp64.
Programs add to their tensor's row by atomics; the device decides, and the host waits for nothing.

What was chosen. Two launches rather than one: with the seldom paths in it, the kernel takes 254 registers in the place of 102,
and reads half as fast. Exponents are counted as `sampling` says. Many tensors go into one pair of launches, by a table of
addresses; one that is about to be overwritten goes alone, at once.

Not covered: dtypes other than fp32, bf16 and fp16, which `torch_kernel` measures.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from nanhunt.stats.device_code import first_of_many, first_of_one, second_of_many, second_of_one
from nanhunt.stats.sampling import TILE, every_of, tiles_of

__all__ = ["BINS", "COUNTS", "LOWEST", "ROW", "is_told_by_the_second", "launch", "launch_many"]

#: fp32's exponents, subnormals included.
LOWEST, BINS = -149, 277
#: Words of a row, and its counts in their order: `device_code` has the whole layout.
COUNTS = ("zero", "subnormal", "nan", "posinf", "neginf")
ROW = 150
#: The first pass: elements of a tile, tiles of a program, warps.
_WIDTH, _TILES, _WARPS = 2048, 16, 8
#: Parts that the second pass is cut into at most, and sampled tiles of each.
_PARTS, _TILES_OF_A_PART = 1024, 2
_SPAN = _WIDTH * _TILES
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: of each, the bits of the smallest normal magnitude in fp32
_TINY = {torch.float32: 0x00800000, torch.bfloat16: 0x00800000, torch.float16: 0x38800000}
#: bytes that an address must be a multiple of for wide loads
_ALIGNED = 16


def launch(tensor: Tensor, table: Tensor, row: int) -> None:
    """Measure a tensor without gaps in memory into a row of the table ((rows, `ROW`), int64, zeros); nothing waits."""
    size = tensor.numel()
    if not size:
        return
    tiny, kind = _TINY[tensor.dtype], (tensor.dtype, tensor.data_ptr() % _ALIGNED == 0, size >> 31 > 0, tensor.device)
    every, parts = _shares(size)
    with _on(tensor.device):
        _start(first_of_one, kind, -(-size // _SPAN), (tensor, size, table, row), (tiny, _WIDTH, _TILES), _WARPS)
        _start(second_of_one, kind, parts, (tensor, size, table, row, every, parts), (tiny, TILE), 4)


#: Kernels as they were compiled, by what their machine code depends on.
_COMPILED: dict[tuple[Any, ...], Any] = {}


def _start(kernel: Any, kind: tuple[Any, ...], programs: int, args: tuple[Any, ...], fixed: tuple[int, ...], warps: int) -> None:  # fmt: skip
    """Launch a kernel by its compiled code where there is some: half of the 25 µs that Triton takes to find it."""
    compiled = _COMPILED.get((kernel, kind))
    if compiled is None:
        _COMPILED[kernel, kind] = kernel[(programs,)](*args, *fixed, num_warps=warps)
    else:
        compiled[programs, 1, 1](*args, *fixed)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device the current one, where it is not."""
    return contextlib.nullcontext() if torch.cuda.current_device() == device.index else torch.cuda.device(device)


@functools.lru_cache(maxsize=4096)
def _shares(size: int) -> tuple[int, int]:
    """Return of how many tiles one is counted, and the programs of the second pass."""
    return every_of(size), _parts(size)


def launch_many(tensors: Sequence[Tensor], table: Tensor, first: int, *, exact: bool = False) -> None:
    """Measure many tensors into the rows from `first` on, by two launches for each dtype; nothing waits.

    With `exact`, exponents are those of every element whatever the size.
    """
    groups: dict[tuple[torch.dtype, bool], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            aligned = tensor.data_ptr() % _ALIGNED == 0
            groups.setdefault((tensor.dtype, aligned), []).append(index)
    for (dtype, aligned), indices in groups.items():
        _launch_group([tensors[i] for i in indices], [first + i for i in indices], table, dtype, aligned, exact)


def is_told_by_the_second(top: Any, low: Any) -> Any:
    """Whether extremes of the first pass, as arrays of bits, made the second one read the tensor again."""
    return (top >= 0x58800000) | ((top > 0) & (top < 0x26800000)) | (low < 0x00800000)


def _launch_group(
    tensors: list[Tensor], rows: list[int], table: Tensor, dtype: torch.dtype, aligned: bool, exact: bool
) -> None:
    device = tensors[0].device
    places = tuple(tensor.data_ptr() for tensor in tensors)
    there, spans, parts = _told(places, tuple(tensor.numel() for tensor in tensors), tuple(rows), device, exact)
    settings = {"dtype": _DTYPES[dtype], "aligned": _ALIGNED if aligned else 2, "tiny": _TINY[dtype]}
    with _on(device):
        first_of_many[(len(spans),)](there, spans, table, **settings, width=_WIDTH, tiles=_TILES, num_warps=_WARPS)
        second_of_many[(len(parts),)](there, parts, table, **settings, width=TILE)


@functools.lru_cache(maxsize=64)
def _told(
    places: tuple[int, ...], sizes: tuple[int, ...], rows: tuple[int, ...], device: torch.device, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the kernels are told, on the device: tensors lie where they lay a step before, mostly."""
    facts = [
        (place, size, row, 1 if exact else every_of(size), _parts(size, exact))
        for place, size, row in zip(places, sizes, rows, strict=True)
    ]
    there = torch.tensor(facts, dtype=torch.int64, device="cpu").pin_memory().to(device, non_blocking=True)
    return there, *_programs(sizes, device, exact)


@functools.lru_cache(maxsize=64)
def _programs(sizes: tuple[int, ...], device: torch.device, exact: bool) -> tuple[Tensor, Tensor]:
    """Return the (tensor, span) and the (tensor, part) of each program on the device."""
    spans, parts = [-(-size // _SPAN) for size in sizes], [_parts(size, exact) for size in sizes]
    return _shared_out(spans, device), _shared_out(parts, device)


def _shared_out(shares: list[int], device: torch.device) -> Tensor:
    counts = torch.tensor(shares, device="cpu")
    whose = torch.repeat_interleave(torch.arange(len(shares), device="cpu"), counts)
    which = torch.arange(len(whose), device="cpu") - (counts.cumsum(0) - counts)[whose]
    return torch.stack([whose, which], dim=1).pin_memory().to(device, non_blocking=True)


def _parts(size: int, exact: bool = False) -> int:
    """Return how many programs the second pass has."""
    counted = -(-size // TILE) if exact else tiles_of(size)
    return min(max(1, -(-counted // _TILES_OF_A_PART)), _PARTS)
