"""The user's live objects as a TrainingRun, so that snapshots and probes take them as a replay's."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recorder.hearing import unwrapped
from nanhunt.training.batches import BatchSource
from nanhunt.training.loss import default_loss
from nanhunt.training.run import TrainingRun, optimizers_in

__all__ = ["live_run", "live_wrappers", "on_first_forward", "parameters_of", "rank_and_world"]


def live_run(model: nn.Module, optimizer: Any, *, scaler: Any, scheduler: Any, loss: Any) -> TrainingRun:
    """Return the run that a loop trains: the model inside DDP, the optimizers inside accelerate's.

    Raises TypeError where there is no optimizer.
    """
    optimizers = [unwrapped(o) for o in optimizers_in(optimizer)]
    if not optimizers:
        raise TypeError(f"expected an optimizer or several, got {type(optimizer).__name__}")
    inner = _bare(model)
    device = next((p.device for p in inner.parameters()), torch.device("cpu"))
    return TrainingRun(
        model=inner,
        optimizer=optimizers[0],
        handed=optimizers,
        loss=loss if callable(loss) else default_loss,
        batches=BatchSource([], first_step=0, accumulate=1, device=device),
        device=device,
        scaler=scaler,
        scheduler=scheduler,
    )


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def live_wrappers() -> list[nn.Module]:
    """Return each DistributedDataParallel of the process, which a loop may call in place of the module that it tells."""
    return [o for o in gc.get_objects() if type(o) is nn.parallel.DistributedDataParallel]


def on_first_forward(model: nn.Module, device: torch.device, told: Callable[[str | None], None]) -> Any:
    """Tell the autocast ("fp16", "bf16" or None) that stands around the model's first forward pass; return the hook."""

    def hook(module: nn.Module, args: Any) -> None:
        handle.remove()
        if torch.is_autocast_enabled(device.type):
            told({torch.float16: "fp16", torch.bfloat16: "bf16"}.get(torch.get_autocast_dtype(device.type)))

    handle = model.register_forward_pre_hook(hook)
    return handle


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return an optimizer's parameters, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _bare(model: nn.Module) -> nn.Module:
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return _bare(model.module) if isinstance(model, wrappers) else model
