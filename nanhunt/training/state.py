"""Snapshots: all that a step changes, copied, so that the step can be run again from the same bits."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nanhunt.training.rng import RngState
from nanhunt.training.tree import tensors_of

if TYPE_CHECKING:
    from nanhunt.training.run import TrainingRun

__all__ = ["Snapshot", "SnapshotRing", "state_bytes"]

#: Host memory that the ring may take, in bytes.
RING_BUDGET = 2 << 30
#: Steps that a rewind must reach back: a spike's lead (10) and the steps watched after its alarm (8), and two more.
REACH = 20
#: Steps that it reaches back where there is room for all of them: a whole replay of the usual length.
FAR = 64
#: Host memory that batches may take before the reach is cut to `REACH`, in bytes.
BATCH_BUDGET = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Weights, buffers, gradients, optimizer, scaler, scheduler and random state before a step.

    Tensors are copied to the host. Restoring writes into the live tensors, so that references the user's code holds
    stay valid; optimizer state is put back as it was, past `load_state_dict`, which would cast it to the dtype of the
    weights. State that the user keeps elsewhere (an EMA in a closure, a counter) is out of reach.
    """

    step: int
    tensors: dict[str, Tensor]
    grads: dict[str, Tensor]
    training: dict[str, bool]
    #: parameters that ask for a gradient: a loop may freeze and unfreeze
    trained: frozenset[str]
    optimizers: list[_OptimizerCopy] = field(repr=False)
    #: (scaler or scheduler, its state)
    others: list[tuple[Any, dict[str, Any]]] = field(repr=False)
    rng: RngState
    #: what a custom loop's step before has updated, by id
    stepped: frozenset[int] = frozenset()
    #: of a precision recipe
    emulator: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def take(cls, run: TrainingRun, step: int) -> Snapshot:
        """Copy the run's state as it stands before `step`."""
        run.look_around()
        return cls(
            step=step,
            tensors={name: _to_host(t) for name, t in _live_tensors(run).items()},
            grads={name: _to_host(grad) for name, grad in run.gradients().items()},
            training={name: module.training for name, module in _modules(run).items()},
            trained=frozenset(name for name, p in run.parameters().items() if p.requires_grad),
            optimizers=[_OptimizerCopy.of(optimizer) for optimizer in run.optimizers],
            stepped=run.stepped,
            others=[(o, copy.deepcopy(o.state_dict())) for o in (*run.scalers, *run.schedulers)],
            rng=RngState.capture(),
            emulator=run.emulator.state() if run.emulator is not None else {},
        )

    def restore(self, run: TrainingRun) -> None:
        """Put the run back to the moment of `take`, bit for bit."""
        _restore_tensors(self, run)
        for optimizer in self.optimizers:
            optimizer.restore()
        for other, state in self.others:
            other.load_state_dict(copy.deepcopy(state))
            if isinstance(other, torch.amp.GradScaler) and other.is_enabled():  # one that is off notes nothing
                # what the scaler noted of the last step (found_inf, stage) belongs to that step
                other._per_optimizer_states.clear()
        run.stepped = self.stepped
        if run.emulator is not None:
            run.emulator.restore(self.emulator)
        self.rng.restore()


class SnapshotRing:
    """The last snapshots, bounded in bytes; the nearest one before a step is where a rewind starts.

    With room for `REACH` snapshots every step has one, and with more room up to `FAR` of them are kept; a larger model
    has them further apart, and a rewind runs the steps in between again.
    """

    def __init__(self, run: TrainingRun) -> None:
        room = max(2, RING_BUDGET // max(1, state_bytes(run)))
        self.capacity = int(min(FAR, room))
        self.spacing = -(-REACH // (self.capacity - 1)) if self.capacity < REACH else 1
        self._kept: deque[Snapshot] = deque(maxlen=self.capacity)

    def offer(self, run: TrainingRun, step: int) -> None:
        """Take a snapshot before `step` where one is due."""
        if not self._kept or step - self._kept[-1].step >= self.spacing:
            self._kept.append(Snapshot.take(run, step))
        while len(self._kept) > REACH and run.batches.kept_bytes > BATCH_BUDGET:
            self._kept.popleft()
            run.batches.forget_before(self._kept[0].step)

    def nearest(self, step: int) -> Snapshot:
        """Return the latest snapshot at or before `step`, the oldest where the ring has moved past it."""
        earlier = [s for s in self._kept if s.step <= step]
        return earlier[-1] if earlier else self._kept[0]

    def reaches(self, step: int) -> bool:
        """Whether a rewind can stand before `step`."""
        return bool(self._kept) and self._kept[0].step <= step

    @property
    def oldest_step(self) -> int:
        """The first step that can be reached."""
        return self._kept[0].step if self._kept else 0


def state_bytes(run: TrainingRun) -> int:
    """Return the bytes of one snapshot: weights, buffers and optimizer state (two moments before there is any)."""
    model = sum(t.numel() * t.element_size() for t in _live_tensors(run).values())
    states = [t for optimizer in run.optimizers for s in optimizer.state.values() for _, t in tensors_of(s)]
    return model + (sum(t.numel() * t.element_size() for t in states) if states else 2 * model)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OptimizerCopy:
    """An optimizer's hyper-parameters and state, by parameter or by whatever else it keys its state with."""

    optimizer: torch.optim.Optimizer
    groups: list[dict[str, Any]]
    #: each group's parameters, by reference: a loop may add a group, or move parameters between them
    members: list[list[Tensor]]
    state: list[tuple[Any, Any]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> _OptimizerCopy:
        return cls(
            optimizer=optimizer,
            groups=[_hyper(group) for group in optimizer.param_groups],
            members=[list(group["params"]) for group in optimizer.param_groups],
            state=[(key, _copied(state)) for key, state in optimizer.state.items()],
        )

    def restore(self) -> None:
        live = self.optimizer.param_groups
        live[:] = [*live[: len(self.groups)], *({} for _ in self.groups[len(live) :])]
        for group, saved, members in zip(live, self.groups, self.members, strict=True):
            group.update(copy.deepcopy(saved), params=list(members))
        self.optimizer.state.clear()
        for key, state in self.state:
            self.optimizer.state[key] = _placed(state)


def _live_tensors(run: TrainingRun) -> dict[str, Tensor]:
    """Return parameters and all buffers by name, the non-persistent ones too; tied ones once."""
    return {**run.parameters(), **run.buffers()}


def _modules(run: TrainingRun) -> dict[str, nn.Module]:
    return {f"{root}.{name}": m for root, module in run.roots().items() for name, m in module.named_modules()}


def _restore_tensors(snapshot: Snapshot, run: TrainingRun) -> None:
    modules = _modules(run)
    with torch.no_grad():
        for name, live in _live_tensors(run).items():
            saved = snapshot.tensors.get(name)
            if saved is None:
                continue
            if live.shape == saved.shape and live.dtype == saved.dtype:
                live.copy_(saved)
            else:  # a trial in another precision replaced the storage
                live.data = saved.to(live.device, copy=True)
        for name, parameter in run.parameters().items():
            grad = snapshot.grads.get(name)
            parameter.grad = None if grad is None else grad.to(parameter.device, copy=True)
            if parameter.is_leaf and parameter.requires_grad != (name in snapshot.trained):
                parameter.requires_grad_(name in snapshot.trained)
    for name, training in snapshot.training.items():
        if name in modules:
            modules[name].training = training


def _hyper(group: dict[str, Any]) -> dict[str, Any]:
    return {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(state: Any) -> Any:
    """Copy an optimizer's state of one parameter; tensors keep their device in `_Placed` form."""
    if isinstance(state, Tensor):
        return _Placed(tensor=_to_host(state), device=state.device)
    if isinstance(state, dict):
        return {k: _copied(v) for k, v in state.items()}
    if isinstance(state, list):
        return [_copied(v) for v in state]
    return copy.deepcopy(state)


def _placed(state: Any) -> Any:
    if isinstance(state, _Placed):
        return state.tensor.to(state.device, copy=True)
    if isinstance(state, dict):
        return {k: _placed(v) for k, v in state.items()}
    if isinstance(state, list):
        return [_placed(v) for v in state]
    return copy.deepcopy(state)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor on the host and the device it came from: Adam's `step` lives on the CPU, its moments need not."""

    tensor: Tensor
    device: torch.device
