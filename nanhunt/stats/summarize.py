"""Statistics that wait on the device until one copy brings them all to the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nanhunt.stats.columns import UNMEASURED, StatsColumns
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.stats.torch_kernel import FIELDS, columns_of, in_memory, is_measurable, measure

if TYPE_CHECKING:
    from nanhunt.stats.device_table import DeviceTable

__all__ = ["FUSED", "StatsQueue", "has_triton", "summarize"]

_PLAIN = (Tensor, nn.Parameter)


class StatsQueue:
    """Tensors are measured when they are added, and read when they are collected.

    Between the two nothing waits for the device; `collect` makes one copy for each device (and vector width of what the
    plain kernel measured) and empties the queue. The queue keeps its memory on the device from step to step.
    """

    def __init__(self) -> None:
        #: of each ticket: a vector of the plain kernel's, or a table and a number in it; None of what cannot be measured
        self._looks: list[Tensor | tuple[DeviceTable, int] | None] = []
        self._tables: dict[torch.device, DeviceTable] = {}

    def __len__(self) -> int:
        return len(self._looks)

    def add(self, tensor: Tensor, *, histogram: bool = True) -> int:
        """Measure `tensor` as it stands and return its ticket: its index in what `collect` returns."""
        table = self._table(tensor)
        if table is None:
            self._looks.append(_measured(tensor, histogram=histogram))
        else:
            self._looks.append((table, table.add(in_memory(tensor))))
        return len(self._looks) - 1

    def add_all(self, tensors: Sequence[Tensor], *, histogram: bool = True, exact: bool = False) -> list[int]:
        """Measure tensors that nobody writes into meanwhile, many to a launch where there is a kernel for it.

        With `exact`, exponents are those of every element whatever the size (`sampling`).
        """
        first = len(self._looks)
        together: dict[DeviceTable, list[int]] = {}
        for index, tensor in enumerate(tensors):
            table = self._table(tensor)
            self._looks.append(None if table is not None else _measured(tensor, histogram=histogram, exact=exact))
            if table is not None:
                together.setdefault(table, []).append(index)
        for table, indices in together.items():
            numbers = table.add_many([in_memory(tensors[i]) for i in indices], exact=exact)
            for index, number in zip(indices, numbers, strict=True):
                self._looks[first + index] = (table, number)
        return list(range(first, len(self._looks)))

    def amax(self, ticket: int) -> Tensor | None:
        """Return a tensor's largest finite magnitude as a float64 scalar on its device; None where it was not measured."""
        look = self._looks[ticket]
        if isinstance(look, tuple):
            return look[0].amax(look[1])
        return None if look is None else look[FIELDS.index("amax")]

    def collect(self) -> StatsColumns:
        """Return the statistics of all tensors added, in their order, and start afresh; the device is waited for once."""
        parts, places = [UNMEASURED], np.zeros(len(self._looks), np.int64)
        fetched = {table: table.fetch() for table in self._tables.values()}
        begins = {}
        groups: dict[tuple[int, torch.device], list[int]] = {}
        end = 1
        for table, columns in fetched.items():
            begins[table], end = end, end + len(columns)
            parts.append(columns)
        for ticket, look in enumerate(self._looks):
            if isinstance(look, tuple):
                places[ticket] = begins[look[0]] + look[1]
            elif look is not None:
                groups.setdefault((look.numel(), look.device), []).append(ticket)
        for tickets in groups.values():
            vectors = [look for t in tickets if isinstance(look := self._looks[t], Tensor)]
            parts.append(columns_of(torch.stack(vectors).cpu().numpy()))
            places[tickets] = np.arange(end, end + len(tickets))
            end += len(tickets)
        self._looks.clear()
        return StatsColumns.joined(parts).take(places)

    def _table(self, tensor: Tensor) -> DeviceTable | None:
        """Return the table that the fused kernel measures this tensor into; None of what it does not measure."""
        if type(tensor) not in _PLAIN or not tensor.is_cuda or tensor.dtype not in FUSED or not has_triton():
            return None
        if tensor.layout is not torch.strided or tensor.is_neg() or not is_measurable(tensor):
            return None
        table = self._tables.get(tensor.device)
        if table is None:
            from nanhunt.stats.device_table import DeviceTable  # triton is there on CUDA alone

            table = self._tables[tensor.device] = DeviceTable(tensor.device)
        return table


#: What the fused kernel reads.
FUSED = frozenset({torch.float32, torch.bfloat16, torch.float16})


@functools.cache
def has_triton() -> bool:
    """Whether fused kernels can be had."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def summarize(tensor: Tensor, *, histogram: bool = True, exact: bool = False) -> TensorStats:
    """Measure one tensor now (waits for the device); with `exact`, exponents are those of every element.

    Raises TypeError where it cannot be measured.
    """
    queue = StatsQueue()
    queue.add_all([tensor], histogram=histogram, exact=exact)
    stats = queue.collect()[0]
    if stats is None:
        raise TypeError(f"cannot measure a tensor of layout {tensor.layout} on {tensor.device}")
    return stats


def _measured(tensor: Tensor, *, histogram: bool, exact: bool = False) -> Tensor | None:
    if not is_measurable(tensor):
        return None
    try:
        return measure(tensor, histogram=histogram, exact=exact)
    except (NotImplementedError, RuntimeError, TypeError):
        if type(tensor) in _PLAIN:
            raise
        return None  # a subclass that knows no such reduction
