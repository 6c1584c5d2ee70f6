"""Statistics that wait on the device until one copy brings them all to the host."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.stats.torch_kernel import FIELDS, decode, is_measurable, measure

__all__ = ["StatsQueue", "summarize"]


class StatsQueue:
    """Tensors are measured when they are added, and read when they are collected.

    Between the two nothing waits for the device; `collect` makes one copy per vector width and empties the queue.
    """

    def __init__(self) -> None:
        self._vectors: list[Tensor | None] = []

    def __len__(self) -> int:
        return len(self._vectors)

    def add(self, tensor: Tensor, *, histogram: bool = True) -> int:
        """Measure `tensor` as it stands and return its ticket: its index in what `collect` returns."""
        self._vectors.append(_measured(tensor, histogram=histogram))
        return len(self._vectors) - 1

    def amax(self, ticket: int) -> Tensor | None:
        """Return a tensor's largest finite magnitude as a float64 scalar on its device; None where it was not measured."""
        vector = self._vectors[ticket]
        return None if vector is None else vector[FIELDS.index("amax")]

    def collect(self) -> list[TensorStats | None]:
        """Return the statistics of all tensors added, in their order (None of one that cannot be measured)."""
        results: list[TensorStats | None] = [None] * len(self._vectors)
        groups: dict[tuple[int, torch.device], list[int]] = {}
        for ticket, vector in enumerate(self._vectors):
            if vector is not None:
                groups.setdefault((vector.numel(), vector.device), []).append(ticket)
        for tickets in groups.values():
            table = torch.stack([v for t in tickets if (v := self._vectors[t]) is not None]).cpu().numpy()
            for ticket, row in zip(tickets, table, strict=True):
                results[ticket] = decode(row)
        self._vectors.clear()
        return results


def summarize(tensor: Tensor, *, histogram: bool = True) -> TensorStats:
    """Measure one tensor now (waits for the device). Raises TypeError where it cannot be measured."""
    queue = StatsQueue()
    queue.add(tensor, histogram=histogram)
    stats = queue.collect()[0]
    if stats is None:
        raise TypeError(f"cannot measure a tensor of layout {tensor.layout} on {tensor.device}")
    return stats


def _measured(tensor: Tensor, *, histogram: bool) -> Tensor | None:
    if not is_measurable(tensor):
        return None
    try:
        return measure(tensor, histogram=histogram)
    except (NotImplementedError, RuntimeError, TypeError):
        if type(tensor) in (Tensor, nn.Parameter):
            raise
        return None  # a subclass that knows no such reduction
