"""What a step tells those who watch it, and the scalars that it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["StepResult", "StepWatch"]


class StepWatch:
    """What a watcher of a step may want to know. Every method here does nothing: override those you need."""

    def batch_read(self, micro: int, batch: Any) -> None:
        """Call with the batch of a micro-step, before its forward pass."""

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Call with a micro-step's loss as the user's function returned it, before scaling."""

    def backward_begins(self, micro: int) -> None:
        """Call before a micro-step's backward pass."""

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Call when gradients are accumulated and unscaled, before clipping; None stands for all of the run's.

        A loop with several optimizers calls it for the parameters of each.
        """

    def norms_taken(self, parameters: Sequence[Tensor], norms: Sequence[Tensor]) -> None:
        """Call with the Euclidean norm of each of these parameters' gradients, on its device, before clipping.

        A custom loop does not call it.
        """

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Call after clipping, before the optimizer."""

    def turned_to(self, phase: str) -> None:
        """Call when a custom loop turns to another phase: "unscale", "clip" or "update"."""

    def update_made(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Call when an optimizer's update of these parameters is done; the loop may go on with another forward pass."""

    def updated(self) -> None:
        """Call after the last update, before the scheduler's step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The scalars of one step, on the host."""

    step: int
    #: mean over micro-batches
    loss: float
    #: Euclidean norm of all gradients, unscaled, before clipping, in fp32; None where a custom loop hides them
    grad_norm: float | None
    clip_coefficient: float | None
    #: the loss scale that this step's backward pass used
    loss_scale: float | None
    #: learning rate of each parameter group during the step
    lr: tuple[float, ...]
    #: the gradient scaler found a non-finite gradient and left the weights alone
    skipped: bool
    #: a custom loop did so by itself, without a GradScaler that could be asked for its scale
    by_hand: bool = False
    #: what a custom loop did, in its order: "backward", "unscale", "clip", "update" …; () of the built-in step
    order: tuple[str, ...] = ()
    #: updates of a custom loop that were of different parameters: the players of a game
    players: int = 1
    #: parameters whose gradient an update used a second time, by how: "leftover" of the step before, or "twice"
    reused: tuple[tuple[str, str], ...] = ()
