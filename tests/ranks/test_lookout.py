"""What a rank hears while it waits: who has left, and the launcher."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from nanhunt.ranks import pace
from nanhunt.ranks.board import Board
from nanhunt.ranks.lookout import Lookout
from nanhunt.ranks.pace import GRACE, PATIENCE, Pace
from nanhunt.ranks.world import World


@pytest.fixture
def server() -> dist.TCPStore:
    """A launcher's store, as torch's groups use it: under prefixes."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=2))


@pytest.fixture
def handled() -> Iterator[None]:
    """SIGTERM does nothing by itself: a rank that waits in a collective never comes to its handler."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


class Ended(Lookout):
    """Says how it would end the process."""

    def __init__(self, world: Any) -> None:
        super().__init__(world, str)
        self.codes: list[int] = []
        self.said = threading.Event()

    def _end(self, reason: str, code: int, *, awaited: int | None = None) -> None:
        self.codes.append(code)
        self.said.set()
        self._over.set()


def world_of(store: Any, rank: int) -> World:
    return World(rank=rank, size=2, group=None, board=Board.beside(dist.PrefixStore("default_pg", store), rank))


def test_the_board_is_read_while_a_collective_waits_for_a_key(server: dist.TCPStore) -> None:
    mine, theirs = world_of(server, 0).board, world_of(server, 1).board

    def wait_for_a_peer() -> None:  # as NCCL's first collective does
        with pytest.raises(dist.DistStoreError):
            server.get("address of a peer")

    waiting = threading.Thread(target=wait_for_a_peer)
    waiting.start()
    began = time.monotonic()
    theirs.leave(7, "IndexError: 10 is out of bounds")
    assert mine.left() == (7, 1, "IndexError: 10 is out of bounds")
    theirs.end()
    assert (mine.is_over(1), mine.is_over(0), mine.is_any_cut_off()) == (True, False, False)
    assert time.monotonic() - began < 1.5
    waiting.join()


def test_the_board_of_a_store_without_a_server_is_the_store_itself() -> None:
    board = Board.beside(dist.HashStore(), 0)
    board.cut_off()
    assert board.is_any_cut_off()


@pytest.mark.usefixtures("handled")
def test_the_launcher_is_heard_while_a_rank_that_left_is_given_its_time(server: dist.TCPStore) -> None:
    world = world_of(server, 0)
    began = time.monotonic()
    with Ended(world) as lookout, lookout.step():
        world_of(server, 1).board.leave(1, "its data ended")
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert lookout.said.wait(GRACE)
    assert lookout.codes == [130]
    assert time.monotonic() - began < GRACE - 3.0


def test_a_rank_that_waits_in_a_step_which_was_left_ends_as_one_that_lost_another(
    server: dist.TCPStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "GRACE", 1.0)
    world = world_of(server, 0)
    world_of(server, 1).board.leave(2, "its data ended")
    with Ended(world) as lookout:
        with lookout.step():  # not the one that was left
            assert not lookout.said.wait(2.0)
        with lookout.step():
            pass
        assert not lookout.codes
    world_of(server, 1).board.leave(1, "an error")
    with Ended(world) as lookout, lookout.step():
        assert lookout.said.wait(5.0)
    assert lookout.codes == [2]


def test_slow_ranks_are_waited_for_by_their_longest_step() -> None:
    quick, slow = Pace(), Pace()
    for seconds in (0.1, 0.3, 0.2):
        quick.took(seconds)
        slow.took(100 * seconds)
    assert (quick.grace, quick.patience) == (GRACE, PATIENCE)
    assert slow.grace == 2 * 30.0
    assert slow.patience == 60 * 30.0


def test_a_slow_step_lets_no_group_give_up_before_its_time(tmp_path: Any) -> None:
    import torch
    from torch.distributed import distributed_c10d as c10d

    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1, timeout=timedelta(seconds=PATIENCE)
    )
    try:
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        board: Any = SimpleNamespace()
        World(rank=0, size=1, group=patient, board=board).took(40.0)
        groups = [c10d._get_default_group(), patient]
        waits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        assert waits == [timedelta(seconds=2400), timedelta(days=1)]
    finally:
        dist.destroy_process_group()
