"""Who wrote a tensor's memory last, and what that memory is called: parameter, buffer, batch field, moment.

Memory is known by its storage, so that a view, a `detach` and an in-place update stay the same thing. An address alone
would not do: the allocator gives a freed one to the next tensor. A weak reference keeps the storage's handle, a hundred
bytes, from being reused as long as the step is looked at; the data itself is freed as ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Cell", "Memory", "shows_all"]

_PLAIN = (Tensor, nn.Parameter)


@dataclass(slots=True)
class Cell:
    """One storage."""

    #: keeps the handle; None of a tensor without a storage
    handle: StorageWeakRef | None
    #: bytes; -1 of a tensor without a storage, all of which nothing shows
    size: int = -1
    origin: str = ""
    #: the last look at all of it, good until it is written again; None where no look holds for all of it
    content: int | None = None
    #: (event, lane) that wrote last
    writer: tuple[int, str] | None = None
    #: (event, lane) that last left something non-finite in it: a later write to another part does not heal this one
    spoiler: tuple[int, str] | None = None

    def wrote(self, event: int, lane: str, *, bad: bool, whole: bool) -> None:
        """Note a write; `whole` of one that made the memory."""
        self.writer = (event, lane)
        if bad or whole:
            self.spoiler = (event, lane) if bad else None

    def writer_of(self, *, bad: bool) -> tuple[int, str] | None:
        """Return who wrote what is seen in it: of something non-finite the last who left any, None if nobody did."""
        return self.spoiler if bad else self.writer


class Memory:
    """The storages that a step has touched."""

    def __init__(self) -> None:
        self._cells: dict[int, Cell] = {}

    def of(self, tensor: Tensor) -> Cell:
        """Return the cell of the tensor's storage."""
        try:  # the way of nearly all, some thousand times a step
            return self._cells[tensor.untyped_storage()._cdata]
        except (KeyError, RuntimeError, NotImplementedError):
            return self._made_of(tensor)

    def _made_of(self, tensor: Tensor) -> Cell:
        """Return the cell of a storage that is new, or of a tensor that has its storage elsewhere or none at all."""
        try:
            storage = _holder(tensor).untyped_storage()
        except (RuntimeError, NotImplementedError):  # opaque, functional and fake tensors
            return self._cells.setdefault(id(tensor), Cell(None))
        cell = self._cells.get(storage._cdata)
        if cell is None:
            handle = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            cell = self._cells[handle.cdata] = Cell(handle, storage.nbytes())
        return cell

    def name(self, tensor: Tensor, origin: str) -> None:
        """Give the tensor's memory its name."""
        self.of(tensor).origin = origin

    def given(self, tensor: Tensor, origin: str) -> None:
        """Name memory that comes from outside: nobody in the step wrote it."""
        cell = self.of(tensor)
        cell.origin, cell.content = origin, None


def shows_all(tensor: Tensor, cell: Cell) -> bool:
    """Whether a tensor shows all of its storage, whose cell it is."""
    if cell.size < 0:
        return False
    held = tensor if type(tensor) in _PLAIN else _holder(tensor)
    if held.layout is not torch.strided:
        held = _holder(held)
    return (held.nbytes if held.is_contiguous() else _distinct(held) * held.element_size()) == cell.size


def _holder(tensor: Tensor) -> Tensor:
    """Return the tensor that has the storage: the values of a sparse or nested one."""
    if tensor.layout is torch.strided and not tensor.is_nested:
        return tensor
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()


def _distinct(tensor: Tensor) -> int:
    """Return how many elements an expanded tensor has in memory; -1 of one whose rows overlap, as windows do."""
    dims = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    distinct = math.prod(size for size, _ in dims)
    return distinct if not distinct or distinct == 1 + sum((size - 1) * stride for size, stride in dims) else -1
