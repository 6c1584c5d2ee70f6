"""Together: what a run is told of other ranks that do the same steps."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

__all__ = ["Together"]

_T = TypeVar("_T")


class Together(Protocol):
    """Whoever leads other ranks tells them each step, snapshot and change before it makes it."""

    def open(self) -> None:
        """Begin: what the other ranks look into first, and snapshots they take for it, come before the first word."""

    def tell(self, what: str, *details: Any) -> None:
        """Tell one thing."""

    def step(self, step: int) -> AbstractContextManager[None]:
        """Return a context around a step that the others run as well."""

    def standing(
        self, what: str, details: tuple[Any, ...], body: AbstractContextManager[_T]
    ) -> AbstractContextManager[_T]:
        """Return a context that stands on all ranks."""
