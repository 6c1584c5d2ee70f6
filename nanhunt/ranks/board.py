"""The board: words for a rank that waits inside of a collective, left in torch's key-value store.

How it works. The store that torch's groups use is one connection under one lock, and whoever waits in it for a key holds that
lock: NCCL's first collective does so, until its peer has left an address. So the board is a connection of its own to the same
server. Nothing is waited for on it: keys are set, and asked whether they are there.

Where the server's process has gone, nobody says anything any more.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import Any

__all__ = ["Board"]

_LEFT, _CUT_OFF, _OVER = "left", "cut-off", "over"
#: Time that the server has to answer.
_CONNECTING = timedelta(seconds=60)


class Board:
    """One rank's view of it. No method raises, none waits for another rank."""

    def __init__(self, store: Any, rank: int) -> None:
        self._store = store
        self._rank = rank

    @classmethod
    def beside(cls, store: Any, rank: int) -> Board:
        """Return one on a connection of its own to a store's server; on the store itself where that is none of TCP."""
        from torch._C._distributed_c10d import PrefixStore, TCPStore  # not in every build of torch

        server = store
        while isinstance(server, PrefixStore):
            server = server.underlying_store
        if isinstance(server, TCPStore):
            server = TCPStore(server.host, server.port, is_master=False, timeout=_CONNECTING, wait_for_workers=False)
        # a launcher that starts all ranks anew may keep its server
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(PrefixStore(f"nanhunt/{attempt}", server), rank)

    def leave(self, steps: int, reason: str) -> None:
        """Say that this rank takes no further part in the step, the `steps`-th of the replay."""
        self._set(_LEFT, f"{steps} {self._rank} {reason}")

    def left(self) -> tuple[int, int, str] | None:
        """Return the number of the step that was left last, by which rank, and why; None of nobody."""
        try:
            if not self._store.check([_LEFT]):
                return None
            steps, rank, reason = self._store.get(_LEFT).decode(errors="replace").split(" ", 2)
        except RuntimeError:
            return None
        return int(steps), int(rank), reason

    def cut_off(self) -> None:
        """Say that this rank did not come out of a step which another has left."""
        self._set(_CUT_OFF, "")

    def is_any_cut_off(self) -> bool:
        """Whether a rank is: no collective of all ranks will come to its end."""
        return self._has(_CUT_OFF)

    def end(self) -> None:
        """Say that this rank has done all that it had to do."""
        self._set(f"{_OVER}/{self._rank}", "")

    def is_over(self, rank: int) -> bool:
        """Whether a rank has."""
        return self._has(f"{_OVER}/{rank}")

    def _set(self, key: str, text: str) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(key, text)
            self._store.check([key])  # a set is not answered: this answer says that the server has it

    def _has(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError:
            return False
