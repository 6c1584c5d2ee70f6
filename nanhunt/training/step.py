"""One training step, in the order in which it happens: the page to read first.

forward → scale → backward → unscale → clip → step → update → schedule

Nothing here measures. A `StepWatch` is told what has just happened; it looks, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nanhunt.errors import ConfigError
from nanhunt.training.run import TrainingRun

__all__ = ["StepResult", "StepWatch", "clip_gradients", "gradient_norm", "train_step"]


class StepWatch:
    """What a watcher of a step may want to know. Every method here does nothing: override those you need."""

    def batch_read(self, micro: int, batch: Any) -> None:
        """Call with the batch of a micro-step, before its forward pass."""

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Call with a micro-step's loss as the user's function returned it, before scaling."""

    def backward_begins(self, micro: int) -> None:
        """Call before a micro-step's backward pass."""

    def gradients_ready(self) -> None:
        """Call when all gradients are accumulated and unscaled, before clipping."""

    def clipped(self) -> None:
        """Call after clipping, before the optimizer."""

    def updated(self) -> None:
        """Call after the optimizer's step, before the scheduler's."""


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


def train_step(run: TrainingRun, step: int, watch: StepWatch) -> StepResult:
    """Run one optimizer step of the user's training and return its scalars.

    Raises whatever the user's code raises. The host waits for the device at the end only, except where the gradient
    scaler itself does (`scaler.step` reads found_inf).
    """
    if run.train_step is not None:
        return _custom_step(run, step, watch)
    model, optimizer, scaler = run.model, run.optimizer, run.scaler
    lr = tuple(float(group["lr"]) for group in optimizer.param_groups)
    scale = scaler.get_scale() if scaler and scaler.is_enabled() else None
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for micro in range(run.accumulate):
        batch = run.batches.get(step, micro)
        watch.batch_read(micro, batch)
        with run.autocasting():
            loss = _checked(run.loss(model, batch))
        losses.append(loss.detach())
        watch.loss_made(micro, loss)
        share = loss / run.accumulate
        watch.backward_begins(micro)
        (scaler.scale(share) if scaler else share).backward()  # type: ignore[no-untyped-call]
    if scaler:
        scaler.unscale_(optimizer)  # before the clip: a threshold on scaled gradients is off by the loss scale
    watch.gradients_ready()
    norm, coefficient = clip_gradients(run)
    watch.clipped()
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    watch.updated()
    if run.scheduler is not None:
        run.scheduler.step()
    return StepResult(
        step=step,
        loss=float(torch.stack([value.float() for value in losses]).mean()),  # the host waits here
        grad_norm=float(norm),
        clip_coefficient=None if coefficient is None else float(coefficient),
        loss_scale=scale,
        lr=lr,
        skipped=scale is not None and scaler is not None and scaler.get_scale() < scale,
    )


def _custom_step(run: TrainingRun, step: int, watch: StepWatch) -> StepResult:
    """Run a step by the user's own function, which does backward and update itself.

    torch's global hook before each optimizer's step is the one moment at which its gradients can be seen: after the
    user's own unscaling and clipping.
    """
    assert run.train_step is not None
    lr = tuple(float(group["lr"]) for group in run.optimizer.param_groups)
    losses, norms = [], []

    def before_update(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(gradient_norm(grads, run.device))
        watch.gradients_ready()
        watch.clipped()

    handle = register_optimizer_step_pre_hook(before_update)
    try:
        for micro in range(run.accumulate):
            batch = run.batches.get(step, micro)
            watch.batch_read(micro, batch)
            with run.autocasting():
                loss = run.train_step(run.model, batch, run.optimizer)
            losses.append(_checked(loss, needs_grad=False).detach().float().to(run.device))
            watch.loss_made(micro, losses[-1])
    finally:
        handle.remove()
    watch.updated()
    if run.scheduler is not None:
        run.scheduler.step()
    return StepResult(
        step=step,
        loss=float(torch.stack(losses).mean()),
        grad_norm=float(torch.linalg.vector_norm(torch.stack(norms))) if norms else None,
        clip_coefficient=None,
        loss_scale=None,
        lr=lr,
        skipped=False,
    )


def clip_gradients(run: TrainingRun) -> tuple[Tensor, Tensor | None]:
    """Clip as the run is configured; return the gradients' norm before it, and the factor of a norm clip.

    The clip is torch's own, with torch's own dtype and its default of going on when the norm is not finite: an inf
    norm makes the factor 0 and the inf elements NaN, a NaN norm makes everything NaN. The norm that is returned is
    taken in fp32, where an fp16 norm would overflow by itself.
    """
    parameters = [p for p in run.trainable() if p.grad is not None]
    norm = gradient_norm([p.grad for p in parameters if p.grad is not None], run.device)
    if run.clip_grad_norm is not None and parameters:
        seen = torch.nn.utils.clip_grad_norm_(parameters, run.clip_grad_norm)
        return norm, torch.clamp(run.clip_grad_norm / (seen.float() + 1e-6), max=1.0)
    if run.clip_grad_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, run.clip_grad_value)
    if run.agc is not None:
        _clip_adaptively(parameters, run.agc)
    return norm, None


def gradient_norm(grads: list[Tensor], device: torch.device) -> Tensor:
    """Return the Euclidean norm of all gradients in fp32 (fp64 where any is fp64), on the device."""
    dense = [g.coalesce().values() if g.is_sparse else g for g in grads]
    dense = [torch.view_as_real(g.resolve_conj()) if g.is_complex() else g for g in dense]
    wide = torch.float64 if any(g.dtype == torch.float64 for g in dense) else torch.float32
    if not dense:
        return torch.zeros((), device=device)
    norms = [torch.linalg.vector_norm(g, dtype=wide) for g in dense]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]))
    return total


def _clip_adaptively(parameters: list[torch.nn.Parameter], factor: float, floor: float = 1e-3) -> None:
    """Clip each unit's gradient to `factor` × its weight's norm (AGC; Brock et al., 2021, arXiv 2102.06171)."""
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        dims = tuple(range(1, parameter.dim())) or None
        keep = parameter.dim() > 1
        weight_norm = torch.linalg.vector_norm(parameter.detach(), dim=dims, keepdim=keep).clamp(min=floor)
        grad_norm = torch.linalg.vector_norm(grad, dim=dims, keepdim=keep)
        limit = factor * weight_norm
        grad.copy_(torch.where(grad_norm > limit, grad * (limit / grad_norm.clamp(min=1e-6)), grad))


def _checked(loss: Any, *, needs_grad: bool = True) -> Tensor:
    """Return the loss if it is one scalar that backward can start from; say what is wrong with it if not."""
    key = "loss" if needs_grad else "train_step"
    if isinstance(loss, (int, float)) and not needs_grad:
        return torch.tensor(float(loss))  # the caller puts it on the run's device
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"{key}: the callable returned {type(loss).__name__}, expected a scalar tensor",
            hint=f"return the loss alone from the function that {key}: names in nanhunt.yaml",
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"{key}: the callable returned a tensor of shape {tuple(loss.shape)}, expected a scalar",
            hint="reduce it: loss.mean() or loss.sum()",
        )
    if needs_grad and not loss.requires_grad:
        raise ConfigError(f"{key}: the loss does not depend on any trainable parameter (requires_grad is False)")
    return loss if loss.dim() == 0 else loss.reshape(())
