"""Conductor: one rank leads, the others do the same steps, from the same moments, under the same changes.

How it works. The hunt is written for one process: it goes back, runs a step, looks, goes back again, tries a change. In a
run of several ranks a step is whole only where every rank runs it, so whoever leads says what it is about to do: take a
snapshot, restore it, run a step, put a change on and take it off. The others hear and do the same (`follow`), and nothing
else: they decide nothing, so they cannot decide otherwise.

Snapshots go by their number. All ranks take the same ones in the same order, so that they agree on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from nanhunt.bench import NotApplicableError
from nanhunt.ranks.lookout import Lookout
from nanhunt.ranks.world import World

__all__ = ["Conductor"]

_T = TypeVar("_T")


class Conductor:
    """Tells the other ranks what the leading one does. `opened` is called before the first word."""

    def __init__(self, world: World, lookout: Lookout, opened: Callable[[], None]) -> None:
        self._world = world
        self._lookout = lookout
        self._opened = opened
        self._quiet = 0
        #: something was said: the others follow
        self.is_open = False

    def tell(self, what: str, *details: Any) -> None:
        """Say one thing, unless it is part of what was said already."""
        if self._quiet:
            return
        self.open()
        self._world.told((what, details), by=self._world.rank)

    def open(self) -> None:
        """Begin to lead, where nothing was said yet: the others may have something to look into first."""
        if not self.is_open and not self._quiet:
            self._opened()
            self.is_open = True

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Run a step in the body, which the others run too."""
        if self._quiet:
            yield
            return
        self.tell("step", step)
        try:
            with self._lookout.step():
                yield
        except Exception as error:  # alone, perhaps: then the others wait in this step for what does not come
            self._lookout.leave(f"step {step} raised {type(error).__name__} on the leading rank")
            raise

    def alike(self, what: str, details: tuple[Any, ...], body: Callable[[], _T]) -> _T:
        """Do what the others do as well, and what they send one another in it. Raises whatever the body raises."""
        self.tell(what, *details)
        self._quiet += 1
        try:
            with self._lookout.step():
                return body()
        except Exception as error:
            self._lookout.leave(f"{what} raised {type(error).__name__} on the leading rank")
            raise
        finally:
            self._quiet -= 1

    @contextlib.contextmanager
    def standing(self, what: str, details: tuple[Any, ...], body: AbstractContextManager[_T]) -> Iterator[_T]:
        """Enter a context that the others enter too; steps that entering it runs are part of the word.

        Raises NotApplicableError where another rank could not enter it: what half of the ranks do tells nothing.
        """
        if self._quiet:
            with body as made:
                yield made
            return
        self.tell(what, *details)
        with contextlib.ExitStack() as stack:
            stack.callback(self.tell, "leave")  # behind the body's own end
            self._quiet += 1
            try:
                made = self._entered(what, stack, body)
            finally:
                self._quiet -= 1
            yield made

    def _entered(self, what: str, stack: contextlib.ExitStack, body: AbstractContextManager[_T]) -> _T:
        try:
            with self._lookout.step():
                made = stack.enter_context(body)
        except Exception as error:
            self._lookout.leave(f"{what} raised {type(error).__name__} on the leading rank")
            self._world.gathered("")
            raise
        for rank, said in enumerate(self._world.gathered("")):
            if said:
                raise NotApplicableError(f"on rank {rank} it raised {said}")
        return made
