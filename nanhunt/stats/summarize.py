"""Statistics that wait on the device until one copy brings them all to the host."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from nanhunt.stats.columns import EMPTY, UNMEASURED, StatsColumns
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
        #: of each ticket a vector of the plain kernel's; None of what a table has, and of what cannot be measured
        self._looks: list[Tensor | None] = []
        #: tickets that follow each other and have numbers of a table that do: table, first ticket, first number, how many
        self._runs: list[tuple[DeviceTable, int, int, int]] = []
        self._tables: dict[torch.device, DeviceTable] = {}

    def __len__(self) -> int:
        return len(self._looks)

    def add(self, tensor: Tensor, *, histogram: bool = True) -> int | None:
        """Measure `tensor` as it stands; return its ticket, its index in what `collect` returns. None: it cannot be measured."""
        tensor = _own_part(tensor)
        table = self._table(tensor)
        if table is not None:
            self._number(table, table.add(in_memory(tensor)))
            self._looks.append(None)
        elif is_measurable(tensor):
            self._looks.append(_measured(tensor, histogram=histogram))
        else:
            return None
        return len(self._looks) - 1

    def add_all(self, tensors: Sequence[Tensor], *, histogram: bool = True, exact: bool = False) -> list[int]:
        """Measure tensors that nobody writes into meanwhile, many to a launch where there is a kernel for it.

        With `exact`, exponents are those of every element whatever the size (`sampling`).
        """
        together: dict[DeviceTable, list[Tensor]] = {}
        tensors = [_own_part(tensor) for tensor in tensors]
        tables = [self._table(tensor) for tensor in tensors]
        for tensor, table in zip(tensors, tables, strict=True):
            if table is not None:
                together.setdefault(table, []).append(in_memory(tensor))
        numbers = {table: iter(table.add_many(held, exact=exact)) for table, held in together.items()}
        first = len(self._looks)
        for tensor, table in zip(tensors, tables, strict=True):
            if table is not None:
                self._number(table, next(numbers[table]))
            self._looks.append(None if table is not None else _measured(tensor, histogram=histogram, exact=exact))
        return list(range(first, len(self._looks)))

    def _number(self, table: DeviceTable, number: int) -> None:
        """Note that the next ticket has this number of a table."""
        ticket = len(self._looks)
        if self._runs:
            last, first, begin, count = self._runs[-1]
            if last is table and first + count == ticket and begin + count == number:
                self._runs[-1] = last, first, begin, count + 1
                return
        self._runs.append((table, ticket, number, 1))

    def amax(self, ticket: int) -> Tensor | None:
        """Return a tensor's largest finite magnitude as a float64 scalar on its device; None where it was not measured."""
        for table, first, begin, count in reversed(self._runs):
            if first <= ticket < first + count:
                return table.amax(begin + ticket - first)
        look = self._looks[ticket]
        return None if look is None else look[FIELDS.index("amax")]

    def collect(self) -> StatsColumns:
        """Return the statistics of all tensors added, in their order, and start afresh; the device is waited for once."""
        fetched = {table: table.fetch() for table in self._tables.values()}
        parts, places = [*fetched.values()], np.full(len(self._looks), -1, np.int64)
        ends = np.cumsum([len(part) for part in parts]).tolist()
        begins = dict(zip(fetched, [0, *ends], strict=False))
        for table, first, number, count in self._runs:
            places[first : first + count] = begins[table] + number + np.arange(count)
        end = ends[-1] if ends else 0
        groups: dict[tuple[int, torch.device], list[int]] = {}
        for ticket, look in enumerate(self._looks):
            if look is not None:
                groups.setdefault((look.numel(), look.device), []).append(ticket)
        for tickets in groups.values():
            vectors = [look for t in tickets if (look := self._looks[t]) is not None]
            parts.append(columns_of(torch.stack(vectors).cpu().numpy()))
            places[tickets] = np.arange(end, end + len(tickets))
            end += len(tickets)
        self._looks.clear()
        self._runs.clear()
        if (places < 0).any():
            parts.append(UNMEASURED)
            places[places < 0] = end
        return StatsColumns.joined(parts).take(places) if parts else EMPTY

    def _table(self, tensor: Tensor) -> DeviceTable | None:
        """Return the table that the fused kernel measures this tensor into; None of what it does not measure."""
        if type(tensor) not in _PLAIN or not tensor.is_cuda or tensor.dtype not in FUSED or not has_triton():
            return None
        if (
            tensor.layout is not torch.strided
            or tensor.is_neg()
            or tensor.is_nested
            or is_functorch_wrapped_tensor(tensor)
        ):
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


def _own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a DTensor; any other tensor as it is."""
    if type(tensor) in _PLAIN:
        return tensor
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor.detach()
    with torch.no_grad():  # a detach of the whole goes through the dispatcher, 0.2 ms
        part: Tensor = to_local().detach()
    return part


def _measured(tensor: Tensor, *, histogram: bool, exact: bool = False) -> Tensor | None:
    if not is_measurable(tensor):
        return None
    try:
        return measure(tensor, histogram=histogram, exact=exact)
    except (NotImplementedError, RuntimeError, TypeError):
        if type(tensor) in _PLAIN:
            raise
        return None  # a subclass that knows no such reduction
