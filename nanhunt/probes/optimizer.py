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

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanhunt.probes.adam import HEALTH, adam_health, frozen_share, rms, second_moment
from nanhunt.probes.probe import RowBuffer, split_name
from nanhunt.stats.sampling import looked_at
from nanhunt.stats.summarize import has_triton
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import own_part
from nanhunt.training.step import StepWatch

if TYPE_CHECKING:
    from nanhunt.probes.update_kernel import KeptTiles

__all__ = ["OptimizerProbe", "record_state"]


class OptimizerProbe(StepWatch):
    """Watches the second half of a step."""

    def __init__(self, run: TrainingRun, rows: RowBuffer) -> None:
        self._run = run
        self._rows = rows
        self._before: dict[str, Tensor] = {}
        self._v_before: dict[str, Tensor] = {}
        #: names of all whose weight is kept
        self._held: set[str] = set()
        self._names: dict[Tensor, str] = {}
        #: parameters by name, as they were when they were asked for first
        self._named: dict[str, Tensor] = {}
        #: sum and norm of each weight as its optimizer left it; of those that are measured by one launch, by their names
        self._left: dict[str, Tensor] = {}
        self._left_together: dict[tuple[str, ...], Tensor] = {}
        #: names and tiles of parameters that are measured by one launch
        self._together: list[tuple[tuple[str, ...], KeptTiles]] = []

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Record every gradient: accumulated, unscaled, not yet clipped."""
        if not self._rows.recording:
            return
        self._named = self._named or self._run.parameters()
        self._rows.tensors(self._run.gradients(parameters, self._named), phase=Phase.UNSCALE, role=Role.GRAD)

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Keep the weights and second moments that the update starts from, at the first update of each."""
        if not self._rows.recording:
            return
        self._named = self._named or self._run.parameters()
        self._names = {p: n for n, p in self._named.items()}
        together: dict[tuple[Any, ...], list[tuple[str, Tensor, Tensor | None]]] = {}
        held = self._run.trainable() if parameters is None else parameters
        for parameter, state in zip(held, self._run.states_of(held), strict=True):
            name = self._names.get(parameter)
            if name is None or name in self._held:
                continue
            self._held.add(name)
            v = second_moment(state)
            if (key := _kind(parameter, v)) is not None:
                together.setdefault(key, []).append((name, parameter, v))
                continue
            self._before[name] = _kept(parameter, parameter)
            if v is not None:
                self._v_before[name] = _kept(v, parameter)
        for batch in together.values():
            self._keep_together(batch)

    def _keep_together(self, batch: Sequence[tuple[str, Tensor, Tensor | None]]) -> None:
        """Keep parameters of one kind by one launch; of a DTensor what this rank holds."""
        from nanhunt.probes.update_kernel import KeptTiles  # triton is there on CUDA alone

        names, weights, moments = zip(*batch, strict=True)
        held = None if moments[0] is None else [own_part(v) for v in moments]
        self._together.append((names, KeptTiles([own_part(w) for w in weights], held)))

    def update_made(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Keep sum and norm of the weights as their optimizer leaves them: a loop may write into them after that."""
        if not self._rows.recording:
            return
        updated = self._run.trainable() if parameters is None else parameters
        left = {name: p for p in updated if (name := self._names.get(p)) in self._held and name is not None}
        for names, tiles in self._together:
            if left.keys() >= set(names) and tiles.still_fit():
                self._left_together[names] = tiles.sums_and_norms()
                for name in names:
                    del left[name]
        self._left |= {name: _sum_and_norm(parameter) for name, parameter in left.items()}

    def updated(self) -> None:
        """Record weights, moments, the applied update and Adam's health."""
        if not self._rows.recording:
            return
        record_state(self._run, self._rows, Phase.UPDATE, self._named or None)
        self._rows.scalar("optimizer_step", step_counter(self._run), phase=Phase.UPDATE)
        parameters = {self._names[p]: (p, g) for p, g in self._groups() if p in self._names}
        changed = {name: found for name, found in parameters.items() if name in self._held}
        with torch.no_grad():
            updates = self._measure_together(changed)
            alone = [name for name in self._before if name in changed]
            updates |= {name: _part(p := changed[name][0], p) - self._before[name] for name in alone}
            shapes = {name: changed[name][0].shape for name in updates}
            self._rows.tensors(updates, phase=Phase.UPDATE, role=Role.UPDATE, shapes=shapes)
            self._tell_moves(changed)
            for name in alone:
                for key, value in self._health(name, *changed[name], updates[name]).items():
                    self._scalar(name, key, value)
        for kept in (self._held, self._before, self._v_before, self._left, self._left_together, self._together):
            kept.clear()

    def _tell_moves(self, changed: dict[str, tuple[Tensor, dict[str, Any]]]) -> None:
        """Record `moved_outside` of what an optimizer has left."""
        for name, left in self._left.items():
            if name in changed:
                self._scalar(name, "moved_outside", (_sum_and_norm(changed[name][0]) - left).abs().amax())
        for names, tiles in self._together:
            kept = self._left_together.get(names)
            if kept is None or not changed.keys() >= set(names) or not tiles.still_fit():
                continue
            moved = (tiles.sums_and_norms() - kept).abs().amax(dim=1)
            leaves = [_leaf(name, "moved_outside") for name in names]
            self._rows.scalars(leaves, np.arange(len(names)), moved, phase=Phase.UPDATE)

    def _measure_together(self, changed: dict[str, tuple[Tensor, dict[str, Any]]]) -> dict[str, Tensor]:
        """Turn what was kept together into updates, record their health, and return them by name."""
        updates: dict[str, Tensor] = {}
        for names, tiles in self._together:
            found = [changed[name] for name in names if name in changed]
            states = [_own(state) for state in self._run.states_of([parameter for parameter, _ in found])]
            if len(found) < len(names) or not _measures(found, states):
                for index, name in enumerate(names):
                    self._before[name], v = tiles.before(index)
                    self._v_before |= {} if v is None else {name: v}
                continue
            groups = [group for _, group in found]
            values = tiles.health([own_part(p.grad) for p, _ in found if p.grad is not None], states, groups)
            settings = tuple((float(group["lr"]) > 0, float(group["eps"]) > 0) for group in groups)
            self._rows.scalars(*_told(names, settings, tiles.v_kept is not None), values, phase=Phase.UPDATE)
            updates |= dict(zip(names, tiles.updates(), strict=True))
        return updates

    def _groups(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield each parameter that an optimizer has, with its group; record the groups' hyper-parameters."""
        groups = [group for optimizer in self._run.optimizers for group in optimizer.param_groups]
        for index, group in enumerate(groups):
            self._record_betas(group, index)
            yield from ((parameter, group) for parameter in group["params"])

    def _scalar(self, name: str, key: str, value: Tensor | float | None) -> None:
        module, leaf = _leaf(name, key)
        self._rows.scalar(leaf, value, phase=Phase.UPDATE, module=module)

    def _record_betas(self, group: dict[str, Any], index: int) -> None:
        """Record what a schedule, a reload or a hand may have changed: `beta1`, `beta2`, `eps`, with the group's number."""
        betas = group.get("betas") or (None, None)
        for name, value in (("beta1", betas[0]), ("beta2", betas[1]), ("eps", group.get("eps"))):
            if isinstance(value, (int, float)):
                self._rows.scalar(name if index == 0 else f"{name}:{index}", float(value), phase=Phase.UPDATE)

    def _health(
        self, name: str, parameter: Tensor, group: dict[str, Any], update: Tensor
    ) -> dict[str, Tensor | float | None]:
        """Return the scalars of the file's docstring of one parameter."""
        grad, lr = parameter.grad, float(group["lr"])
        if grad is None or grad.is_sparse or parameter.is_complex():
            return {}
        is_part = update.numel() < parameter.numel()
        state = {
            k: _part(v, parameter) if isinstance(v, Tensor) else v for k, v in self._run.state_of(parameter).items()
        }
        grad = _part(grad, parameter)
        health: dict[str, Tensor | float | None] = {
            "frozen": frozen_share(update, grad, is_part=is_part) if lr > 0 else None,
            "update_lr": rms(update) / lr if lr > 0 else None,
        }
        return health | adam_health(grad, state, group, self._v_before.get(name))


def _own(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state of a parameter with what this rank holds of each tensor."""
    return {key: own_part(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def _leaf(name: str, key: str) -> tuple[str, str]:
    """Return module and name of a parameter's scalar."""
    module, leaf = split_name(name)
    return module, f"{leaf}.{key}"


def _kind(parameter: Tensor, v: Tensor | None) -> tuple[Any, ...] | None:
    """Return what parameters must share to be measured together; None of one that is measured alone."""
    grad = parameter.grad
    if not parameter.is_cuda or grad is None or not has_triton():
        return None
    held = [own_part(t) for t in (parameter, grad, v) if t is not None]
    from nanhunt.probes.update_kernel import fits

    is_one = held[0].numel() > 0 and fits(*held)  # a rank may hold nothing of a small tensor
    return (parameter.device, *(t.dtype for t in held), v is None) if is_one else None


def _measures(found: Sequence[tuple[Tensor, dict[str, Any]]], states: Sequence[dict[str, Any]]) -> bool:
    """Whether the kernel of updates has all that it needs: gradients that are still there, and Adam's moments."""
    from nanhunt.probes.update_kernel import fits

    held = [
        (own_part(p), None if p.grad is None else own_part(p.grad), state.get("exp_avg"), state.get("exp_avg_sq"))
        for (p, _), state in zip(found, states, strict=True)
    ]
    if not all(isinstance(t, Tensor) for own in held for t in own) or not all(fits(*own) for own in held):
        return False
    alike = {tuple(t.dtype for t in own if t is not None) for own in held}
    return len(alike) == 1 and all("betas" in g and isinstance(g.get("eps"), (int, float)) for _, g in found)


@functools.lru_cache(maxsize=64)
def _told(
    names: tuple[str, ...], settings: tuple[tuple[bool, bool], ...], has_before: bool
) -> tuple[list[tuple[str, str]], npt.NDArray[np.int64]]:
    """Return module and name, and place in the table, of what can be told: some needs a rate, an ε, a moment of before."""
    cells = [
        (_leaf(name, key), row * len(HEALTH) + column)
        for row, (name, (has_rate, has_eps)) in enumerate(zip(names, settings, strict=True))
        for column, key in enumerate(HEALTH)
        if {"frozen": has_rate, "update_lr": has_rate, "v_stuck": has_before, "v_stale": has_before,
            "kappa_eps": has_eps}.get(key, True)
    ]  # fmt: skip
    return [leaf for leaf, _ in cells], np.array([place for _, place in cells], np.int64)


def _part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return what is looked at of a tensor of a parameter: the same elements of each, however it lies in memory.

    Of a DTensor it is the part that this rank holds.
    """
    held = _local(tensor)
    if held.shape != _local(parameter).shape:
        return held
    part: Tensor = looked_at(held.contiguous()) if _local(parameter).is_contiguous() else held
    return part


def _local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a DTensor; any other tensor as it is.

    The part is taken first: a `detach` of a DTensor goes through its dispatcher, 0.2 ms for each of thousands.
    """
    return own_part(tensor).detach()


def _kept(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a copy of what is looked at of a tensor of a parameter."""
    part = _part(tensor, parameter)
    return part.clone() if part.data_ptr() == _local(tensor).data_ptr() else part


def _sum_and_norm(parameter: Tensor) -> Tensor:
    """Return [Σw / sqrt(n), |w|] in fp64 of what is looked at: what either changes by is a lower bound of |Δw|."""
    held = _part(parameter, parameter)
    wide = (torch.view_as_real(held) if held.is_complex() else held).double()
    return torch.stack([wide.sum() / math.sqrt(max(1, wide.numel())), torch.linalg.vector_norm(wide)])


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


def record_state(run: TrainingRun, rows: RowBuffer, phase: Phase, named: dict[str, Tensor] | None = None) -> None:
    """Record every parameter, buffer and Adam moment as it stands; `named` are the parameters, where they are known."""
    parameters = run.parameters() if named is None else named
    rows.tensors(parameters, phase=phase, role=Role.WEIGHT)
    states = dict(zip(parameters, run.states_of(parameters.values()), strict=True))
    for role in (Role.EXP_AVG, Role.EXP_AVG_SQ):
        found = {name: state.get(role.value) for name, state in states.items()}
        moments = {name: moment for name, moment in found.items() if isinstance(moment, Tensor)}
        rows.tensors(moments, phase=phase, role=role)
    rows.tensors(run.buffers(), phase=phase, role=Role.BUFFER)
