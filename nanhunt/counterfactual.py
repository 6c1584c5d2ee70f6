"""Trials: the bad step, or the window around a spike, once more under one change.

The rules of validity. The baseline fails first, in the same process. One factor at a time. What was changed is read
back and shown. The outcome is what `verdicts.fault_of` says of a step, or the loss of the steps after a spike against
the run's own baseline: declared beforehand, the same for every trial. A change that cannot be applied is `failed`, with
its reason, never silently `persists`. After a trial the run is as it was before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor

from nanhunt.bench import Bench, NotApplicableError
from nanhunt.changes import change_made
from nanhunt.interventions import (
    BackwardByAutograd,
    Change,
    Clip,
    EarlierStep,
    FreshScaler,
    HalvedScale,
    Intervention,
    LossScale,
    MatchedNorm,
    Moments,
    OptimizerSetting,
    Outcome,
    Rate,
    SafeArgument,
    SecondMomentFloor,
    Trial,
    ZeroedGradients,
)
from nanhunt.probes.lost.watch import LostValues
from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import Replayed, replay_step
from nanhunt.rewind import kept, rewind
from nanhunt.survey import loses_at
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch
from nanhunt.verdicts import fault_of

__all__ = ["run_trial"]


#: Share of the zeros as they were, below which they are gone.
_FEWER = 0.5


def run_trial(bench: Bench, intervention: Intervention) -> Trial:
    """Run the window under `intervention` and return what came of it; the run is left as it was."""
    began = time.perf_counter()
    window, readback = bench.window, [""]
    replayed: list[Replayed] = []
    if isinstance(intervention.change, EarlierStep) and not intervention.missing:
        return _as_it_was_seen(bench, intervention, intervention.change.step)
    missing = intervention.missing or _comes_too_late(bench, intervention.change)
    with kept(bench.run, window.last + 1):  # a run that cannot be put back ends all trials, and is no trial's outcome
        try:
            if missing:
                raise NotApplicableError(missing)
            rewind(bench.run, bench.ring, window.first, hold=True)
            with change_made(bench, intervention.change) as made:
                readback = made.readback
                replayed = _run_window(bench, intervention, made.watches)
            outcome, detail = _judged(bench, replayed)
            if made.objections and outcome == "cured":
                outcome, detail = "persists", f"all is finite, but {made.objections[0]}"
            elif isinstance(intervention.change, SafeArgument) and outcome == "persists" and not made.objections:
                outcome, detail = "failed", f"another op breaks the step as well: {detail}"
        except NotApplicableError as reason:
            outcome, detail, readback = "failed", f"not applicable: {reason}", []
        except Exception as error:  # a change that breaks in the user's code, or a defect of ours, costs one trial only
            said = (str(error).splitlines() or [""])[0][:160]
            outcome, detail, readback = "failed", f"the change raised {type(error).__name__}: {said}", []
    losses = [r.result.loss for r in replayed if r.result is not None]
    first = replayed[0].result if replayed else None
    return Trial(
        name=intervention.name,
        outcome=outcome,
        detail=detail,
        readback="; ".join(readback),
        intervention=intervention.to_json(),
        loss=mean(losses) if losses else None,
        grad_norm=first.grad_norm if first else None,
        loss_before=window.loss,
        grad_norm_before=window.grad_norm,
        seconds=time.perf_counter() - began,
    )


#: What acts behind the loss, and cannot reach a fault of the forward pass in a window of one step.
_BEHIND_THE_LOSS = (
    LossScale, HalvedScale, FreshScaler, ZeroedGradients, SecondMomentFloor, Moments, OptimizerSetting, Rate, MatchedNorm,
    Clip, BackwardByAutograd,
)  # fmt: skip


def _comes_too_late(bench: Bench, change: Change | None) -> str:
    """Return why a change cannot matter; '' where it can."""
    window, onset = bench.window, bench.onset
    alone = window.first == window.last and onset.kind in ("nan", "inf", "exception") and onset.phase == "forward"
    return "the fault comes before all that this changes" if alone and isinstance(change, _BEHIND_THE_LOSS) else ""


def _as_it_was_seen(bench: Bench, intervention: Intervention, step: int) -> Trial:
    """Run a healthy step again; it persists where loss and gradient norm are those that were seen, bit for bit."""
    began = time.perf_counter()
    with kept(bench.run, bench.window.last + 1):
        rewind(bench.run, bench.ring, step)
        quiet = RowBuffer()
        again = replay_step(bench.run, step, quiet, recorded=False).result
        quiet.take()
    seen = bench.seen.get(step)
    same = again is not None and seen is not None and (again.loss, again.grad_norm) == (seen.loss, seen.grad_norm)
    said = (
        "in each bit"
        if same
        else f"{again.loss if again else 'nothing'!r}, and {seen.loss if seen else 'nothing'!r} at first"
    )
    return Trial(
        name=intervention.name,
        outcome="persists" if same else "cured",
        detail=f"step {step} gives the loss and gradient norm that were seen, {said}" if same else f"loss of step {step}: {said}",
        readback="nothing was changed",
        intervention=intervention.to_json(),
        loss=again.loss if again else None,
        grad_norm=again.grad_norm if again else None,
        loss_before=seen.loss if seen else None,
        grad_norm_before=seen.grad_norm if seen else None,
        seconds=time.perf_counter() - began,
    )  # fmt: skip


def _run_window(bench: Bench, intervention: Intervention, watches: Sequence[StepWatch]) -> list[Replayed]:
    """Run the window's steps; stop at the first that raises."""
    replayed = []
    rows = RowBuffer()
    run, window = bench.run, bench.window
    zeros = _ZeroShare(run) if window.zero_share is not None else None
    # what a control of equal norm is held to
    measured = isinstance(intervention.change, (SecondMomentFloor, BackwardByAutograd, Moments))
    for step in range(window.first, window.last + 1):
        casts = LostValues()
        probe = OpProbe(run, rows, casts, exact=True) if window.silent is not None else None
        before = _weights(run) if window.motion or measured else {}
        try:
            seen = replay_step(
                run, step, rows, recorded=False, zoom=probe, also=[*watches, *([zeros] if zeros else [])]
            )
        except DataEndedError:  # the spike was on the data's last batch
            break
        rows.take()
        replayed.append(seen)
        if window.motion:
            seen.moved = any(not torch.equal(t, before[n]) for n, t in run.weights().items())
        if measured:
            bench.update_norms.setdefault(intervention.name, {})[step] = _distance(run, before)
        if probe is not None and window.silent is not None:
            seen.lost = loses_at(window.silent or None, probe, casts)
        if zeros is not None:
            seen.zero_share = zeros.share
        if seen.error is not None:
            break
    return replayed


def _distance(run: TrainingRun, before: dict[str, Tensor]) -> float:
    """Return the Euclidean norm of what all weights moved by."""
    parts = [float((w.double() - before[n].double()).norm()) for n, w in run.weights().items()]
    return math.hypot(*parts)


def _weights(run: TrainingRun) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in run.weights().items()}


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


def _is_the_faults_own(bench: Bench, error: BaseException) -> bool:
    """Whether what a trial raised is what the fault was, and not what the change brought about."""
    return bench.onset.kind == "exception" and bench.onset.detail.startswith(f"{type(error).__name__}:")


def _was_skipped(bench: Bench, step: int) -> bool:
    return step in bench.seen and bench.seen[step].skipped


def _judged(bench: Bench, replayed: list[Replayed]) -> tuple[Outcome, str]:
    window = bench.window
    if not replayed:
        raise NotApplicableError("the data ended")
    error = replayed[-1].error
    if error is not None and not _is_the_faults_own(bench, error):
        said = (str(error).splitlines() or [""])[0][:160]
        return "failed", f"the step raised {type(error).__name__}: {said}"
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
    skipped = [
        s.step for s in replayed if s.result is not None and s.result.skipped and not _was_skipped(bench, s.step)
    ]
    if skipped:
        return "failed", f"the scaler skipped step {skipped[0]}, which it had not: what the step would do is not seen"
    if window.motion and any(s.result is not None and s.result.clip_coefficient == 0.0 for s in replayed):
        return "persists", "the clip multiplies every gradient by 0"
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
