"""Build the schedule of the learning rate: the config's, at the checkpoint's position, or the one that a Trainer logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.config import RunConfig
from nanhunt.training.recorded_rates import RecordedRates
from nanhunt.training.trainer_schedule import inferred_schedule
from nanhunt.training.user_code import call_user, resolve_callable

__all__ = ["SteppedOften", "built_scheduler"]


def built_scheduler(
    config: RunConfig, root: Path, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, assumptions: list[str]
) -> Any:
    """Return the scheduler, or None where the rate stays as the checkpoint left it, which is told."""
    if config.scheduler is None:
        return _inferred_scheduler(optimizer, checkpoint, assumptions)
    build = resolve_callable(config.scheduler.call, key="scheduler", root=root)
    # a scheduler's constructor sets initial_lr and the first rate; the checkpoint's rates are put back after it
    rates = [group["lr"] for group in optimizer.param_groups]
    with call_user("scheduler"):
        scheduler = build(optimizer, **config.scheduler.kwargs)
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        assumptions.append("scheduler: ReduceLROnPlateau steps on a metric outside of the replay: the rate stays fixed")
        return None
    if checkpoint.scheduler is None:
        assumptions.append("the checkpoint holds no scheduler state: the schedule starts anew")
        return scheduler
    saved = checkpoint.scheduler
    if set(saved) == {"last_epoch"}:  # all that torchtitan saves: the rest follows from the schedule itself
        saved = {**scheduler.state_dict(), **saved, "_step_count": saved["last_epoch"] + 1, "_last_lr": rates}
    with call_user("scheduler"):
        scheduler.load_state_dict(saved)
    if isinstance(scheduler, RecordedRates):  # a loop may set its rates behind the snapshot, in front of the update
        return scheduler
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    times = _steps_an_update(checkpoint)
    if times > 1:
        assumptions.append(
            f"scheduler: stands at {saved['last_epoch']} after {checkpoint.step} updates: it is stepped {times} times an "
            f"update, as accelerate does in a run of {times} processes"
        )
        return SteppedOften(scheduler, times)
    return scheduler


def _steps_an_update(checkpoint: Checkpoint) -> int:
    """Return how often accelerate steps a scheduler an update: once a process, unless it splits the batches."""
    position = (checkpoint.scheduler or {}).get("last_epoch")
    if checkpoint.container != "accelerate" or not checkpoint.step or not isinstance(position, int):
        return 1
    times, rest = divmod(position, checkpoint.step)
    return times if times > 1 and not rest else 1


class SteppedOften:
    """A scheduler that is stepped several times an update; its state is the scheduler's own."""

    def __init__(self, scheduler: Any, times: int) -> None:
        self.scheduler = scheduler
        self.times = times

    def step(self) -> None:
        """Step as often; one with an end, as OneCycleLR has, is left there, as accelerate does."""
        for _ in range(self.times):
            if self.scheduler._step_count <= getattr(self.scheduler, "total_steps", self.scheduler._step_count):
                self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's."""
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the scheduler's."""
        self.scheduler.load_state_dict(state)


def _inferred_scheduler(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, assumptions: list[str]) -> Any:
    """Return the schedule that a Trainer's log shows; of another checkpoint's scheduler only the last rate is known."""
    saved = checkpoint.scheduler
    if saved is None:
        return None
    found = inferred_schedule(optimizer, saved, checkpoint.extra.get("trainer_state") or {})
    if found is not None:
        schedule, told = found
        assumptions.append(told)
        return schedule
    rates = ", ".join(sorted({f"{group['lr']:g}" for group in optimizer.param_groups}))
    assumptions.append(
        f"the checkpoint holds a scheduler, the config names none: the learning rate stays fixed at {rates}"
    )
    return None
