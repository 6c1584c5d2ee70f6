"""Follow: do what the leading rank says, until it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from nanhunt.bench import Bench, NotApplicableError
from nanhunt.changes import change_made, is_of_batches
from nanhunt.precision import in_precision
from nanhunt.ranks.lookout import Lookout
from nanhunt.ranks.swap import swapped
from nanhunt.ranks.world import RankLostError, World
from nanhunt.samples import Cutter, cut_to
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepWatch, train_step
from nanhunt.verdicts import scale_held_at

if TYPE_CHECKING:
    from nanhunt.hunt.state import HuntState

__all__ = ["follow"]

#: What a rank that listens puts into the exchange.
_NOTHING: tuple[str, tuple[Any, ...]] = ("", ())


def follow(state: HuntState, world: World, lookout: Lookout, leader: int) -> Any:
    """Do as the leading rank does until it is done; return what it says came of it. Raises RankLostError."""
    follower = _Follower(state, world, lookout)
    try:
        while True:
            what, details = world.told(_NOTHING, by=leader)
            if what == "done":
                return details[0]
            follower.do(what, details)
    finally:
        follower.end()


class _Follower:
    """What was told and stands."""

    def __init__(self, state: HuntState, world: World, lookout: Lookout) -> None:
        self._state = state
        self._run = state.run
        self._world = world
        self._lookout = lookout
        self._held: dict[int, Snapshot] = {}
        self._standing: list[ExitStack] = []

    def do(self, what: str, details: tuple[Any, ...]) -> None:
        """Do one thing."""
        doers: dict[str, Callable[..., None]] = {
            "step": self._step, "take": self._take, "restore": self._restore, "release": self._release,
            "leave": self._leave, "swap": self._swap,
        }  # fmt: skip
        if what in doers:
            doers[what](*details)
        else:
            self._enter(what, details)

    def end(self) -> None:
        """Take off what still stands, and give back the memory of what is still held."""
        while self._standing:
            self._leave()
        for snapshot in self._held.values():
            snapshot.release(self._run)
        self._held.clear()

    def _step(self, step: int) -> None:
        try:
            with self._lookout.step():
                train_step(self._run, step, StepWatch())
        except Exception as error:  # the leading rank judges; it may wait for us in this step
            self._lookout.leave(f"step {step} raised {type(error).__name__} under the leading rank's trial")

    def _swap(self, step: int) -> None:
        try:
            with self._lookout.step():
                swapped(self._run, self._world, step)
        except RankLostError:
            raise
        except Exception as error:
            self._lookout.leave(f"step {step} raised {type(error).__name__} on its neighbour's batch")

    def _take(self, number: int, step: int, grads: bool) -> None:
        self._run.taken = number - 1
        self._held[number] = Snapshot.take(self._run, step, grads=grads)

    def _restore(self, number: int) -> None:
        snapshot = self._held.get(number) or self._state.ring.numbered(number)
        self._run.batches.transform = None
        snapshot.restore(self._run)

    def _release(self, number: int) -> None:
        if number in self._held:
            self._held.pop(number).release(self._run)

    def _enter(self, what: str, details: tuple[Any, ...]) -> None:
        """Enter a context, and tell the leading rank what it raised here: it may be in a step of it."""
        stack, said = ExitStack(), ""
        self._standing.append(stack)
        try:
            with self._lookout.step():
                stack.enter_context(_CONTEXTS[what](self._state, *details))
        except NotApplicableError:  # it has nothing to act on here, as in a shard that was right all along
            pass
        except Exception as error:
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            self._lookout.leave(f"{what} raised {type(error).__name__} under the leading rank's trial")
        self._world.gathered(said)

    def _leave(self) -> None:
        self._standing.pop().close()


def _changed(
    state: HuntState, change: Any, onset: Any, window: Any, seen: Any, update_norms: Any
) -> AbstractContextManager[Any]:
    if is_of_batches(change) and not state.run.shares_batches:
        return contextlib.nullcontext()
    bench = Bench(
        run=state.run, ring=state.ring, onset=onset, known=state.known, window=window, seen=seen,
        update_norms=update_norms, reference=state.settings.reference_tensors,
    )  # fmt: skip
    return change_made(bench, change)


def _cut(state: HuntState, step: int, micro: int, by: str, samples: list[int]) -> AbstractContextManager[Any]:
    cutter = Cutter.of(state.run, step, micro) if state.run.shares_batches else None
    if cutter is None:
        return contextlib.nullcontext()
    return cut_to(state.run, cutter if cutter.by == by else cutter.by_removal(), samples)


#: What stands until "leave", by its word.
_CONTEXTS: dict[str, Callable[..., AbstractContextManager[Any]]] = {
    "change": _changed,
    "samples": _cut,
    "scale": lambda state, scale: scale_held_at(state.run, scale),
    "precision": lambda state, precision: in_precision(state.run, precision),
}
