"""Whose finding stands after a step, and what becomes of a change that one rank cannot make."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from nanhunt.bench import NotApplicableError
from nanhunt.ranks import follow as following
from nanhunt.ranks.conductor import Conductor
from nanhunt.ranks.lookout import Lookout
from nanhunt.ranks.parted import Held
from nanhunt.ranks.sign import Sign
from nanhunt.ranks.team import AloneError, Team
from nanhunt.trace.schema import Onset
from nanhunt.training.step import StepResult
from tests.ranks.threads import by_ranks

STALL = Onset(kind="stall", step=5, phase="forward", detail="the loss stays")
SPIKE = Sign(order=5, severity=-3.0, rank=1)


def team_of(world: Any) -> Team:
    return Team(world=world, lookout=Lookout(world, str))


def state_of() -> Any:
    """Return what a team asks of a hunt's state."""
    run = SimpleNamespace(
        together=None, shares_batches=False, taken=0, batches=SimpleNamespace(peek=lambda step, micro: None)
    )
    ring = SimpleNamespace(let_go_of_held=lambda run: None)
    return SimpleNamespace(run=run, ring=ring, rows=SimpleNamespace(step=5))


def clipping(factor: float) -> Held:
    return Held(
        result=StepResult(
            step=5, loss=1.0, grad_norm=8.1, clip_coefficient=factor, loss_scale=None, lr=(0.1,), skipped=False
        )
    )


def looking_closer(state: Any, asked: list[int]) -> Onset:
    """Find the stall as rank 0 does, by running a step again."""
    asked.append(1)
    state.run.together.open()
    return STALL


@pytest.mark.parametrize("opens", [True, False])
def test_where_another_ranks_sign_is_nothing_rank_0s_own_finding_stands(opens: bool) -> None:
    asked: list[int] = []

    def step(world: Any) -> Onset | None:
        team, state = team_of(world), state_of()
        if world.rank == 1:
            return team.judged(state, SPIKE, lambda: None)
        return team.judged(state, None, lambda: looking_closer(state, asked) if opens else STALL)

    found = by_ranks(2, step)
    assert [onset.detail for onset in found] == [STALL.detail] * 2
    assert asked == [1] * opens  # what it counts as it judges is counted once


def test_clip_factors_on_both_sides_of_a_rounding_edge_hide_nothing() -> None:
    near = (0.12349999, 0.12350001)
    assert len({clipping(factor).number(()) for factor in near}) == 2

    def step(world: Any) -> Onset | None:
        team, state = team_of(world), state_of()
        team.hold(clipping(near[world.rank]))
        team._is_one_model = True
        return team.judged(state, None, lambda: looking_closer(state, []) if world.rank == 0 else None)

    assert [onset.detail for onset in by_ranks(2, step)] == [STALL.detail] * 2


def test_a_fault_of_another_rank_comes_before_what_rank_0_found() -> None:
    theirs = Onset(kind="nan", step=5, phase="forward", detail="loss is NaN")

    def step(world: Any) -> Onset | None:
        team, state = team_of(world), state_of()
        if world.rank == 1:
            return team.judged(state, Sign(order=1, rank=1), lambda: theirs)
        return team.judged(state, None, lambda: looking_closer(state, []))

    assert [(onset.detail, onset.rank) for onset in by_ranks(2, step)] == [("loss is NaN", 1)] * 2


def test_ranks_whose_data_go_on_are_told_whose_have_ended() -> None:
    def step(world: Any) -> Any:
        team, state = team_of(world), state_of()
        if world.rank == 2:
            return team.all_ended("data ended")
        return team.judged(state, None, lambda: looking_closer(state, []) if world.rank == 0 else None)

    first, second, ended = by_ranks(3, step)
    assert ended is False
    assert [str(error) for error in (first, second)] == ["the data of rank 2 ended before it, and no rank goes on"] * 2
    assert isinstance(first, AloneError)


def test_data_that_end_on_all_ranks_end_the_replay() -> None:
    assert by_ranks(2, lambda world: team_of(world).all_ended("data ended")) == [True, True]


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("no such layer\nat all"), "on rank 1 it raised ValueError: no such layer"), (NotApplicableError("a shard"), None)],
)  # fmt: skip
def test_a_change_that_fails_on_a_follower_fails_on_the_leader(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: str | None
) -> None:
    @contextmanager
    def failing(state: Any) -> Any:
        raise error
        yield

    monkeypatch.setitem(following._CONTEXTS, "change", failing)

    def change(world: Any) -> Any:
        lookout = Lookout(world, str)
        if world.rank == 1:
            return following.follow(SimpleNamespace(run=None), world, lookout, 0)
        conductor = Conductor(world, lookout, lambda: None)
        try:
            with conductor.standing("change", (), in_a_watched_step(lookout)):
                return "stood"
        except NotApplicableError as reason:
            return str(reason)
        finally:
            world.told(("done", ("over",)), by=0)

    assert by_ranks(2, change) == [told or "stood", "over"]


def in_a_watched_step(lookout: Lookout) -> AbstractContextManager[None]:
    """Return a context that looks, as it is entered, whether a step of it would be watched."""

    @contextmanager
    def body() -> Any:
        assert lookout._is_inside
        yield

    return body()
