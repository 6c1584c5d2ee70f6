"""Adam's health of one parameter, from its gradient and moments: the numbers that `probes.optimizer` explains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["HEALTH", "adam_health", "correction", "frozen_share", "rms", "second_moment"]

#: All that is told of a parameter that Adam moves.
HEALTH = ("frozen", "update_lr", "rms_t", "kappa_eps", "v_zero", "v_below_eps2", "v_stuck", "v_stale")


#: What numpy reads: of other classes torch's own operations are asked.
_PLAIN = (Tensor, nn.Parameter)
_NUMPYS = (torch.float16, torch.float32, torch.float64)


def adam_health(
    grad: Tensor, state: dict[str, Any], group: dict[str, Any], v_before: Tensor | None
) -> dict[str, Tensor | float | None]:
    """Return the shares and ratios that need Adam's state, by name; empty without one.

    `grad` is the gradient that the optimizer saw (unscaled, clipped); all tensors have the parameter's shape. The
    values are scalars on the parameter's device; numbers where that is the CPU.
    """
    v, m = second_moment(state), state.get("exp_avg")
    if v is None or v.shape != grad.shape:
        return {}
    eps = group.get("eps")
    if not isinstance(eps, (int, float)):  # Adafactor has two
        return {}
    if "betas" not in group:  # RMSprop: nothing is corrected for a start at zero
        return {} if v_before is None else {"v_stale": _stale(grad, v_before.double(), eps)}
    if not isinstance(m, Tensor):
        return {}
    beta2 = float(group["betas"][1])
    # Adam keeps its counter on the CPU unless it is fused or capturable: reading it there waits for nothing
    counter = state.get("step", 0)
    on_device = isinstance(counter, Tensor) and counter.device.type != "cpu"
    if not on_device and all(t is None or (t.is_cpu and type(t) in _PLAIN) for t in (grad, m, v, v_before)):
        return _health_on_cpu(grad, m, v, v_before, float(eps), beta2, float(counter))
    step = torch.full((), 0.0 if on_device else float(counter), dtype=torch.float64, device=v.device)
    step = step + counter if on_device else step
    # float64: v of 1e-30 over ε² of 1e-16 is where fp32 would flush
    g2, v_hat = grad.double().square(), v.double() / correction(beta2, step)
    health: dict[str, Tensor | float | None] = {
        "rms_t": (g2 / v_hat.clamp(min=eps * eps)).mean().sqrt(),
        "kappa_eps": v_hat.mean().sqrt() / eps if eps > 0 else None,
        "v_zero": ((v == 0) & (m != 0)).double().mean(),
        "v_below_eps2": ((v_hat < eps * eps) & (g2 > 0)).double().mean(),
    }
    if v_before is not None:
        stuck = (v == v_before) & (g2 > 0) & (g2 < 0.5 * v.double())
        health["v_stuck"] = stuck.sum() / (g2 > 0).sum().clamp(min=1)
        health["v_stale"] = _stale(grad, v_before.double() / correction(beta2, step - 1), eps)
    return health


def _health_on_cpu(
    grad: Tensor, m: Tensor, v: Tensor, v_before: Tensor | None, eps: float, beta2: float, step: float
) -> dict[str, Tensor | float | None]:
    """Return the same where to ask costs nothing: what no element has is not counted, and half of the passes are not made."""
    # numpy's numbers: by zero they divide
    by, by_before = (np.float64(1.0 - beta2**n if n > 0 else 1.0) for n in (step, step - 1))
    g, v_, limit = _numbers(grad).astype(np.float64), _numbers(v), eps * eps * by
    wide, least = v_.astype(np.float64), v_.min(initial=math.inf)
    with np.errstate(all="ignore"):
        g2 = g * g
        health: dict[str, Tensor | float | None] = {
            "rms_t": _root(_mean(g2 / np.maximum(wide, limit)) * by),
            "kappa_eps": _root(_mean(wide) / by) / eps if eps > 0 else None,
            # of a NaN neither is true, and all are looked at
            "v_zero": 0.0 if least > 0 else _mean((v_ == 0) & (_numbers(m) != 0)),
            "v_below_eps2": 0.0 if least >= limit else _mean((wide < limit) & (g2 > 0)),
        }
        if v_before is not None:
            before, mean, floor = _numbers(v_before), _mean(g2), eps * eps
            same = v_ == before
            stuck = np.count_nonzero(same & (g2 > 0) & (g2 < 0.5 * wide)) if same.any() else 0
            health["v_stuck"] = stuck / int(np.count_nonzero(g2 > 0)) if stuck else 0.0
            past = np.maximum(_mean(before.astype(np.float64)) / by_before, floor)
            health["v_stale"] = _root(np.divide(mean, past)) if mean >= floor else math.nan
    return health


def _numbers(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's elements, flat; those that numpy does not read in fp32."""
    held = tensor.detach()
    return (held if held.dtype in _NUMPYS else held.float()).reshape(-1).numpy()


def _mean(values: npt.NDArray[Any]) -> float:
    return float(values.mean()) if values.size else math.nan


def _root(value: Any) -> float:
    """Return the square root; NaN of what is below zero."""
    return float(np.sqrt(value))


def second_moment(state: dict[str, Any]) -> Tensor | None:
    """Return what Adam and its kin (`exp_avg_sq`) or RMSprop (`square_avg`) keep of squared gradients."""
    found = state.get("exp_avg_sq", state.get("square_avg"))
    return found if isinstance(found, Tensor) else None


def correction(beta2: float | Tensor, step: Tensor) -> Tensor:
    """Return Adam's 1 - β2^step, and 1 where there has been no step."""
    return torch.where(step > 0, 1.0 - beta2**step, 1.0)


def frozen_share(update: Tensor, grad: Tensor, *, is_part: bool) -> Tensor | float:
    """Return the share of elements with a gradient whose weight kept its bits; where none has one, 0, of a part NaN."""
    if update.is_cpu and all(type(t) in _PLAIN for t in (update, grad)):
        g, kept = _numbers(grad), _numbers(update) == 0
        with_gradient = int(np.count_nonzero(g))
        if not with_gradient:
            return math.nan if is_part else 0.0
        return int(np.count_nonzero(g[kept])) / with_gradient if kept.any() else 0.0
    moved = grad != 0
    still, count = (moved & (update == 0)).sum(), moved.sum()
    return torch.where(count > 0, still / count.clamp(min=1), math.nan if is_part else 0.0)


def rms(tensor: Tensor) -> Tensor:
    """Return the root of the mean of squares, in fp64."""
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm / math.sqrt(max(1, tensor.numel()))


def _stale(grad: Tensor, v_before: Tensor, eps: float) -> Tensor:
    """Return RMS(g) over that of the moment before it; NaN of a gradient below ε, which is noise (a key's bias has no other)."""
    g2 = grad.double().square().mean()
    return torch.where(g2 >= eps * eps, (g2 / v_before.mean().clamp(min=eps * eps)).sqrt(), math.nan)
