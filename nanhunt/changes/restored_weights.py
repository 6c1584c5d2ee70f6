"""Weights and buffers of another checkpoint: of those that are not finite, or of all.

Where a tensor is not finite, only such tensors are replaced, and what an optimizer keeps of a parameter is made anew
where some of it is not finite: a second moment that is zeroed by itself would divide by nothing. Where all are finite,
all are replaced, and the question is whether the other checkpoint's weights hold. A buffer with -inf alone is a mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.changes.moments import forget_state
from nanhunt.finiteness import nonfinite_names
from nanhunt.inert import few
from nanhunt.interventions import RestoredWeights
from nanhunt.training.names import clean_name
from nanhunt.training.run import TrainingRun

__all__ = ["restored_weights"]


@contextmanager
def restored_weights(bench: Bench, change: RestoredWeights) -> Iterator[Made]:
    """Copy the other checkpoint's tensors over the run's, in place."""
    run, reference = bench.run, bench.reference
    if not reference:
        raise NotApplicableError("no other checkpoint was given (--reference)")
    bad, ill = _bad(run), _ill(run)
    live = bad if bad or ill else _saved(run)
    lost = [n for n, t in live.items() if n not in reference or reference[n].shape != t.shape]
    if lost:
        raise NotApplicableError(f"{change.checkpoint} has no tensor of this name and shape: {few(lost)}")
    changed = [n for n, t in live.items() if not torch.equal(t.detach(), reference[n].to(t))]
    if not changed and not ill:
        raise NotApplicableError(f"{change.checkpoint} has the very weights that the run has before the step")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(reference[name])
    said = (
        [f"{len(changed)} tensor{'s'[: len(changed) > 1]} replaced by those of {change.checkpoint}: {few(changed)}"]
        if changed
        else []
    )
    if ill:
        said.append(
            f"what the optimizer keeps of {forget_state(run, ill.values())} parameters made anew: {few([*ill])}"
        )
    still = [n for n, t in live.items() if n in bad and _is_bad(t)]
    if still:
        raise NotApplicableError(f"{change.checkpoint} has values that are not finite too: {few(still)}")
    yield Made(readback=said)


def _bad(run: TrainingRun) -> dict[str, Tensor]:
    """Return the weights and buffers that are not finite."""
    parameters = run.parameters()
    return {n: parameters[n] for n in nonfinite_names(parameters)} | {
        n: b for n, b in run.buffers().items() if _is_bad(b)
    }


def _is_bad(tensor: Tensor) -> bool:
    values = tensor.detach()
    return bool((values.isnan() | (values == math.inf)).any())


def _ill(run: TrainingRun) -> dict[str, Tensor]:
    """Return the parameters of which an optimizer keeps something that is not finite."""
    names = nonfinite_names(run.state_tensors())
    return {n: p for n, p in run.parameters().items() if any(s.rpartition(".")[0] == n for s in names)}


def _saved(run: TrainingRun) -> dict[str, Tensor]:
    """Return all that a state dict of the model, and of modules besides it, holds."""
    return {
        f"{root}.{clean_name(name)}".lstrip("."): tensor
        for root, module in run.roots().items()
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)
    }
