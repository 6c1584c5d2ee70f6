"""The mode of torch's functions that a tape is told by, and its place among the script's own modes.

torch pops a mode by its place on the stack, so a mode that outlives the script's `with` blocks must lie below all that
the script enters: at the bottom, but for the default device, which torch wants there itself. It is put in and taken out
by unstacking those above, as torch does with the default device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode
from torch.utils._device import DeviceContext

from nanhunt.recorder.script.tape import Tape

__all__ = ["TapeMode"]

_pop: Any = _pop_mode
_push: Any = _push_mode


class TapeMode(TorchFunctionMode):
    """Tells a tape of every call, while there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._tape: Tape | None = None

    def __torch_function__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and tell of it."""
        kwargs = kwargs or {}
        tape = self._tape
        is_noted = tape is not None and _told(tape, func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException:
            if tape is not None and is_noted:
                tape.raised()
            raise
        if tape is not None and is_noted:
            try:
                tape.ends(result)
            except Exception as error:
                tape.fail(f"{type(error).__name__}: {error}")
        return result

    def put(self, tape: Tape) -> None:
        """Begin to tell this tape."""
        if self._tape is None:
            _restack(lambda modes: _above_device(modes, self))
        self._tape = tape

    def remove(self) -> None:
        """Stop. Inside of a call that it sees itself, torch has taken the mode off and puts it back: it then does nothing."""
        if self._tape is None:
            return
        self._tape = None
        _restack(lambda modes: [mode for mode in modes if mode is not self])

    @contextlib.contextmanager
    def lifted(self) -> Iterator[Tape | None]:
        """Run the body without the mode, and put it back."""
        tape = self._tape
        self.remove()
        try:
            yield tape
        finally:
            if tape is not None:
                self.put(tape)


def _told(tape: Tape, func: Any, args: Any, kwargs: Any) -> bool:
    try:
        return tape.begins(func, args, kwargs)
    except Exception as error:
        tape.fail(f"{type(error).__name__}: {error}")
        return False


def _restack(change: Any) -> None:
    """Take the stack of modes apart and put it together as `change` has it, bottom first."""
    modes: list[Any] = [_pop() for _ in range(_len_torch_function_stack())][::-1]
    for mode in change(modes):
        _push(mode)


def _above_device(modes: list[Any], own: TapeMode) -> list[Any]:
    bottom = [m for m in modes if isinstance(m, DeviceContext)]
    # one that a call of itself left behind is put anew
    return [*bottom, own, *(m for m in modes if m is not own and not isinstance(m, DeviceContext))]
