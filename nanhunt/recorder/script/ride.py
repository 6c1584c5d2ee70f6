"""Find what a script trains, from the outside, and let a recorder ride along.

How it works. Until it is found, every outermost call of a module is looked at: the first in training mode, with gradients,
of a module whose parameters an optimizer holds. Where that module holds all that is trained it is recorded, and only the
calls of its class are looked at from then on. Else all that is trained is recorded, as the outermost modules that hold it
(a GAN's networks). A module whose optimizer has gone makes way for the next.

What is changed. For as long as the process lives, torch's `nn.Module.__call__` (while looking), the `__call__` of the
module's class, and the functions of `hearing`. Each calls through; their frames are taken out of an uncaught traceback.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nanhunt.recorder.script.births import Births, watch_births
from nanhunt.recorder.script.settings import Settings, Told
from nanhunt.recorder.script.traceback_frames import hide_frames

__all__ = ["Ride", "begin"]

#: Updates of other optimizers, one behind the other, after which the recorded module is taken to be trained no more.
_FOREIGN = 32


def begin(settings: Settings) -> None:
    """Begin to look for what is trained, until the process ends."""
    hide_frames()
    ride = Ride(settings, watch_births())
    atexit.register(ride.end)


class Ride:
    """What is recorded of a script. Nothing that it does raises into the script."""

    def __init__(self, settings: Settings, births: Births) -> None:
        self._settings = settings
        self._births = births
        births.lifted = self._lifted
        self._process, self._thread = os.getpid(), threading.get_ident()
        self._file = getattr(sys.modules["__main__"], "__file__", None)
        self._recorder: Any = None
        self._root: nn.Module | None = None
        self._is_seeking = True
        self._foreign = 0
        self._steps = 0
        self._rides = 0
        #: the outermost module that runs, and whether its call is recorded
        self._inside: nn.Module | None = None
        self._is_taken = False
        #: ids of the modules whose calls are recorded
        self._recorded: frozenset[int] = frozenset()
        self._undo: Callable[[], None] | None = None
        self._watch(nn.Module)
        register_optimizer_step_post_hook(self._updated)

    # --- calls of modules ----------------------------------------------------------------------------------------

    def begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Take a module's call; return whether its end is to be told."""
        if self._inside is not None or (not self._is_seeking and id(module) not in self._recorded):
            return False
        if threading.get_ident() != self._thread or os.getpid() != self._process:
            return False
        self._inside, self._is_taken = module, False
        try:
            if module.training and torch.is_grad_enabled():
                self._look_at(module)
            if self._recorder is not None and self._recorder.wants(module):
                self._is_taken = True
                self._recorder.part_begins(module, args, kwargs)
        except Exception as error:
            self._fail(error)
        return True

    def ends(self, module: nn.Module, output: Any) -> None:
        """Take what a module's call returned."""
        self._inside = None
        if self._is_taken and self._recorder is not None:
            self._recorder.forward_ends(output)

    def broke(self, module: nn.Module) -> None:
        """Note that a module's call raised."""
        self._inside = None
        if self._is_taken and self._recorder is not None:
            self._recorder.forward_broke()

    def _look_at(self, module: nn.Module) -> None:
        """Let a module that holds all that is trained be the root, else all that hold a part of it."""
        if not self._is_seeking:
            return
        optimizers = self._births.optimizers()
        trained = {id(p) for o in optimizers for g in o.param_groups for p in g["params"] if p.requires_grad}
        own = {id(p) for p in module.parameters()} & trained
        if own == trained and trained:
            self._start(module, optimizers)
        elif own:
            self._start_of_several()

    def _start(self, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Record one module, and look at the calls of its class only."""
        from nanhunt.recorder.script.make import made_recorder  # pandas and pyarrow with it

        self._root, self._recorded, self._is_seeking = module, frozenset({id(module)}), False
        self._recorder = made_recorder(module, optimizers, self._births, self._settings, self._rides, self._wrote)
        self._rides += 1
        self._watch(type(module))

    def _start_of_several(self) -> None:
        """Record all that is trained: the outermost modules that hold it."""
        from nanhunt.recorder.script.make import made_loop_recorder
        from nanhunt.recorder.script.parts import parts_of

        parts = parts_of(self._births)
        self._root, self._is_seeking = parts, False
        self._recorder = made_loop_recorder(parts, self._births, self._settings, self._rides, self._wrote)
        self._recorded = self._recorder.recorded
        self._rides += 1

    # --- updates -------------------------------------------------------------------------------------------------

    def _updated(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._recorder is None or os.getpid() != self._process:
            return
        if any(optimizer is own for own in self._recorder.optimizers):
            self._foreign = 0
            return
        self._foreign += 1
        try:
            root = self._root
            assert root is not None
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if self._foreign > _FOREIGN or any(id(p) in held for p in root.parameters()):
                self._seek_anew()
        except Exception as error:
            self._fail(error)

    def _seek_anew(self) -> None:
        """End the recording: the script trains with another optimizer by now, or another model."""
        self._finish(None)
        self._root, self._recorded, self._foreign, self._is_seeking = None, frozenset(), 0, True
        self._watch(nn.Module)

    # --- the end -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Judge what is left, and tell how much was recorded. The script has ended, and printed its traceback."""
        if os.getpid() != self._process:
            return
        if self._file is not None:  # Python takes it from a script that has ended, and import strings need it
            sys.modules["__main__"].__file__ = self._file
        try:
            self._finish(getattr(sys, "last_value", None))
            Told(steps=self._steps).write(self._settings.told)
        except Exception as error:
            self._fail(error)

    def _finish(self, error: BaseException | None) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._steps += recorder.micros
            recorder.finish(error)

    def _wrote(self, bundle: Path, lacks: str) -> None:
        Told(bundle=str(bundle), lacks=lacks).write(self._settings.told)

    def _fail(self, error: Exception) -> None:
        """Stop for good, and say so once."""
        recorder, self._recorder, self._root, self._is_seeking = self._recorder, None, None, False
        self._recorded = frozenset()
        if recorder is not None:
            self._steps += recorder.micros
            recorder.abandon()
        print(f"nanhunt has stopped recording, the training goes on: {type(error).__name__}: {error}", file=sys.stderr)

    # --- the wrapper ---------------------------------------------------------------------------------------------

    def _watch(self, kind: type[nn.Module]) -> None:
        """Look at the calls of a class's modules, and of no other class any more."""
        if self._undo is not None:
            self._undo()
        self._undo = _wrapped_calls(kind, self)
        self._kind = kind

    def _lifted(self, call: Callable[[], Any]) -> Any:
        """Run a function, torch.compile, that would take the wrapper for the module's own `__call__`."""
        if self._undo is None:
            return call()
        self._undo()
        try:
            return call()
        finally:
            self._undo = _wrapped_calls(self._kind, self)


def _wrapped_calls(kind: type[nn.Module], ride: Ride) -> Callable[[], None]:
    """Wrap a class's `__call__`; return what takes the wrapper off."""
    is_own = "__call__" in vars(kind)
    original: Any = kind.__call__

    @functools.wraps(original)
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if torch.compiler.is_compiling() or not ride.begins(self, args, kwargs):
            return original(self, *args, **kwargs)
        try:
            output = original(self, *args, **kwargs)
        except BaseException:
            ride.broke(self)
            raise
        ride.ends(self, output)
        return output

    kind.__call__ = __call__  # type: ignore[method-assign]

    def undo() -> None:
        if vars(kind).get("__call__") is not __call__:
            return  # another has wrapped it in the meantime
        if is_own:
            kind.__call__ = original  # type: ignore[method-assign]
        else:
            del kind.__call__

    return undo
