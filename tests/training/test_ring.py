"""The ring is bounded in memory, in time and in steps run again, and a rewind finds the same bits wherever it starts."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nanhunt.errors import RoomError
from nanhunt.rewind import rewind
from nanhunt.training import ring as ring_module
from nanhunt.training import slots, state
from nanhunt.training.ring import FAR, MOST, REACH, SHARE, SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot, state_bytes
from nanhunt.training.step import StepWatch, train_step
from tests.training.small_net import advance, everything, run_of


class Offered(SnapshotRing):
    """A ring that notes the steps at which it holds a snapshot."""

    def taken(self) -> list[int]:
        return [s.step for s in self._kept]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every snapshot, small as it is, costs more than its share."""
    monkeypatch.setattr(ring_module, "SMALL", 0)
    monkeypatch.setattr(ring_module, "SHARE", -1.0)


def test_a_small_model_has_a_snapshot_before_every_step() -> None:
    run = run_of(steps=40)
    ring = Offered(run)
    for step in range(FAR + 10):
        ring.offer(run, step)
    assert ring.spacing == 1
    assert ring.taken() == list(range(10, FAR + 10))
    assert ring.told(run) == []


def test_large_batches_cut_the_reach_to_what_a_spike_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(steps=60)
    advance(run, 0, 1)
    monkeypatch.setattr(ring_module, "BATCH_BUDGET", 30 * run.batches.kept_bytes)
    ring = Offered(run)
    for step in range(1, 50):
        ring.offer(run, step)
        advance(run, step, step + 1)
    assert REACH <= len(ring.taken()) <= 31
    with pytest.raises(KeyError):
        run.batches.peek(ring.oldest_step - 1, 0)


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 19, 20, 50])
def test_whatever_the_budget_the_ring_reaches_back_far_enough(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    monkeypatch.setattr(ring_module, "RING_BUDGET", room * state_bytes(run))
    ring = Offered(run)
    for step in range(100, 170):
        ring.offer(run, step)
        reach = min(REACH - 1, step - 100)
        assert ring.oldest_step <= step - reach
        assert ring.nearest(step).step <= step
        assert len(ring.taken()) <= max(2, room)


@pytest.mark.parametrize("room", [2, 4, 50])
def test_a_rewind_stands_before_the_step_exactly_as_the_replay_did(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(steps=24)
    monkeypatch.setattr(ring_module, "RING_BUDGET", room * state_bytes(run))
    ring, seen = SnapshotRing(run), []
    for step in range(24):
        ring.offer(run, step)
        seen.append((everything(run), advance(run, step, step + 1)))
    for step in (23, 12, 17):
        rewind(run, ring, step)
        assert everything(run)["tensors"] == seen[step][0]["tensors"]
        assert everything(run)["state"] == seen[step][0]["state"]
        assert advance(run, step, step + 1) == seen[step][1]


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.0, 0.01, 0.1, 0.4, 0.9, 5.0])
def test_snapshots_take_their_share_of_the_time_or_are_as_far_apart_as_they_may(
    cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, clock = run_of(), Clock()
    monkeypatch.setattr(ring_module, "SMALL", 0)
    taken: list[int] = []

    class Timed(SnapshotRing):
        def _take(self, run: TrainingRun, step: int) -> Snapshot:
            taken.append(step)
            clock.now += cost
            return super()._take(run, step)

    ring = Timed(run, clock)
    for step in range(300):
        ring.offer(run, step)
        clock.now += 1.0  # the step
    gaps = {b - a for a, b in pairwise(taken)}
    assert max(gaps) <= MOST
    assert max(gaps) == MOST or cost * len(taken[1:]) <= SHARE * clock.now
    assert min(gaps) == min(MOST, max(1, -(-int(cost * 1000) // int(SHARE * 1000))))


@pytest.mark.usefixtures("dear")
@pytest.mark.parametrize("room", [2, 3, 50])
def test_a_rewind_runs_no_more_steps_again_than_is_said(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(steps=80)
    monkeypatch.setattr(ring_module, "RING_BUDGET", room * state_bytes(run))
    ring, again = SnapshotRing(run), []

    def counted(run: TrainingRun, step: int, watch: StepWatch) -> object:
        again.append(step)
        return train_step(run, step, watch)

    monkeypatch.setattr("nanhunt.rewind.train_step", counted)
    for step in range(80):
        ring.offer(run, step)
        advance(run, step, step + 1)
        if step % 9 == 0 or step == 79:
            after = Snapshot.take(run, step + 1)
            for target in {ring.oldest_step, (ring.oldest_step + step) // 2, step}:
                again.clear()
                rewind(run, ring, target)
                assert len(again) <= MOST
            after.restore(run)


@pytest.mark.usefixtures("dear")
def test_how_far_a_rewind_reaches_does_not_depend_on_the_clock() -> None:
    cheap, run = run_of(steps=90), run_of(steps=90)
    every, seldom = SnapshotRing(cheap), SnapshotRing(run)
    every._is_due = lambda step: True  # type: ignore[method-assign]
    for step in range(90):
        every.offer(cheap, step)
        seldom.offer(run, step)
        advance(run, step, step + 1)
        assert seldom.oldest_step == every.oldest_step
        run.batches.peek(seldom.nearest(seldom.oldest_step).step, 0)


@pytest.mark.usefixtures("dear")
def test_a_held_moment_is_reached_without_a_step_and_goes_with_the_next_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(steps=30)
    ring = Offered(run)
    for step in range(11):
        ring.offer(run, step)
        advance(run, step, step + 1)
    assert ring.taken() == [0]
    rewind(run, ring, 9, hold=True)
    stood = everything(run) | {"grads": None}  # which the step drops unread
    with monkeypatch.context() as patched:
        patched.setattr("nanhunt.rewind.train_step", None)
        for _ in range(2):
            rewind(run, ring, 9)
            assert everything(run) | {"grads": None} == stood
    assert ring.nearest(8).step == 0
    ring.offer(run, 11)
    assert ring.nearest(10).step == 0


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("available", [4.0, 9.0, 1e6])
def test_the_ring_takes_no_more_than_its_share_of_memory(available: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run, made = run_of(steps=60), []
    bytes_ = state_bytes(run)
    for module in (ring_module, state):
        monkeypatch.setattr(module, "SMALL", 0)
    for module in (ring_module, slots):
        monkeypatch.setattr(module, "available_memory", lambda: int(available * bytes_) + 1)
    monkeypatch.setattr(ring_module, "RING_BUDGET", 8 * bytes_)
    monkeypatch.setattr(ring_module, "SHARE", 1e9)  # as often as memory allows
    memory = slots._memory
    monkeypatch.setattr(slots, "_memory", lambda size: (made.append(size), memory(size))[1])
    ring = Offered(run)
    for step in range(60):
        ring.offer(run, step)
        advance(run, step, step + 1)
        assert len(ring.taken()) <= min(8, int(available / 2))
    assert len(made) == ring.capacity == min(8, int(available / 2))  # each is used again
    assert f"{ring.capacity} are kept in host memory" in ring.told(run)[0]


def test_without_room_for_two_the_first_is_kept_and_a_rewind_starts_there(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(steps=40)
    bytes_ = state_bytes(run)
    for module in (ring_module, slots):
        monkeypatch.setattr(module, "available_memory", lambda: 3 * bytes_)
    monkeypatch.setattr(slots, "disk_room", lambda folder: 0)
    ring, seen = Offered(run), []
    for step in range(40):
        ring.offer(run, step)
        seen.append((everything(run), advance(run, step, step + 1)))
    assert ring.taken() == [0]
    assert "no place has room for two" in ring.told(run)[0]
    rewind(run, ring, 33)
    assert everything(run)["tensors"] == seen[33][0]["tensors"]
    assert advance(run, 33, 34) == seen[33][1]


def test_without_room_for_one_it_is_said_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ring_module, slots):
        monkeypatch.setattr(module, "available_memory", lambda: 1)
    monkeypatch.setattr(slots, "disk_room", lambda folder: 0)
    with pytest.raises(RoomError, match="no room for a snapshot of") as raised:
        SnapshotRing(run_of())
    assert raised.value.exit_code == 2
    assert "TMPDIR" in str(raised.value.hint)
