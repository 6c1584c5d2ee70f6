"""Ranks that are threads of one process: what they say to one another, without a process or a model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from nanhunt.ranks.pace import Pace

#: Seconds after which a word that does not come ends the test.
_PATIENCE = 20.0


class _Table:
    """Where each rank lays down its value, and reads all of them."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)


class ThreadWorld:
    """The words of `World`, and a board that nobody reads."""

    def __init__(self, rank: int, size: int, table: _Table) -> None:
        self.rank, self.size, self.pace = rank, size, Pace()
        self.board = SimpleNamespace(leave=lambda steps, reason: None)
        self._table = table

    def gathered(self, value: Any) -> list[Any]:
        self._table.values[self.rank] = value
        self._table.barrier.wait(_PATIENCE)
        values = list(self._table.values)
        self._table.barrier.wait(_PATIENCE)
        return values

    def summed(self, values: list[float], *, briefly: bool = False) -> list[float]:
        return [sum(column) for column in zip(*self.gathered(values), strict=True)]

    def told(self, value: Any, *, by: int) -> Any:
        return self.gathered(value)[by]

    def took(self, seconds: float) -> None:
        self.pace.took(seconds)


def by_ranks(size: int, body: Callable[[Any], Any]) -> list[Any]:
    """Run `body` on the world of each rank, side by side; return what each returned, or raised."""
    table, found = _Table(size), [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = body(ThreadWorld(rank, size, table))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
