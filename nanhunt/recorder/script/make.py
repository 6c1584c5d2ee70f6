"""Make and start the recorder of a module that was found, with the wrappers that a tape needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanhunt.recorder.hearing import wrapped
from nanhunt.recorder.script.births import Births
from nanhunt.recorder.script.script_recorder import ScriptRecorder
from nanhunt.recorder.script.settings import Settings
from nanhunt.recorder.script.tape_mode import TapeMode
from nanhunt.training.called_through import called_through

__all__ = ["made_recorder"]


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
    recorder = ScriptRecorder(
        module,
        _bare(module),
        optimizers,
        births,
        mode,
        wrote,
        out=Path(settings.out) / (f"model-{ride + 1}" if ride else ""),
        every=settings.every,
        keep=settings.keep,
        start_step=_steps_done(optimizers[0]),
    )
    recorder.__enter__()
    hooks = recorder._hooks
    hooks.enter_context(wrapped(torch.Tensor, "backward", lambda args, kwargs: mode.remove(), None))
    hooks.enter_context(_without(mode, torch.optim.Optimizer, "zero_grad"))
    hooks.enter_context(_without(mode, nn.Module, "zero_grad"))
    hooks.enter_context(_scaling(mode, recorder))
    return recorder


def _bare(module: nn.Module) -> nn.Module:
    """Return the module inside of wrappers: DDP, DataParallel, torch.compile."""
    inner = getattr(module, "_orig_mod", None)
    if inner is None and isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner = module.module
    return _bare(inner) if isinstance(inner, nn.Module) else module


def _steps_done(optimizer: torch.optim.Optimizer) -> int:
    """Return how many updates an optimizer counts that was loaded from a checkpoint; 0 where it counts none."""
    for state in optimizer.state.values():
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, (int, float, torch.Tensor)) and (not isinstance(step, torch.Tensor) or step.numel() == 1):
            return int(step)
    return 0


def _without(mode: TapeMode, owner: Any, name: str) -> AbstractContextManager[None]:
    """Let a function that goes through all parameters run without the mode."""
    return called_through(owner, name, lambda call, *args, **kwargs: _lifted(mode, call))


def _scaling(mode: TapeMode, recorder: ScriptRecorder) -> AbstractContextManager[None]:
    """Take what a gradient scaler makes of a loss for the loss."""

    def scale(call: Callable[[], Any], scaler: Any, outputs: Any) -> Any:
        result = _lifted(mode, call)
        recorder.scaled(result, outputs)
        return result

    return called_through(torch.amp.GradScaler, "scale", scale)


def _lifted(mode: TapeMode, call: Callable[[], Any]) -> Any:
    with mode.lifted():
        return call()
