"""The lookout: a thread that ends a rank which waits for another that will never come.

A rank whose step raises takes part in none of that step's further collectives, and the others wait in one, inside of
torch, where no exception of ours reaches them. The rank that left says so on the board. Who still is in that step after the
grace of its pace will not come out of it: its trace is closed with the reason, and its process ends, as one that has lost
another rank does.

A launcher whose process was killed ends the others by SIGTERM. Python acts on it between two of its own instructions, and
a rank that waits in a collective never comes to the next: the thread sees the signal in its place.

A launcher also ends all ranks as soon as one ends badly. So who is cut off waits, before it ends, for the rank that left:
that one has the finding, and writes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

from nanhunt.inert import printable
from nanhunt.ranks.world import RankLostError, World

__all__ = ["Lookout"]

#: Seconds between two looks, and ranks from which looks grow rarer: the store is one process.
_OFTEN, _MANY = 0.5, 256
#: Seconds that the main thread has to act on a signal by itself.
_MERCY = 3.0
#: What a process ends with that was interrupted.
_INTERRUPTED = 130


class Lookout:
    """Watches over one rank's steps; a context manager.

    `close` is called, from its thread, with the reason before the process ends, and returns where the trace lies.
    """

    def __init__(self, world: World, close: Callable[[str], str]) -> None:
        self._world = world
        self._close = close
        self._over = threading.Event()
        self._steps = 0
        self._is_inside = False
        #: when the last step began
        self._began = 0.0
        #: where the number of each signal comes out, and goes in
        self._signals: socket.socket | None = None
        self._woken: socket.socket | None = None
        self._before = -1
        self._thread = threading.Thread(target=self._watch, name="nanhunt-lookout", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        if threading.current_thread() is threading.main_thread():
            self._signals, self._woken = socket.socketpair()
            for end in (self._signals, self._woken):
                end.setblocking(False)
            self._before = signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(self, *of: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()
        if self._signals is not None and self._woken is not None:
            signal.set_wakeup_fd(self._before)
            self._signals.close()
            self._woken.close()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Tell that the body is a step: its collectives may wait for a rank that has left."""
        self._steps += 1
        self._began = time.monotonic()
        self._is_inside = True
        try:
            yield
            self._world.took(time.monotonic() - self._began)
        finally:
            self._is_inside = False

    def leave(self, reason: str) -> None:
        """Say to the others that this rank takes no further part in the step."""
        self._world.board.leave(self._steps, reason)

    def _watch(self) -> None:
        often = _OFTEN * max(1.0, self._world.size / _MANY)
        seen, since = None, 0.0
        while not self._over.wait(often):
            if self._is_told_to_end() and not self._over.wait(_MERCY):
                self._end("the launcher ends it, as another rank has gone", _INTERRUPTED)
            left = self._world.board.left()
            if left != seen:
                seen, since = left, time.monotonic()
            if left is None or time.monotonic() - max(since, self._began) < self._world.pace.grace:
                continue
            steps, rank, reason = left
            if rank != self._world.rank and self._is_inside and self._steps == steps:  # the very step that was left
                said = f"it waits in a step that another rank has left, and ends (rank {rank}: {reason})"
                self._end(said, RankLostError.exit_code, awaited=rank)

    def _is_told_to_end(self) -> bool:
        """Whether SIGTERM has come since the last look."""
        try:
            return self._signals is not None and signal.SIGTERM in self._signals.recv(64)
        except BlockingIOError:
            return False

    def _end(self, reason: str, code: int, *, awaited: int | None = None) -> None:
        """End the process, after the rank that is awaited has written what it found."""
        where = ""
        with contextlib.suppress(Exception):
            where = self._close(reason)
        for line in (f"rank {self._world.rank}: {reason}", where):
            print(printable(line), file=sys.stderr, flush=True)
        self._world.board.cut_off()
        ends = time.monotonic() + 3 * self._world.pace.grace
        while awaited is not None and time.monotonic() < ends and not self._world.board.is_over(awaited):
            time.sleep(_OFTEN)
        os._exit(code)
