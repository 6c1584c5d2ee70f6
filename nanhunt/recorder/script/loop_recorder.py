"""A recorder of a script that trains several networks: a step is a round in which each of them has been updated.

A step begins with the first call of a network. It waits for the update of every optimizer whose networks were called in
it, as often as others are updated in the meantime (five steps of a critic), and is over with the last. Its batch is its
tape. An optimizer that lets `IDLE` updates of others pass is waited for no more until it updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recorder.guard import guarded
from nanhunt.recorder.hearing import NormClip, clipped_parameters
from nanhunt.recorder.live import parameters_of
from nanhunt.recorder.present import PresentStep
from nanhunt.recorder.recipe import Recipe
from nanhunt.recorder.script.births import Births
from nanhunt.recorder.script.loop_recipe import LoopRecipe
from nanhunt.recorder.script.parts import Parts
from nanhunt.recorder.script.references import UntapedError
from nanhunt.recorder.script.script_recorder import ScriptRecorder
from nanhunt.recorder.script.step_tape import Part, StepTape
from nanhunt.recorder.script.tape import parameter_names
from nanhunt.recorder.script.tape_mode import TapeMode
from nanhunt.training.recorded_rates import settings_of

__all__ = ["LoopRecorder"]

#: Updates of others in one step, after which an optimizer is taken to rest.
IDLE = 64


class LoopRecorder(ScriptRecorder):
    """Records the training of several modules of a script."""

    def __init__(
        self,
        parts: Parts,
        optimizers: Sequence[torch.optim.Optimizer],
        births: Births,
        mode: TapeMode,
        wrote: Callable[[Path, str], None],
        **settings: Any,
    ) -> None:
        """Record what the parts are trained on; `wrote` is told of each bundle."""
        super().__init__(parts, parts, optimizers, births, mode, wrote, **settings)
        self._parts = parts
        self._paths = {id(module): name for name, module in parts.named_modules() if name} | parts.wrapped
        self._owners = {id(p): i for i, o in enumerate(optimizers) for p in parameters_of(o)}
        self._names = parameter_names(parts)
        self._looked_into: dict[str, Part] = {}
        self._step_tape: StepTape | None = None
        self._updates = 0
        self._idle: set[int] = set()
        #: optimizers that have updated in this step
        self._done: set[int] = set()
        #: the optimizer that a gradient scaler steps
        self._scaling: torch.optim.Optimizer | None = None

    @property
    def recorded(self) -> frozenset[int]:
        """The ids of the modules whose calls are recorded."""
        return frozenset(self._paths)

    def wants(self, module: nn.Module) -> bool:
        """Whether a call of this module belongs on the tape: all but an evaluation's."""
        if id(module) not in self._paths:
            return False
        if module.training or torch.is_grad_enabled():
            return True
        self._mode.remove()  # an evaluation has many calls of torch, and none is the training's
        return False

    # --- the parts' calls ----------------------------------------------------------------------------------------

    @guarded
    def part_begins(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take a call of one of the modules, before it runs."""
        if self._backwards:
            return
        self._mode.remove()
        if self._present is None or self._present.is_over:
            self._begin_tape()
        if self._step_tape is None or self._present is None:
            return
        if torch.is_autocast_enabled(self._run.device.type):
            kind = torch.get_autocast_dtype(self._run.device.type)
            self._hear_autocast({torch.float16: "fp16", torch.bfloat16: "bf16"}.get(kind))
        part = self._part(module)
        self._present.awaited |= self._owners_of(p for _, p in part.parameters) - self._idle - self._done
        try:
            self._step_tape.part_begins(part, args, kwargs)
        except UntapedError as error:
            self._step_tape.fail(f"the argument {error}")

    def _part(self, module: nn.Module) -> Part:
        path = self._paths[id(module)]
        if path not in self._looked_into:
            self._looked_into[path] = Part.of(path, self._bare.get_submodule(path))
        return self._looked_into[path]

    @guarded
    def forward_ends(self, output: Any) -> None:
        """Take what a module returned."""
        if self._step_tape is None or self._backwards:
            return
        self._step_tape.part_ends(output)
        if self._births.functions_compiled:
            self._step_tape.fail("the script compiles functions: a mode would be compiled into them")
        self._listen()

    def _listen(self) -> None:
        if self._step_tape is not None and not self._step_tape.trouble:
            self._mode.put(self._step_tape)

    def _begin_tape(self) -> None:
        self._step_tape, self._updates, self._done = None, 0, set()
        self.step({})
        if self._present is not None:
            self._step_tape = StepTape(self._names, frozenset(self._owners), self._run.device)
            batch = self._present.past.micros[-1].batch
            batch["tape"], batch["inputs"] = self._step_tape, self._step_tape.inputs
            self.micros += 1

    # --- what is heard -------------------------------------------------------------------------------------------

    @guarded
    def backward_begins(self, roots: Any, options: Mapping[str, Any]) -> None:
        """Note a backward pass."""
        self._backwards += 1
        self._mode.remove()
        self._first_forward.close()
        if self._step_tape is not None and self._present is not None:
            self._step_tape.backward_with(roots, options)
            for root in roots if isinstance(roots, Sequence) else [roots]:
                self._present.add_root(root, getattr(self._run.scaler, "_scale", None))

    @guarded
    def backward_done(self) -> None:
        """Listen again."""
        self._backwards = 0
        if self._present is not None:
            self._present.ready.clear()
        self._listen()

    @guarded
    def clip_begins(self, clip: NormClip) -> None:
        """Note a clip by a norm, and take the norm before it."""
        how: dict[str, Any] = {"norm": clip.max_norm}
        how |= {} if clip.foreach is None else {"foreach": clip.foreach}
        if clip.norm_type is None and self._step_tape is not None:
            how["total"] = self._step_tape.reference(clip.total_norm)
        elif clip.norm_type != 2.0:
            how["norm_type"] = clip.norm_type
        self._clipped(clip.parameters, **how)

    @guarded
    def clip_done(self) -> None:
        """Listen again."""
        self._listen()

    @guarded
    def value_clip_begins(self, bound: float, parameters: Any) -> None:
        """Note a clip of each element."""
        self._clipped(parameters, value=float(bound))

    def _clipped(self, parameters: Any, **bound: Any) -> None:
        self._mode.remove()  # what the clip calls is noted as the clip
        if self._step_tape is None:
            return
        given = clipped_parameters(parameters)
        names = [self._step_tape.name_of(p) for p in given]
        if not names or None in names:
            self._step_tape.fail("a clip of gradients that are not those of the networks")
            return
        self._step_tape.did("clip", of=names, **bound)
        for owner in self._owners_of(given) if not self._is_scaled else ():
            self._gradients_ready(self.optimizers[owner])

    @guarded
    def unscaled(self, optimizer: torch.optim.Optimizer) -> None:
        """Note an unscaling; a scaler's step does its own."""
        if self._scaling is None:
            self._did("unscale", optimizer)
        super().unscaled(optimizer)

    @guarded
    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the update, with its rates."""
        self._mode.remove()
        if self._scaling is not optimizer:
            self._did("update", optimizer, **_settings(optimizer))
        super(ScriptRecorder, self).update_begins(optimizer)

    @guarded
    def update_done(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that an optimizer is waited for no more."""
        super(ScriptRecorder, self).update_done(optimizer)
        self._no_more(optimizer)
        self._listen()

    @guarded
    def scaler_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that a gradient scaler steps an optimizer, or skips its step."""
        self._scaling = optimizer
        self._did("update", optimizer, **_settings(optimizer), scaled=1)

    @guarded
    def scaler_stepped(self) -> None:
        """Note that it has."""
        optimizer, self._scaling = self._scaling, None
        if self._present is not None and optimizer is not None and self._number(optimizer) not in self._done:
            super().scaler_stepped()
            self._no_more(optimizer)

    @guarded
    def scaler_updates(self) -> None:
        """Note that a gradient scaler takes its next scale."""
        if self._step_tape is not None:
            self._step_tape.did("scaler_update")

    @guarded
    def scaled(self, result: Any, losses: Any) -> None:
        """Take a loss with its scale for the loss."""
        if self._step_tape is not None and isinstance(result, Tensor) and isinstance(losses, Tensor):
            self._step_tape.alias(result, losses)

    def _no_more(self, optimizer: torch.optim.Optimizer) -> None:
        if self._present is None:
            return
        number = self._number(optimizer)
        self._done.add(number)
        self._idle.discard(number)
        self._present.awaited.discard(number)
        self._updates += 1
        if self._updates > IDLE:
            self._idle |= self._present.awaited
            self._present.awaited.clear()
        if self._present.is_over and self._step_tape is not None:
            self._step_tape.prune()
            self._history.count(self._present.past)

    @guarded
    def zeroed(self, owner: Any, *, to_none: bool) -> None:
        """Note that an optimizer or a module drops its gradients."""
        if self._step_tape is None:
            return
        if isinstance(owner, nn.Module):
            if id(owner) in self._paths:
                self._step_tape.did("zero_grad", on=self._paths[id(owner)], none=to_none)
        else:
            self._did("zero_grad", owner, none=to_none)

    @guarded
    def autocast_ended(self) -> None:
        """Note the end of autocast: weights are cast anew from here on."""
        if self._step_tape is not None:
            self._step_tape.did("uncache")

    def _owners_of(self, parameters: Iterable[Tensor]) -> set[int]:
        """Return the numbers of the optimizers that update some of these."""
        return {self._owners[id(p)] for p in parameters if id(p) in self._owners}

    def _did(self, what: str, optimizer: torch.optim.Optimizer, **how: Any) -> None:
        if self._step_tape is not None:
            self._step_tape.did(what, of=self._number(optimizer), **how)

    def _number(self, optimizer: torch.optim.Optimizer) -> int:
        return next((i for i, own in enumerate(self.optimizers) if own is optimizer), -1)

    # --- from step to step ---------------------------------------------------------------------------------------

    def _made_recipe(self, world_size: int) -> Recipe:
        self._hear_inside()
        return LoopRecipe(
            code={},
            model=self._bare,
            world_size=world_size,
            births=self._births,
            is_compiled=self._parts.is_compiled
            or any(getattr(m, "_compiled_call_impl", None) for m in self._bare.modules()),
            told=True,
        )

    def _is_behind(self, present: PresentStep) -> bool:
        return present.is_over

    def _forget(self) -> None:
        super()._forget()
        self._step_tape = None


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"lr": [float(group["lr"]) for group in optimizer.param_groups], "settings": settings_of(optimizer)}
