"""One training step, in the order in which it happens: the page to read first.

forward → scale → backward → unscale → clip → step → update → schedule

Nothing here measures. A `StepWatch` is told what has just happened; it looks, and changes nothing.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from nanhunt.training.clip import clip_gradients
from nanhunt.training.custom_step import custom_step
from nanhunt.training.loss import checked_loss
from nanhunt.training.run import TrainingRun
from nanhunt.training.step_watch import StepResult, StepWatch

__all__ = ["StepResult", "StepWatch", "train_step"]


def train_step(run: TrainingRun, step: int, watch: StepWatch) -> StepResult:
    """Run one optimizer step of the user's training and return its scalars.

    Raises whatever the user's code raises. The host waits for the device at the end only, except where the gradient
    scaler itself does (`scaler.step` reads found_inf).
    """
    others = nullcontext() if run.together is None else run.together.step(step)
    with others, run.emulating():
        return _built_in_step(run, step, watch) if run.train_step is None else custom_step(run, step, watch)


def _built_in_step(run: TrainingRun, step: int, watch: StepWatch) -> StepResult:
    model, optimizer, scaler = run.model, run.optimizer, run.scaler
    lr = tuple(float(group["lr"]) for group in optimizer.param_groups)
    scale = scaler.get_scale() if scaler and scaler.is_enabled() else None
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for micro in range(run.accumulate):
        batch = run.batches.get(step, micro)
        watch.batch_read(micro, batch)
        with run.autocasting():
            loss = checked_loss(run.loss(model, batch), "loss")
        watch.loss_made(micro, loss)
        share = loss / run.accumulate
        losses.append(share.detach().double() * run.accumulate if run.loss_from_shares else loss.detach())
        watch.backward_begins(micro)
        (scaler.scale(share) if scaler else share).backward()  # type: ignore[no-untyped-call]
    if scaler:
        scaler.unscale_(optimizer)  # before the clip: a threshold on scaled gradients is off by the loss scale
    watch.gradients_ready()
    norm, coefficient = clip_gradients(run, watch.norms_taken)
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
