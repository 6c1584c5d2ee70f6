"""How each change of a trial is made and read back, a file for a kind; `CHANGES` says which function makes which.

A function takes the bench and the change, and is a context manager around the window's steps. The run stands before the
window's first step when it is entered; weights, moments, generators and batches are put back by the trial afterwards, so
that it undoes only what lies outside of them: settings, hooks, patched functions. It raises NotApplicableError where
there is nothing to change.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from nanhunt import interventions as what
from nanhunt.bench import Bench, Made
from nanhunt.changes.backward_by_autograd import derived_backward
from nanhunt.changes.batches import other_batch, without_samples
from nanhunt.changes.clip import clipped_gradients
from nanhunt.changes.emulation import emulated
from nanhunt.changes.line_precision import wide_line
from nanhunt.changes.matched_norm import matched_norm
from nanhunt.changes.module_precision import wide_module
from nanhunt.changes.moments import fresh_moments
from nanhunt.changes.norm_epsilon import larger_epsilon
from nanhunt.changes.optimizer_setting import other_setting
from nanhunt.changes.other_recipe import other_recipe
from nanhunt.changes.precision import whole_step
from nanhunt.changes.rate import scaled_rate
from nanhunt.changes.redrawn import redrawn_layers
from nanhunt.changes.reference_kernels import reference_kernels
from nanhunt.changes.restored_weights import restored_weights
from nanhunt.changes.safe_argument import safe_arguments
from nanhunt.changes.scaler import fresh_scaler, halved_scale, held_scale, zeroed_gradients
from nanhunt.changes.scores import other_scores
from nanhunt.changes.second_moment import raised_floor

__all__ = ["CHANGES", "change_made", "is_of_batches"]

CHANGES: tuple[tuple[type[what.Change], Callable[[Bench, Any], AbstractContextManager[Made]]], ...] = (
    (what.Precision, whole_step),
    (what.ModulePrecision, wide_module),
    (what.LinePrecision, wide_line),
    (what.SafeArgument, safe_arguments),
    (what.Emulation, emulated),
    (what.OtherRecipe, other_recipe),
    (what.WithoutSamples, without_samples),
    (what.OtherBatch, other_batch),
    (what.LossScale, held_scale),
    (what.HalvedScale, halved_scale),
    (what.FreshScaler, fresh_scaler),
    (what.ZeroedGradients, zeroed_gradients),
    (what.SecondMomentFloor, raised_floor),
    (what.Moments, fresh_moments),
    (what.OptimizerSetting, other_setting),
    (what.Rate, scaled_rate),
    (what.MatchedNorm, matched_norm),
    (what.Clip, clipped_gradients),
    (what.Scores, other_scores),
    (what.NormEpsilon, larger_epsilon),
    (what.ReferenceKernels, reference_kernels),
    (what.RestoredWeights, restored_weights),
    (what.Redrawn, redrawn_layers),
    (what.BackwardByAutograd, derived_backward),
)


def is_of_batches(change: what.Change | None) -> bool:
    """Whether only ranks that read the leading one's batches make the change: it is one of those."""
    return isinstance(change, (what.WithoutSamples, what.OtherBatch))


def change_made(bench: Bench, change: what.Change | None) -> AbstractContextManager[Made]:
    """Return the context inside of which a change stands, on all ranks where there are several; None changes nothing."""
    if change is None:
        return nullcontext(Made(readback=["nothing was changed"]))
    make = next(function for kind, function in CHANGES if isinstance(change, kind))
    body, together = make(bench, change), bench.run.together
    # an op of its own, or samples that no other rank reads
    own = isinstance(change, what.SafeArgument) or (is_of_batches(change) and not bench.run.shares_batches)
    if together is None or own:
        return body
    details = (change, bench.onset, bench.window, bench.seen, bench.update_norms)
    return together.standing("change", details, body)
