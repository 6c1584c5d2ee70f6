"""A recorder that is shown no batch: it takes what the model is called with, and tapes what becomes of the output.

A micro-step begins with the first forward pass after a backward pass. Its batch is the tape: the arguments of the model's
calls, and the calls that lead from their outputs to what backward begins with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recorder.alarm import Fault
from nanhunt.recorder.guard import guarded
from nanhunt.recorder.live import on_first_forward, parameters_of
from nanhunt.recorder.recipe import Recipe
from nanhunt.recorder.recorder import Recorder
from nanhunt.recorder.script.births import Births
from nanhunt.recorder.script.references import UntapedError
from nanhunt.recorder.script.script_recipe import ScriptRecipe
from nanhunt.recorder.script.tape import Tape, parameter_names
from nanhunt.recorder.script.tape_mode import TapeMode
from nanhunt.training.replicated import BYPASSED, Replication, replication_of, unkept

__all__ = ["ScriptRecorder"]


class ScriptRecorder(Recorder):
    """Records the training of one module of a script."""

    def __init__(
        self,
        called: nn.Module,
        bare: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        births: Births,
        mode: TapeMode,
        wrote: Callable[[Path, str], None],
        **settings: Any,
    ) -> None:
        """Record what `called`, a wrapper around `bare` or that itself, is trained on; `wrote` is told of each bundle."""
        optimizer = optimizers[0] if len(optimizers) == 1 else list(optimizers)
        super().__init__(called, optimizer, scaler=births.scaler(), **settings)
        self._called = called
        self._bare = bare
        self._births = births
        self._mode = mode
        self._wrote = wrote
        self._tape: Tape | None = None
        self._has_backward = False
        self._backwards = 0
        #: optimizers that have updated since the last backward pass, and the one whose update began with gradients
        self._updated: set[int] = set()
        self._begun: torch.optim.Optimizer | None = None
        self._first_forward = contextlib.ExitStack()
        self.optimizers = tuple(optimizers)
        #: micro-steps that were begun
        self.micros = 0

    @property
    def is_on(self) -> bool:
        """Whether it has not given up."""
        return self._on

    @property
    def next_step(self) -> int:
        """The number of the step that comes."""
        return self._next

    def wants(self, module: nn.Module) -> bool:
        """Whether a call of this module is to be taken."""
        return module is self._called and module.training and torch.is_grad_enabled()

    # --- the model's calls ---------------------------------------------------------------------------------------

    @guarded
    def part_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take a call of the model, before it runs."""
        if self._backwards:  # activation checkpointing runs the whole model again
            return
        self._mode.remove()
        if self._tape is None or self._has_backward:
            self._begin_micro()
        if self._tape is None:
            return
        try:
            self._tape.model_begins(self._bare, args, kwargs)
        except UntapedError as error:
            raise ValueError(f"the model's argument {error}") from None

    @guarded
    def forward_ends(self, output: Any) -> None:
        """Take what the model returned, and begin to listen to what becomes of it."""
        self._first_forward.close()
        if self._tape is None or self._backwards:
            return
        self._tape.model_ends(output)
        if self._births.functions_compiled:
            self._tape.fail("the script compiles functions: a mode would be compiled into them")
        elif not self._tape.trouble:
            self._mode.put(self._tape)

    def forward_broke(self) -> None:
        """Note that the model raised."""
        self._mode.remove()

    def _begin_micro(self) -> None:
        names = parameter_names(self._bare)
        trained = frozenset(id(p) for o in self._births.optimizers() for p in parameters_of(o))
        self._tape, self._has_backward = None, False
        self.step({})
        if self._present is not None:
            self._tape = Tape(names, trained, self._run.device)
            self._present.past.micros[-1].batch["tape"] = self._tape
            self._present.past.micros[-1].batch["inputs"] = self._tape.inputs
            self.micros += 1

    # --- what is heard -------------------------------------------------------------------------------------------

    @guarded
    def backward_begins(self, roots: Any, options: Mapping[str, Any]) -> None:
        """Let the tape end with what backward begins with."""
        self._backwards += 1
        self._updated.clear()
        self._mode.remove()
        if self._tape is not None and self._present is not None:
            one = roots[0] if isinstance(roots, Sequence) and len(roots) == 1 else roots
            self._tape.backward_from(one)
            self._has_backward = True
            self._tape.prune()
            self._history.count(self._present.past)
            whole = self._tape.whole()
            if whole is not None:
                self._present.add_whole(*whole)
        super().backward_begins(roots, options)

    @guarded
    def backward_done(self) -> None:
        """Listen to the model again."""
        self._backwards = 0
        super().backward_done()

    @guarded
    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop the tape: what comes is the update.

        A loop that gives its forward and backward pass to `step` as a closure, as Lightning does, has no gradient yet.
        """
        self._mode.remove()
        has_gradients = self._present is not None and id(optimizer) not in self._updated
        self._begun = optimizer if has_gradients else None
        if self._begun is not None:
            super().update_begins(optimizer)

    @guarded
    def update_done(self, optimizer: torch.optim.Optimizer) -> None:
        """Note an update; its gradients are looked at now where they were made inside of it."""
        if self._begun is not optimizer and self._present is not None:
            self._gradients_ready(optimizer)
            if self._look is not None:  # it did not see what the update started from
                self._look.drop()
                self._judged.looks.pop(self._present.past.step, None)
                self._look = None
        self._updated.add(id(optimizer))
        super().update_done(optimizer)

    @guarded
    def scaled(self, result: Any, losses: Any) -> None:
        """Take a loss with its scale for the loss."""
        if self._tape is not None and isinstance(result, Tensor) and isinstance(losses, Tensor):
            self._tape.alias(result, losses)

    def zeroed(self, owner: Any, *, to_none: bool) -> None:
        """Take that an optimizer or a module drops its gradients."""

    # --- from step to step ---------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None) -> None:
        """Judge what is left, where no `with` ends."""
        self._mode.remove()
        self.__exit__(None if error is None else type(error), error, None)

    def abandon(self) -> None:
        """Stop without a word: another module is the one to record."""
        self._mode.remove()
        self._stop()

    def _made_recipe(self, world_size: int) -> Recipe:
        self._hear_inside()
        is_compiled = any(hasattr(m, "_orig_mod") for m in self._called.modules())
        is_compiled |= getattr(self._bare, "_compiled_call_impl", None) is not None
        return ScriptRecipe(
            code={},
            model=self._bare,
            world_size=world_size,
            births=self._births,
            is_compiled=is_compiled,
            hears_shares=False,  # the tape has the loss before its division
            replication=self._replication(),
            known=tuple(unkept(self._called)),
        )

    def _replication(self) -> Replication | None:
        """Return how gradients are averaged; of a call inside of the wrapper that is around the module they are not."""
        found = replication_of(self._called)
        is_inside = found is None and replication_of(self._bare, self._births.modules()) is not None
        return BYPASSED if is_inside else found

    def _hear_inside(self) -> None:
        """Hear an autocast that a forward pass enters itself, as those that accelerate wraps do, in its first layers."""
        if self._bare is not self._called or hasattr(self._called, "_orig_mod"):
            return
        for module in self._bare.modules():
            if next(module.parameters(recurse=False), None) is not None:
                handle = on_first_forward(module, self._run.device, self._told_autocast)
                self._first_forward.callback(handle.remove)

    def _told_autocast(self, autocast: str | None) -> None:
        if autocast is not None:
            self._hear_autocast(autocast)

    def _write(self, fault: Fault) -> None:
        before = len(self.bundles)
        past = self._history.steps.get(fault.step)
        if fault.raised is not None and past is not None and past.micros:
            past.micros[-1].batch["tape"].left_by = fault.raised
        super()._write(fault)
        if len(self.bundles) > before:
            assert isinstance(self._recipe, ScriptRecipe)
            self._wrote(self.bundles[-1], self._recipe.lacks)

    def _stop(self) -> None:
        self._first_forward.close()
        super()._stop()

    def _forget(self) -> None:
        self._mode.remove()
        self._tape = None
        super()._forget()
