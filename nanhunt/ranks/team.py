"""Team: what the ranks of a replay agree on, and which of them leads.

How it works. All ranks replay the same steps, each with its own batches. After a step each looks at what it saw, and they
exchange one small sum: how many of them have something to look into, or no more data. As a rule nobody has. Rank 0 then does what a
replay in one process does besides (is the loss flat, did updates move a weight), and mostly that needs no further step.

Where a rank has something, the one that saw it first in the order of a step leads: an exception before a loss, a loss
before a gradient, and of gradients that all ranks share after their reduction the rank whose own backward pass made it.
It runs the hunt of one process, and the others follow (`conductor`). If it finds no fault, the next one leads.

Into the same sum go two numbers that tell whether weights and moments are the same on all ranks (`digest`). Where they
are not, and nothing else is wrong with the step, the ranks show each other what they hold (`parted`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nanhunt.ranks.conductor import Conductor
from nanhunt.ranks.digest import differing, digests_of, own_by_design, state_digests
from nanhunt.ranks.follow import follow
from nanhunt.ranks.lookout import Lookout
from nanhunt.ranks.parted import Held, parted_body, parted_onset
from nanhunt.ranks.sign import Sign
from nanhunt.ranks.swap import swap_body, swapped
from nanhunt.ranks.world import RankLostError, World
from nanhunt.rewind import kept, rewind
from nanhunt.trace.schema import NoteKind, Onset
from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import is_spread
from nanhunt.training.tree import tensors_of

if TYPE_CHECKING:
    from nanhunt.hunt.state import HuntState

__all__ = ["AloneError", "Team"]

_T = TypeVar("_T")


class AloneError(Exception):
    """The ranks are in different steps, and none can be run any more. What it says is why, of this rank."""


class _YieldError(BaseException):
    """The step is told of already, by another rank. No `Exception`: nothing of the hunt may catch it."""

    def __init__(self, told: Onset | Exception) -> None:
        super().__init__()
        self.told = told


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What came of an exchange."""

    #: some rank has something to look into
    signs: bool
    #: rank 0 is about to run steps
    acts: bool
    #: ranks hold different values where they must agree
    is_apart: bool
    #: how many ranks' data have ended
    ended: int


@dataclass(slots=True)
class Team:
    """The ranks of one replay, as one of them sees it."""

    world: World
    lookout: Lookout
    #: who leads until the next step
    leader: int = 0
    #: what all ranks held alike when the replay began
    _agreed: tuple[str, ...] = field(default=(), init=False)
    _is_one_model: bool = field(default=False, init=False)
    #: whose loss is not finite in this step, by rank
    _bad: list[bool] = field(default_factory=list, init=False)
    _held: Held = field(default_factory=Held, init=False)
    #: digests of each rank's batch, of the last step that was looked into
    _batches: list[dict[str, int]] = field(default_factory=list, init=False)

    def begin(self, run: TrainingRun) -> None:
        """Find out what the ranks agree on."""
        mine = state_digests(run)
        every = self.world.gathered(mine)
        apart = set(differing(every)) | own_by_design(run)
        self._agreed = tuple(n for n in every[0] if n not in apart and all(n in digests for digests in every))
        self._is_one_model = bool(self._agreed) or any(is_spread(p) for p in run.parameters().values())

    def hold(self, held: Held | None) -> None:
        """Take what this rank holds after a recorded step; None after another."""
        self._held = held or Held()
        if not self._is_one_model and self._held.result is not None:  # each rank has a model, and a clip, of its own
            self._held = replace(self._held, result=replace(self._held.result, clip_coefficient=None))

    def judged(self, state: HuntState, sign: Sign | None, judge: Callable[[], Onset | None]) -> Onset | None:
        """Return the onset that a step shows, of the first rank whose `judge` finds one. The one exchange of a step.

        Raises AloneError where this rank, or another, is not in the step: no rank can run one any more.
        """
        self.leader = 0
        judge = partial(self._own, judge)
        if self.world.rank != 0 or sign is not None:
            return self._looked_into(state, sign, judge, told=self._exchange(sign, acts=False))
        heard: list[_Told] = []

        def opened() -> None:
            heard.append(self._exchange(None, acts=True))
            self._let_others_go_first(state, heard[0])
            self._compare_batches(state)

        try:
            result = self._conducted(state, judge, opened)
        except _YieldError as end:
            if isinstance(end.told, Exception):
                raise end.told from None
            return end.told
        if not heard:
            heard.append(self._exchange(None, acts=result is not None))
            theirs = self._of_signs(state, None, judge, told=heard[0])  # a fault of this very step
            if theirs is not None:
                return theirs
            if heard[0].acts:
                self._compare_batches(state)
        if heard[0].acts:
            state.ring.let_go_of_held(state.run)
            self._done(result)
        return result

    def led(self, state: HuntState, body: Callable[[], _T]) -> _T:
        """Run the body on the leading rank, the others following; return there and here what it returned."""
        if self.world.rank != self.leader:
            found: _T = follow(state, self.world, self.lookout, self.leader)
            return found
        result = self._conducted(state, body, lambda: None)
        state.ring.let_go_of_held(state.run)
        self._done(result)
        return result

    def swap(self, state: HuntState, step: int) -> dict[str, Any] | None:
        """Run a step again on the neighbours' batches, on the rank that leads; the note's body, None where it tells nothing.

        The run is put back.
        """
        run, conductor = state.run, state.run.together
        if not isinstance(conductor, Conductor) or run.shares_batches or len(self._bad) < self.world.size:
            return None
        # a weight of a rank's own stays with the rank as its device does
        if not all(is_spread(p) or name in self._agreed for name, p in run.parameters().items()):
            return None
        with kept(run, step + 1):
            rewind(run, state.ring, step, hold=True)
            after = conductor.alike("swap", (step,), lambda: swapped(run, self.world, step))
        return swap_body(step, self._bad, after)

    def all_ended(self, reason: str) -> bool:
        """Whether every rank's data end at this step; where not, the others are told."""
        self.lookout.leave(reason)
        try:
            told = self._sum([0.0, 0.0, 0.0, 0.0, 1.0], briefly=True)
            if told.ended < self.world.size:
                self._whose_data_ended(mine=True)
        except RankLostError:
            return False
        return told.ended == self.world.size

    def least(self, value: int) -> int:
        """Return the smallest of all ranks' values."""
        return min(self.world.gathered(value))

    def _exchange(self, sign: Sign | None, *, acts: bool) -> _Told:
        """Return how many ranks have a sign, whether rank 0 is about to run steps, and whether all hold the same."""
        number = float(self._held.number(self._agreed))
        left = sign is not None and sign.order == 0
        if sign is not None and left:
            self.lookout.leave(sign.said)
        try:
            # a rank that raised may be alone: the others wait for it inside of the step that it left
            told = self._sum([float(sign is not None), float(acts), number, number**2, 0.0], briefly=left)
        except RankLostError:
            if left:
                raise AloneError("it left the step while the others waited in it") from None
            raise
        return told

    def _sum(self, mine: list[float], *, briefly: bool) -> _Told:
        signs, acting, total, squares, ended = self.world.summed(mine, briefly=briefly)
        # all numbers are equal where their variance is zero; they are whole, so this is exact
        is_apart = squares * self.world.size != total**2
        return _Told(signs=signs > 0, acts=acting > 0, is_apart=is_apart, ended=int(ended))

    def _looked_into(
        self, state: HuntState, sign: Sign | None, judge: Callable[[], Onset | None], *, told: _Told
    ) -> Onset | None:
        """Return the first onset of what ranks have to look into; behind them rank 0 does what it does besides."""
        result = self._of_signs(state, sign, judge, told=told)
        if result is None and told.acts:
            self._compare_batches(state)
            result = self._first_of(state, [0], judge)
        return result

    def _let_others_go_first(self, state: HuntState, told: _Told) -> None:
        """Look into what the others have, before rank 0 goes on with its own; raises _YieldError where that tells the step."""
        conductor, state.run.together = state.run.together, None
        try:
            result = self._of_signs(state, None, lambda: None, told=told)
        except (AloneError, RankLostError) as error:
            raise _YieldError(error) from error
        if result is not None:
            raise _YieldError(result)
        state.run.together = conductor

    def _of_signs(
        self, state: HuntState, sign: Sign | None, judge: Callable[[], Onset | None], *, told: _Told
    ) -> Onset | None:
        """Let ranks that have a sign look into it, one after another, until one finds a fault; then see whether ranks part."""
        if told.ended:
            raise AloneError(self._whose_data_ended(mine=False))
        every = self.world.gathered(sign) if told.signs else []
        self._bad = [s is not None and s.order == 1 for s in every]
        order = [s.rank for s in sorted(s for s in every if s is not None)]
        if order:
            self._compare_batches(state)
        result = self._first_of(state, order, judge)
        return self._parted(state) if result is None and told.is_apart else result

    def _whose_data_ended(self, *, mine: bool) -> str:
        ranks = [str(rank) for rank, ended in enumerate(self.world.gathered(mine)) if ended]
        return f"the data of rank {' and '.join(ranks)} ended before it, and no rank goes on"

    def _first_of(self, state: HuntState, order: list[int], judge: Callable[[], Onset | None]) -> Onset | None:
        """Let ranks lead one after another, and return the first onset."""
        for leader in order:
            self._lead_by(state, leader)
            result = self.led(state, judge)
            if result is not None:
                return result
        return None

    def _parted(self, state: HuntState) -> Onset | None:
        """Return the onset of ranks that part in this step; rank 0 writes what they show."""
        self.leader = 0
        step = state.rows.step
        self._compare_batches(state)
        every = self.world.gathered(self._held)
        is_one_batch = bool(self._batches[0]) and all(batch == self._batches[0] for batch in self._batches)
        body = parted_body(step, self._agreed, every, same_batch=is_one_batch)
        if not body["count"] and not body["clip"]:
            return None
        if self.world.rank == 0:
            state.writer.note(NoteKind.PARTED, body)
        return parted_onset(body)

    def _compare_batches(self, state: HuntState) -> None:
        """Find out which ranks read the same batch in this step: every rank, before one leads."""
        batch = state.run.batches.peek(state.rows.step, 0)
        self._batches = self.world.gathered(digests_of(dict(tensors_of(batch))) if batch is not None else {})
        self._lead_by(state, 0)

    def _lead_by(self, state: HuntState, leader: int) -> None:
        """Let a rank lead; of its batches this one is told whether it reads them, too, as tensor-parallel ranks do."""
        self.leader = leader
        mine, rank = self._batches[leader], self.world.rank
        others = [b for r, b in enumerate(self._batches) if r != leader] if rank == leader else [self._batches[rank]]
        state.run.shares_batches = bool(mine) and mine in others

    def _own(self, judge: Callable[[], Onset | None]) -> Onset | None:
        """Judge, and put this rank's number to what was found."""
        onset = judge()
        return None if onset is None else replace(onset, rank=self.world.rank)

    def _conducted(self, state: HuntState, body: Callable[[], _T], opened: Callable[[], None]) -> _T:
        conductor = Conductor(self.world, self.lookout, opened)
        state.run.together = conductor
        try:
            return body()
        finally:
            state.run.together = None

    def _done(self, result: object) -> None:
        self.world.told(("done", (result,)), by=self.world.rank)
