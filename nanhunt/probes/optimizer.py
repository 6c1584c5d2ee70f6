"""The optimizer probe: gradients before the clip, moments, weights and the update that was really applied.

Adam's health is measured where all its parts are at hand, per parameter:

- `rms_t` = sqrt(mean(g² / max(v̂, ε²))): the gradient in units of its own second moment, after the update. It is near 1
  in a steady state and cannot pass 1/sqrt(1 - β2), so the jump that it implies is derived from it, not read off.
- `v_stale` = sqrt(mean g² / mean v_before): the same against the second moment that stood before this gradient came.
- `kappa_eps` = rms(sqrt(v̂)) / ε: below some 10 the ε decides the step.
- `v_stuck` = share of the elements with a gradient whose v kept its bits though g² is less than half of it: its format
  cannot take the decay, and v is a running maximum instead of an average.
- `v_zero` = share of elements with v = 0 and m ≠ 0: their update is m/ε.
- `frozen` = share of elements with a gradient whose weight did not change by a bit.
- `moved_outside`: a lower bound of the norm of what was written into a weight after its update, in the same step.
- `update_lr` = rms(Δw) / lr: 0.23 to 1 in ordinary training.

The update is w_after - w_before, so a copy of the weights lives from the clip to the update; of a large weight, of some
tiles (`sampling.looked_at`). An update's row then counts what was looked at: its `numel` is less than its shape's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from nanhunt.probes.probe import RowBuffer, split_name
from nanhunt.stats.sampling import looked_at
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch

__all__ = ["OptimizerProbe", "record_state"]


class OptimizerProbe(StepWatch):
    """Watches the second half of a step."""

    def __init__(self, run: TrainingRun, rows: RowBuffer) -> None:
        self._run = run
        self._rows = rows
        self._before: dict[str, Tensor] = {}
        self._v_before: dict[str, Tensor] = {}
        self._names: dict[Tensor, str] = {}
        #: sum and norm of each weight as its optimizer left it
        self._left: dict[str, Tensor] = {}

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Record every gradient: accumulated, unscaled, not yet clipped."""
        if not self._rows.recording:
            return
        self._rows.tensors(self._run.gradients(parameters), phase=Phase.UNSCALE, role=Role.GRAD)

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Keep the weights and second moments that the update starts from, at the first update of each."""
        if not self._rows.recording:
            return
        self._names = {p: n for n, p in self._run.parameters().items()}
        for parameter in self._run.trainable() if parameters is None else parameters:
            name = self._names.get(parameter)
            if name is None or name in self._before:
                continue
            self._before[name] = _kept(parameter)
            v = _second_moment(self._run.state_of(parameter))
            if v is not None:
                self._v_before[name] = _kept(v)

    def update_made(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Keep sum and norm of the weights as their optimizer leaves them: a loop may write into them after that."""
        if self._rows.recording:
            for parameter in self._run.trainable() if parameters is None else parameters:
                name = self._names.get(parameter)
                if name in self._before:
                    self._left[name] = _sum_and_norm(parameter)

    def updated(self) -> None:
        """Record weights, moments, the applied update and Adam's health."""
        if not self._rows.recording:
            return
        record_state(self._run, self._rows, Phase.UPDATE)
        self._rows.scalar("optimizer_step", step_counter(self._run), phase=Phase.UPDATE)
        parameters = {self._names[p]: (p, g) for p, g in self._groups() if p in self._names}
        changed = {name: found for name, found in parameters.items() if name in self._before}
        with torch.no_grad():
            updates = {name: looked_at(p.detach()) - self._before[name] for name, (p, _) in changed.items()}
            shapes = {name: p.shape for name, (p, _) in changed.items()}
            self._rows.tensors(updates, phase=Phase.UPDATE, role=Role.UPDATE, shapes=shapes)
            for name, (parameter, group) in changed.items():
                for key, value in self._health(name, parameter, group, updates[name]).items():
                    self._scalar(name, key, value)
        self._before.clear()
        self._v_before.clear()
        self._left.clear()

    def _groups(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield each parameter that an optimizer has, with its group; record the groups' hyper-parameters."""
        groups = [group for optimizer in self._run.optimizers for group in optimizer.param_groups]
        for index, group in enumerate(groups):
            self._record_betas(group, index)
            yield from ((parameter, group) for parameter in group["params"])

    def _scalar(self, name: str, key: str, value: Tensor | None) -> None:
        module, leaf = split_name(name)
        self._rows.scalar(f"{leaf}.{key}", value, phase=Phase.UPDATE, module=module)

    def _record_betas(self, group: dict[str, Any], index: int) -> None:
        """Record what a schedule, a reload or a hand may have changed: `beta1`, `beta2`, `eps`, with the group's number."""
        betas = group.get("betas") or (None, None)
        for name, value in (("beta1", betas[0]), ("beta2", betas[1]), ("eps", group.get("eps"))):
            if isinstance(value, (int, float)):
                self._rows.scalar(name if index == 0 else f"{name}:{index}", float(value), phase=Phase.UPDATE)

    def _health(self, name: str, parameter: Tensor, group: dict[str, Any], update: Tensor) -> dict[str, Tensor | None]:
        """Return the scalars of the file's docstring of one parameter."""
        health: dict[str, Tensor | None] = {}
        if name in self._left:
            health["moved_outside"] = (_sum_and_norm(parameter) - self._left[name]).abs().amax()
        grad, lr = parameter.grad, float(group["lr"])
        if grad is None or grad.is_sparse or parameter.is_complex():
            return health
        is_part = update.numel() < parameter.numel()
        grad, state = looked_at(grad), {k: _looked_at(v) for k, v in self._run.state_of(parameter).items()}
        health["frozen"] = _frozen_share(update, grad, is_part=is_part) if lr > 0 else None
        health["update_lr"] = _rms(update) / lr if lr > 0 else None
        return health | adam_health(grad, state, group, self._v_before.get(name))


def _looked_at(value: Any) -> Any:
    return looked_at(value) if isinstance(value, Tensor) else value


def _kept(tensor: Tensor) -> Tensor:
    """Return a copy of what is looked at of a tensor."""
    part: Tensor = looked_at(tensor.detach())
    return part.clone() if part.data_ptr() == tensor.data_ptr() else part


def _sum_and_norm(tensor: Tensor) -> Tensor:
    """Return [Σw / sqrt(n), |w|] in fp64: what either of them changes by is a lower bound of |Δw|."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    wide = real.detach().double()
    return torch.stack([wide.sum() / math.sqrt(max(1, wide.numel())), torch.linalg.vector_norm(wide)])


def adam_health(
    grad: Tensor, state: dict[str, Any], group: dict[str, Any], v_before: Tensor | None
) -> dict[str, Tensor | None]:
    """Return the shares and ratios of the file's docstring that need Adam's state; empty without one.

    `grad` is the gradient that the optimizer saw (unscaled, clipped); all tensors have the parameter's shape. The
    values are scalars on the parameter's device.
    """
    v, m = _second_moment(state), state.get("exp_avg")
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
    step = torch.full((), 0.0 if on_device else float(counter), dtype=torch.float64, device=v.device)
    step = step + counter if on_device else step
    # float64: v of 1e-30 over ε² of 1e-16 is where fp32 would flush
    g2, v_hat = grad.double().square(), v.double() / _correction(beta2, step)
    health: dict[str, Tensor | None] = {
        "rms_t": (g2 / v_hat.clamp(min=eps * eps)).mean().sqrt(),
        "kappa_eps": v_hat.mean().sqrt() / eps if eps > 0 else None,
        "v_zero": ((v == 0) & (m != 0)).double().mean(),
        "v_below_eps2": ((v_hat < eps * eps) & (g2 > 0)).double().mean(),
    }
    if v_before is not None:
        stuck = (v == v_before) & (g2 > 0) & (g2 < 0.5 * v.double())
        health["v_stuck"] = stuck.sum() / (g2 > 0).sum().clamp(min=1)
        health["v_stale"] = _stale(grad, v_before.double() / _correction(beta2, step - 1), eps)
    return health


def _second_moment(state: dict[str, Any]) -> Tensor | None:
    """Return what Adam and its kin (`exp_avg_sq`) or RMSprop (`square_avg`) keep of squared gradients."""
    found = state.get("exp_avg_sq", state.get("square_avg"))
    return found if isinstance(found, Tensor) else None


def _stale(grad: Tensor, v_before: Tensor, eps: float) -> Tensor:
    """Return RMS(g) over that of the moment before it; NaN of a gradient below ε, which is noise (a key's bias has no other)."""
    g2 = grad.double().square().mean()
    return torch.where(g2 >= eps * eps, (g2 / v_before.mean().clamp(min=eps * eps)).sqrt(), math.nan)


def step_counter(run: TrainingRun) -> float | None:
    """Return the largest step counter that the optimizers keep on the host; None where there is none.

    A counter on a device (fused or capturable Adam) is left alone: to read it is to wait.
    """
    counters = [
        state["step"]
        for o in run.optimizers
        for state in o.state.values()
        if isinstance(state, dict) and "step" in state
    ]
    return max((float(c) for c in counters if not (isinstance(c, Tensor) and c.device.type != "cpu")), default=None)


def _correction(beta2: float, step: Tensor) -> Tensor:
    """Return Adam's 1 - β2^step, and 1 where there has been no step."""
    return torch.where(step > 0, 1.0 - beta2**step, 1.0)


def record_state(run: TrainingRun, rows: RowBuffer, phase: Phase) -> None:
    """Record every parameter, buffer and Adam moment as it stands."""
    parameters = run.parameters()
    rows.tensors(parameters, phase=phase, role=Role.WEIGHT)
    states = {name: run.state_of(parameter) for name, parameter in parameters.items()}
    for role in (Role.EXP_AVG, Role.EXP_AVG_SQ):
        found = {name: state.get(role.value) for name, state in states.items()}
        moments = {name: moment for name, moment in found.items() if isinstance(moment, Tensor)}
        rows.tensors(moments, phase=phase, role=role)
    rows.tensors(run.buffers(), phase=phase, role=Role.BUFFER)


def _frozen_share(update: Tensor, grad: Tensor, *, is_part: bool) -> Tensor:
    """Return the share of elements with a gradient whose weight kept its bits; where none has one, 0, of a part NaN."""
    moved = grad != 0
    still, count = (moved & (update == 0)).sum(), moved.sum()
    return torch.where(count > 0, still / count.clamp(min=1), math.nan if is_part else 0.0)


def _rms(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm / math.sqrt(max(1, tensor.numel()))
