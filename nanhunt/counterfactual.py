"""Trials: the bad step, or the window around a spike, once more under one change.

The rules of validity. The baseline fails first, in the same process. One factor at a time. What was changed is read
back and shown. The outcome is what `verdicts.fault_of` says of a step, or the loss of the steps after a spike against
the run's own baseline: declared beforehand, the same for every trial. A change that cannot be applied is `failed`, with
its reason, never silently `persists`. After a trial the run is as it was before it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from nanhunt.interventions import Intervention, Outcome, Trial
from nanhunt.precision import in_precision
from nanhunt.probes.lost.watch import LostValues
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import Replayed, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.samples import Cutter
from nanhunt.survey import loses_at
from nanhunt.trace.schema import Onset
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import SnapshotRing
from nanhunt.training.step import StepWatch
from nanhunt.verdicts import Known, fault_of, scale_held_at

__all__ = ["Bench", "Window", "at_rate", "run_trial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The steps that a trial runs, and the loss under which a spike counts as gone."""

    first: int
    last: int
    #: of a spike: the loss above which the run is away from its baseline; None where the fault is not a spike
    limit: float | None = None
    #: of a spike: the step whose loss raised the alarm
    alarm: int | None = None
    #: of a gradient underflow: the share of zero gradients that the baseline showed
    zero_share: float | None = None
    #: of a stall: whether a step that moves a weight counts as cured
    motion: bool = False
    #: of values lost silently: the source line whose ops must lose none; '' of ops without one
    silent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where trials run: the run, its snapshots, the fault."""

    run: TrainingRun
    ring: SnapshotRing
    onset: Onset
    known: Known
    window: Window


#: Share of the zeros as they were, below which they are gone.
_FEWER = 0.5


class _NotApplicableError(Exception):
    """The intervention has nothing to act on here."""


def run_trial(bench: Bench, intervention: Intervention) -> Trial:
    """Run the window under `intervention` and return what came of it; the run is left as it was."""
    began = time.perf_counter()
    run = bench.run
    outcome: Outcome
    with kept(run, bench.window.last + 1):
        try:
            with _applied(bench, intervention) as readback:
                replayed = _run_window(bench, intervention)
            outcome, detail = _judged(bench, replayed)
        except _NotApplicableError as reason:
            return Trial(
                name=intervention.name, outcome="failed", detail=str(reason), intervention=intervention.to_json()
            )
    first = replayed[0].result
    error = next((r.error for r in replayed if r.error is not None), None)
    if error is not None and bench.onset.kind != "exception":
        outcome, detail = "failed", f"the step raised {type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return Trial(
        name=intervention.name,
        outcome=outcome,
        detail=detail,
        readback="; ".join(readback),
        intervention=intervention.to_json(),
        loss=first.loss if first else None,
        grad_norm=first.grad_norm if first else None,
        seconds=time.perf_counter() - began,
    )


def _run_window(bench: Bench, intervention: Intervention) -> list[Replayed]:
    """Run the window's steps; stop at the first that raises."""
    replayed = []
    rows = RowBuffer()
    also = [_SecondMomentFloor(bench.run)] if intervention.floor_second_moment else []
    also_watch: list[StepWatch] = [*also, *([_ZeroShare(bench.run)] if bench.window.zero_share is not None else [])]
    window = bench.window
    for step in range(window.first, window.last + 1):
        casts = LostValues()
        probe = OpProbe(bench.run, rows, casts, exact=True) if window.silent is not None else None
        before = _weights(bench.run) if window.motion else {}
        try:
            seen = replay_step(bench.run, step, rows, recorded=False, zoom=probe, also=also_watch)
        except DataEndedError:  # the spike was on the data's last batch
            break
        rows.take()
        replayed.append(seen)
        if window.motion:
            seen.moved = any(not torch.equal(t, before[n]) for n, t in bench.run.parameters().items())
        if probe is not None and window.silent is not None:
            seen.lost = loses_at(window.silent or None, probe, casts)
        for watch in also_watch:
            if isinstance(watch, _ZeroShare):
                seen.zero_share = watch.share
        if seen.error is not None:
            break
    return replayed


# --- how an intervention is applied, and read back --------------------------------------------------------------------


@contextlib.contextmanager
def _applied(bench: Bench, intervention: Intervention) -> Iterator[list[str]]:
    """Stand before the window with the change made; yield the sentences of the readback."""
    run, readback = bench.run, ["nothing was changed"]
    rewind(run, bench.ring, bench.window.first)
    with contextlib.ExitStack() as stack:
        for apply in (_drop_samples, _swap_batch, _scale_rate, _hold_scale, _change_precision):
            said = apply(bench, intervention, stack)
            if said:
                readback = [*[r for r in readback if r != "nothing was changed"], said]
        if intervention.floor_second_moment:
            if not any("exp_avg_sq" in run.state_of(p) for p in run.trainable()):
                raise _NotApplicableError("the optimizer keeps no second moment")
            readback = ["exp_avg_sq raised to at least the present squared gradient before each update"]
        yield readback


def _change_precision(bench: Bench, intervention: Intervention, stack: contextlib.ExitStack) -> str | None:
    if intervention.precision is None:
        return None
    run = bench.run
    was = _precision_of(run)
    if was == intervention.precision:
        raise _NotApplicableError(f"the step runs in {was} already")
    stack.enter_context(in_precision(run, intervention.precision))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in run.model.parameters()})
    return f"precision {was} → {_precision_of(run)}: autocast {run.autocast or 'off'}, weights {', '.join(dtypes)}"


def _precision_of(run: TrainingRun) -> str:
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
    narrow = [names[p.dtype] for p in run.model.parameters() if p.dtype in names]
    return run.autocast or (narrow[0] if narrow else "fp32")


def _drop_samples(bench: Bench, intervention: Intervention, stack: contextlib.ExitStack) -> str | None:
    if not intervention.drop_samples:
        return None
    run, step, micro = bench.run, bench.onset.step, bench.onset.micro
    cutter = Cutter.of(run, step, micro)
    if cutter is None or cutter.size <= len(intervention.drop_samples):
        raise _NotApplicableError("the batch has no other samples")
    _transform(run, stack, cutter.without(intervention.drop_samples))
    names = ", ".join(map(str, intervention.drop_samples[:8]))
    if cutter.by == "replacement":
        return f"samples {names} of {cutter.size} replaced by those of step {step - 1}"
    return f"batch of {cutter.size} → {cutter.size - len(intervention.drop_samples)} samples, without {names}"


def _swap_batch(bench: Bench, intervention: Intervention, stack: contextlib.ExitStack) -> str | None:
    other = intervention.batch_of_step
    if other is None:
        return None
    run, step = bench.run, bench.onset.step
    try:
        batches = [run.batches.get(other, m) for m in range(run.accumulate)]
    except KeyError:
        raise _NotApplicableError(f"the batch of step {other} is not kept any more") from None
    rewind(run, bench.ring, bench.window.first)
    _transform(run, stack, lambda s, m, batch: batches[m] if s == step else batch)
    return f"step {step} uses the batch of step {other}"


def _scale_rate(bench: Bench, intervention: Intervention, stack: contextlib.ExitStack) -> str | None:
    if intervention.lr_factor is None:
        return None
    stack.enter_context(at_rate(bench.run, intervention.lr_factor))
    return f"learning rate of each update × {intervention.lr_factor:g}"


@contextlib.contextmanager
def at_rate(run: TrainingRun, factor: float) -> Iterator[None]:
    """Run the body with every update at a learning rate times `factor`."""
    with contextlib.ExitStack() as stack:
        for optimizer in run.optimizers:
            _scale_updates(optimizer, factor, stack)
        yield


def _scale_updates(optimizer: torch.optim.Optimizer, factor: float, stack: contextlib.ExitStack) -> None:
    """Scale what each update sees of the rate; the scheduler keeps its own."""
    step_function = optimizer.step

    def scaled(*args: Any, **kwargs: Any) -> Any:
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        try:
            return step_function(*args, **kwargs)
        finally:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    optimizer.step = scaled  # type: ignore[method-assign]
    stack.callback(lambda: setattr(optimizer, "step", step_function))


def _hold_scale(bench: Bench, intervention: Intervention, stack: contextlib.ExitStack) -> str | None:
    if intervention.loss_scale is None:
        return None
    run = bench.run
    if run.train_step is not None and not run.owned.scalers:
        raise _NotApplicableError("the user's train_step scales its own loss, by no GradScaler that can be found")
    was = run.scalers[0].get_scale() if run.scalers else 1.0
    if was == intervention.loss_scale:
        raise _NotApplicableError(f"the loss scale is {was:g} already")
    stack.enter_context(scale_held_at(run, intervention.loss_scale))
    return f"loss scale {was:g} → {intervention.loss_scale:g}"


def _transform(run: TrainingRun, stack: contextlib.ExitStack, function: Callable[[int, int, Any], Any]) -> None:
    run.batches.transform = function

    def clear() -> None:
        run.batches.transform = None

    stack.callback(clear)


def _weights(run: TrainingRun) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.parameters().items()}


class _SecondMomentFloor(StepWatch):
    """Raises Adam's second moment to the present squared gradient, so that no step is larger than its rate."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        with torch.no_grad():
            for parameter in self._run.trainable() if parameters is None else parameters:
                v = self._run.state_of(parameter).get("exp_avg_sq")
                if isinstance(v, Tensor) and parameter.grad is not None:
                    torch.maximum(v, parameter.grad.square().to(v.dtype), out=v)


class _ZeroShare(StepWatch):
    """Share of exactly zero gradient elements."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._zero = self._numel = 0

    @property
    def share(self) -> float:
        return self._zero / max(1, self._numel)

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        grads = [g for g in self._run.gradients(parameters).values() if not g.is_sparse]
        self._numel += sum(g.numel() for g in grads)
        self._zero += sum(int((g == 0).sum()) for g in grads)


# --- what came of it -------------------------------------------------------------------------------------------------


def _judged(bench: Bench, replayed: list[Replayed]) -> tuple[Outcome, str]:
    window = bench.window
    for seen in replayed:
        fault = fault_of(seen, bench.known)
        if fault is not None:
            return "persists", f"step {seen.step}: {fault.detail}"
        if seen.finite.grads and bench.onset.kind in ("nan", "inf"):
            # a scaler that skips the step hides the fault; it does not cure it
            return (
                "persists",
                f"step {seen.step}: gradient of {seen.finite.grads[0]} is not finite, the step was skipped",
            )
    if window.motion:
        moved = any(seen.moved for seen in replayed)
        return ("cured", "weights move") if moved else ("persists", "no weight moves")
    if window.silent is not None:
        lost = replayed[0].lost
        return ("persists", "the same op loses values") if lost else ("cured", "that op loses nothing")
    if window.zero_share is not None:
        share = replayed[0].zero_share or 0.0
        said = f"{share:.1%} of the gradient is zero, {window.zero_share:.1%} as it was"
        return ("cured" if share < _FEWER * window.zero_share else "persists"), said
    if window.limit is None:
        return "cured", "loss, gradients, weights and buffers are finite"
    by_step = {r.step: r.result.loss for r in replayed if r.result is not None}
    losses = [*by_step.values()]
    away = [step for step, loss in by_step.items() if not math.isfinite(loss) or loss > window.limit]
    said = f"mean loss {mean(losses):.4g} over steps {window.first} to {window.last}, baseline below {window.limit:.4g}"
    # the alarm's own step decides: a spike that is over after two steps was a spike all the same
    return ("persists" if window.alarm in away or len(away) * 3 > len(losses) else "cured"), said
