"""The lookout: a thread that ends a rank which waits for another that will never come.

A rank whose step raises takes part in none of that step's further collectives, and the others wait in one, inside of
torch, where no exception of ours reaches them. The rank that left says so in the store. Who still is in that step
`GRACE` seconds later will not come out of it: its trace is closed with the reason, and its process ends.

A launcher whose process was killed ends the others by SIGTERM. Python acts on it between two of its own instructions, and
a rank that waits in a collective never comes to the next: the thread sees the signal in its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Self

from nanhunt.inert import printable
from nanhunt.ranks.world import World

__all__ = ["GRACE", "Lookout"]

#: Seconds that the others have to come out of a step which a rank has left.
GRACE = 10.0
#: Seconds between two looks, and ranks from which looks grow rarer: the store is one process.
_OFTEN, _MANY = 0.5, 256
_KEY = "left"
#: Seconds that the main thread has to act on a signal by itself.
_MERCY = 3.0


class Lookout:
    """Watches over one rank's steps; a context manager. `close` is called, from its thread, before the process ends."""

    def __init__(self, world: World, close: Callable[[str], None]) -> None:
        self._world = world
        self._close = close
        self._over = threading.Event()
        self._steps = 0
        self._is_inside = False
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
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False

    def leave(self, reason: str) -> None:
        """Say to the others that this rank takes no further part in the step."""
        self._world.store.set(_KEY, f"{self._steps} rank {self._world.rank}: {reason}")

    def _watch(self) -> None:
        seen, often = "", _OFTEN * max(1.0, self._world.size / _MANY)
        while not self._over.wait(often):
            if self._is_told_to_end() and not self._over.wait(_MERCY):
                self._end("the launcher ends it, as another rank has gone")
            said = self._said()
            count, _, reason = said.partition(" ")
            if said == seen or reason.startswith(f"rank {self._world.rank}:"):
                continue
            seen = said
            if self._over.wait(GRACE):
                return
            if self._is_inside and str(self._steps) == count:  # the very step that was left
                self._end(f"it waits in a step that another rank has left, and ends ({reason})")

    def _is_told_to_end(self) -> bool:
        """Whether SIGTERM has come since the last look."""
        try:
            return self._signals is not None and signal.SIGTERM in self._signals.recv(64)
        except BlockingIOError:
            return False

    def _said(self) -> str:
        """Return who left, and why; '' of nobody, and where the process that keeps the store has gone."""
        try:
            if not self._world.store.check([_KEY]):
                return ""
            text: str = self._world.store.get(_KEY).decode(errors="replace")
        except RuntimeError:
            return ""
        return text

    def _end(self, reason: str) -> None:
        with contextlib.suppress(Exception):
            self._close(reason)
        print(printable(f"rank {self._world.rank}: {reason}"), file=sys.stderr, flush=True)
        os._exit(0)
