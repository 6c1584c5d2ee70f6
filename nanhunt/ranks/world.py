"""World: the processes that torchrun started, and the few words that they exchange beside the training.

How it works. The user's own collectives run in torch's default group. What nanhunt says goes through a second group, on
the host (gloo), so that neither can be taken for the other. A word that does not come in time (`pace`) ends the replay: no
rank waits for ever. What must reach a rank that waits inside of a collective of the user's goes by torch's key-value
store (`board`), which another thread reads (`lookout`).

The processes are of one job and trust each other as torch's own object collectives do, which pickle.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from nanhunt.errors import NanhuntError, UsageError
from nanhunt.ranks.board import Board
from nanhunt.ranks.pace import PATIENCE, Pace
from nanhunt.training.launch import is_launched, local_rank, rank_and_size

__all__ = ["RankLostError", "World", "entered", "is_of_a_lost_rank", "own_device"]

#: Seconds between two looks of a rank that has left a step, at whether the others come out of it.
_OFTEN = 0.1
#: What gloo says of a peer that is not there any more.
_GONE = (
    "Connection closed",
    "Connection reset",
    "Connection refused",
    "Broken pipe",
    "Read error",
    "Timed out waiting",
)

_T = TypeVar("_T")


class RankLostError(NanhuntError):
    """Another rank has gone, or does not answer."""


def is_of_a_lost_rank(error: BaseException) -> bool:
    """Whether an exception is what torch raises where a peer of a collective has gone, or does not come."""
    text = str(error)
    is_of_gloo = "/gloo/" in text and any(sign in text for sign in _GONE)
    return is_of_gloo or isinstance(error, dist.DistBackendError | dist.DistNetworkError)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One process among all; `size` is at least 2."""

    rank: int
    size: int
    #: the host's own group
    group: Any
    board: Board
    pace: Pace = field(default_factory=Pace)

    def summed(self, values: Sequence[float], *, briefly: bool = False) -> list[float]:
        """Return the sums over all ranks: the one exchange of a healthy step. Raises RankLostError.

        `briefly` waits no longer than the others may need to come out of a step that this rank has left.
        """
        table = torch.tensor(values, dtype=torch.float64)
        with _answered():
            work = dist.all_reduce(table, group=self.group, async_op=True)
            assert work is not None
            if briefly:
                self._await_others(work)
            work.wait(timedelta(seconds=self.pace.patience))
        found: list[float] = table.tolist()
        return found

    def _await_others(self, work: dist.Work) -> None:
        ends = time.monotonic() + 2 * self.pace.grace
        while not work.is_completed():
            if time.monotonic() > ends or self.board.is_any_cut_off():
                raise RankLostError("the other ranks do not come out of a step that this one has left")
            time.sleep(_OFTEN)

    def took(self, seconds: float) -> None:
        """Count a step; where it was a slow one, all groups wait longer for the next."""
        before = self.pace.patience
        self.pace.took(seconds)
        if self.pace.patience > before:
            _wait_longer(timedelta(seconds=self.pace.patience))

    def gathered(self, value: _T) -> list[_T]:
        """Return every rank's value, by rank. Raises RankLostError."""
        values: list[Any] = [None] * self.size
        with _answered():
            dist.all_gather_object(values, value, group=self.group)
        return values

    def told(self, value: _T | None, *, by: int) -> _T:
        """Return the value that rank `by` gives. Raises RankLostError."""
        held: list[Any] = [value]
        with _answered():
            dist.broadcast_object_list(held, src=by, group=self.group, device=torch.device("cpu"))
        found: _T = held[0]
        return found

    def passed_on(self, value: _T) -> _T:
        """Give a value to the next rank, and return that of the one before, by rank around. Raises RankLostError."""
        host, theirs = torch.device("cpu"), [None]
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        give = partial(dist.send_object_list, [value], dst=after, group=self.group, device=host)
        take = partial(dist.recv_object_list, theirs, src=before, group=self.group, device=host)
        with _answered():
            # whoever gives first waits for one that takes first, or for a neighbour that comes to it
            for move in (give, take) if self.rank % 2 == 0 else (take, give):
                move()
        found: Any = theirs[0]
        return cast("_T", found)


def own_device(name: str | None) -> str | None:
    """Return the device of this rank on its host: with `cuda`, or without a name where there are GPUs, the one of its number."""
    if not is_launched() or name not in (None, "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{local_rank()}"


@contextlib.contextmanager
def entered(device: torch.device) -> Iterator[World | None]:
    """Join the other processes for the body; None where this one is alone. Raises UsageError where they do not come."""
    if not is_launched():
        yield None
        return
    from torch.distributed import distributed_c10d as c10d

    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE))
        # one that gloo alone serves, whatever the default group is made of
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE))
        board = Board.beside(c10d._get_default_store(), dist.get_rank())
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0][:200]
        raise UsageError(f"the {rank_and_size()[1]} ranks do not find each other: {said}") from error
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), group=group, board=board)
    finally:
        board.end()


def _wait_longer(patience: timedelta) -> None:
    """Let no group of the process, the user's own among them, give up earlier."""
    from torch.distributed import distributed_c10d as c10d

    for group in c10d._world.pg_map:
        backends = [group._get_backend(torch.device(kind)) for kind in {d.type for d in group._device_types}]
        told = [getattr(getattr(backend, "options", None), "_timeout", None) for backend in backends]
        if any(timeout is not None and timeout < patience for timeout in told):
            c10d._set_pg_timeout(patience, group)


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Turn what torch raises of a peer that has gone into RankLostError."""
    try:
        yield
    except RuntimeError as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise RankLostError(f"another rank has gone, or does not answer: {said}") from error
