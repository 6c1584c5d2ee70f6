"""Make and start the recorder of a module that was found, with the wrappers that a tape needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanhunt.recorder.hearing import unwrapped, wrapped
from nanhunt.recorder.script.births import Births
from nanhunt.recorder.script.loop_recorder import LoopRecorder
from nanhunt.recorder.script.parts import Parts, bare_module
from nanhunt.recorder.script.script_recorder import ScriptRecorder
from nanhunt.recorder.script.settings import Settings
from nanhunt.recorder.script.tape_mode import TapeMode
from nanhunt.training.called_through import called_through

__all__ = ["made_loop_recorder", "made_recorder"]


def made_recorder(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    births: Births,
    settings: Settings,
    ride: int,
    wrote: Callable[[Path, str], None],
) -> ScriptRecorder:
    """Return a recorder that has begun, of the script's module number `ride`."""
    mode = TapeMode()
    told = _settings(settings, ride, optimizers)
    return _begun(ScriptRecorder(module, bare_module(module), optimizers, births, mode, wrote, **told), mode)


def made_loop_recorder(
    parts: Parts, births: Births, settings: Settings, ride: int, wrote: Callable[[Path, str], None]
) -> LoopRecorder:
    """Return a recorder that has begun, of all that the script trains."""
    mode = TapeMode()
    optimizers = births.optimizers()
    told = _settings(settings, ride, optimizers)
    recorder = LoopRecorder(parts, optimizers, births, mode, wrote, **told)
    _begun(recorder, mode)
    scaler = torch.amp.GradScaler
    for owner, name, before, after in (
        (torch.autocast, "__exit__", None, lambda args, kwargs: recorder.autocast_ended()),
        (scaler, "step", lambda args, kwargs: recorder.scaler_begins(_stepped(*args, **kwargs)), None),
        (scaler, "update", None, lambda args, kwargs: recorder.scaler_updates()),
    ):
        recorder._hooks.enter_context(wrapped(owner, name, before, after))
    many: list[tuple[Any, str]] = [(scaler, "unscale_"), (nn.utils, "clip_grad_norm_"), (nn.utils, "clip_grad_value_")]
    for place, name in many:
        recorder._hooks.enter_context(called_through(place, name, functools.partial(_without, mode)))
    return recorder


def _stepped(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = unwrapped(optimizer)
    return found


def _settings(settings: Settings, ride: int, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    return {
        "out": Path(settings.out) / (f"model-{ride + 1}" if ride else ""),
        "every": settings.every,
        "keep": settings.keep,
        "start_step": _steps_done(optimizers[0]),
    }


def _begun(recorder: ScriptRecorder, mode: TapeMode) -> ScriptRecorder:
    recorder.__enter__()
    hooks = recorder._hooks
    hooks.enter_context(wrapped(torch.Tensor, "backward", lambda args, kwargs: mode.remove(), None))
    for owner in (torch.optim.Optimizer, nn.Module):
        hooks.enter_context(_zeroing(mode, recorder, owner))
    hooks.enter_context(_scaling(mode, recorder))
    return recorder


def _steps_done(optimizer: torch.optim.Optimizer) -> int:
    """Return how many updates an optimizer counts that was loaded from a checkpoint; 0 where it counts none."""
    for state in optimizer.state.values():
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, (int, float, torch.Tensor)) and (not isinstance(step, torch.Tensor) or step.numel() == 1):
            return int(step)
    return 0


def _zeroing(mode: TapeMode, recorder: ScriptRecorder, owner: Any) -> AbstractContextManager[None]:
    """Tell of gradients that are dropped; the function goes through all parameters, and runs without the mode."""

    def zero_grad(call: Callable[[], Any], own: Any, set_to_none: bool = True) -> Any:
        recorder.zeroed(own, to_none=set_to_none)
        return _lifted(mode, call)

    return called_through(owner, "zero_grad", zero_grad)


def _scaling(mode: TapeMode, recorder: ScriptRecorder) -> AbstractContextManager[None]:
    """Take what a gradient scaler makes of a loss for the loss."""

    def scale(call: Callable[[], Any], scaler: Any, outputs: Any) -> Any:
        result = _lifted(mode, call)
        recorder.scaled(result, outputs)
        return result

    return called_through(torch.amp.GradScaler, "scale", scale)


def _without(mode: TapeMode, call: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
    """Run what goes through all gradients, and is noted as a whole, without the mode."""
    return _lifted(mode, call)


def _lifted(mode: TapeMode, call: Callable[[], Any]) -> Any:
    with mode.lifted():
        return call()
