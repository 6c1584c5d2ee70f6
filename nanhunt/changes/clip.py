"""Gradients clipped right before each update, behind whatever clip the run has itself.

"norm" is torch's clip by the norm of all gradients that the update uses, taken in fp32. "value" is torch's clamp of each
element. "adaptive" holds each unit's gradient to a share of its weights' norm (Brock et al. 2021, arXiv:2102.06171): a
unit is a row of a matrix or an output channel, and a vector as a whole.

What was chosen. A norm that is not finite clips nothing: its factor would be 0, and 0 × inf is NaN. A fused optimizer
that a scaler left to unscale by itself holds scaled gradients, and its limit is scaled as they are.

Not covered: sparse gradients in the adaptive clip, complex ones in the clip by value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import Clip
from nanhunt.training.clip import gradient_norm
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch

__all__ = ["clipped_gradients", "scale_left"]

#: Norm that a unit's weights have at least: of weights that begin at zero nothing could ever be learned.
_FLOOR = 1e-3


@contextmanager
def clipped_gradients(bench: Bench, change: Clip) -> Iterator[Made]:
    """Clip before each update of the window."""
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in bench.run.optimizers):
        raise NotApplicableError("LBFGS takes its gradients itself, in its closure")
    clipper, readback = _Clipper(bench.run, change, bench.window.first), [f"gradients clipped by {change.how}"]
    yield Made(readback=readback, watches=[clipper])
    if not clipper.said and clipper.nonfinite:
        raise NotApplicableError("the gradients' norm is not finite: it clips nothing")
    if not clipper.said:
        raise NotApplicableError(f"no gradient is above the limit of {change.limit:.4g}")
    readback.append(clipper.said)


class _Clipper(StepWatch):
    def __init__(self, run: TrainingRun, change: Clip, first: int) -> None:
        self._run, self._change = run, change
        self._step = first - 1
        #: of the first update that was clipped
        self.said = ""
        self.nonfinite = False

    def batch_read(self, micro: int, batch: Any) -> None:
        self._step += micro == 0

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        held = [p for p in (self._run.trainable() if parameters is None else parameters) if p.grad is not None]
        scale = scale_left(self._run, held)
        before = self._norm(held) / scale
        self.nonfinite |= not math.isfinite(before)
        how, limit = self._change.how, self._change.limit
        with torch.no_grad():
            if how == "norm":
                count = _by_norm(held, before, limit)
            elif how == "value":
                count = sum(_by_value(p, limit * scale) for p in held)
            else:
                count = sum(_by_unit(p, limit * scale) for p in held)
        if count and not self.said:
            number = f", {count} {'units' if how == 'adaptive' else 'elements'}" if how != "norm" else ""
            self.said = f"gradient norm of step {self._step}: {before:.4g} → {self._norm(held) / scale:.4g}{number}"

    def _norm(self, held: Sequence[Tensor]) -> float:
        return float(gradient_norm([p.grad for p in held if p.grad is not None], self._run.device))


def scale_left(run: TrainingRun, held: Sequence[Tensor]) -> float:
    """Return the loss scale that is still in the gradients when the optimizer's update begins."""
    known = {id(p) for p in held}
    for optimizer in run.optimizers:
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor) and known & {id(p) for g in optimizer.param_groups for p in g["params"]}:
            return float(scale)
    return 1.0


def _by_norm(held: Sequence[Tensor], norm: float, limit: float) -> int:
    if not math.isfinite(norm) or norm <= limit:
        return 0
    for parameter in held:
        assert parameter.grad is not None
        parameter.grad.mul_(limit / (norm + 1e-6))  # torch's own factor
    return 1


def _by_value(parameter: Tensor, limit: float) -> int:
    """Clamp each element, an infinite one too, as torch does; return how many were beyond."""
    grad = parameter.grad
    if grad is None or grad.is_complex():
        return 0
    if grad.is_sparse:
        grad = parameter.grad = grad.coalesce()
        grad = grad._values()
    beyond = int((grad.abs() > limit).sum())
    grad.clamp_(-limit, limit)
    return beyond


def _by_unit(parameter: Tensor, share: float) -> int:
    """Clip each unit to a share of its weights' norm; return how many were beyond it."""
    grad = parameter.grad
    if grad is None or grad.is_sparse:
        return 0
    norms = _unit_norms(grad)
    limits = share * _unit_norms(parameter.detach()).clamp(min=_FLOOR)
    beyond = (norms > limits) & norms.isfinite()
    grad.copy_(torch.where(beyond, grad * (limits / norms.clamp(min=1e-6)), grad))
    return int(beyond.sum())


def _unit_norms(tensor: Tensor) -> Tensor:
    dims = tuple(range(1, tensor.dim())) or None
    wide = None if tensor.is_complex() else (torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=tensor.dim() > 1, dtype=wide)
    return norms
