"""Snapshots: all that a step changes, copied, so that the step can be run again from the same bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nanhunt.training.names import clean_name
from nanhunt.training.rng import RngState
from nanhunt.training.shards import Spread, own_part, own_parts
from nanhunt.training.slots import Place, Slot, padded
from nanhunt.training.tree import tensors_of

if TYPE_CHECKING:
    from nanhunt.training.run import TrainingRun

__all__ = ["SMALL", "Snapshot", "state_bytes"]

#: Bytes up to which a snapshot is small: it takes milliseconds, and as many as a replay has steps fit anywhere.
SMALL = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Weights, buffers, gradients, optimizer, scaler, scheduler and random state before a step.

    Tensors are copied to the host, those of a GPU or of a run that is not small into a slot (`slots.py`); from a GPU
    they are only queued, and `wait` comes before the host reads them. Restoring writes into the live tensors, so that
    references the user's code holds stay valid; optimizer state is put back as it was, past `load_state_dict`, which
    would cast it to the dtype of the weights. State that the user keeps elsewhere (an EMA in a closure, a counter) is
    out of reach.
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

    #: what holds its tensors; None where each has memory of its own
    slot: Slot | None = field(default=None, repr=False)
    #: how many the run had taken with it
    number: int = 0

    @classmethod
    def take(
        cls, run: TrainingRun, step: int, *, grads: bool = True, place: Place | None = None, at_least: int = 0
    ) -> Snapshot:
        """Copy the run's state as it stands before `step`; gradients that the step drops unread only where `grads`.

        A slot for it is found at `place`, or where there is room, of `at_least` so many bytes. Raises RoomError.
        """
        if run.together is not None:
            run.together.open()
            run.together.tell("take", run.taken + 1, step, grads)
        run.taken += 1
        run.look_around()
        held = run.gradients() if grads else _read_gradients(run)
        slot = _slot_for(run, held, place, at_least)
        keep = _to_host if slot is None else slot.keep
        snapshot = cls(
            step=step,
            tensors={name: keep(t) for name, t in _live_tensors(run).items()},
            grads={name: keep(own_part(grad)) for name, grad in held.items()},
            training={name: module.training for name, module in _modules(run).items()},
            trained=frozenset(name for name, p in run.parameters().items() if p.requires_grad),
            optimizers=[_OptimizerCopy.of(optimizer, keep) for optimizer in run.optimizers],
            stepped=run.stepped,
            others=[(o, copy.deepcopy(o.state_dict())) for o in (*run.scalers, *run.schedulers)],
            rng=RngState.capture(),
            emulator=run.emulator.state() if run.emulator is not None else {},
            slot=slot,
            number=run.taken,
        )
        if slot is not None:
            slot.end(_gpus(run))
        return snapshot

    def wait(self) -> None:
        """Wait until the host may read the tensors."""
        if self.slot is not None:
            self.slot.wait()

    def saved(self, run: TrainingRun) -> dict[str, Any]:
        """Return the state as a checkpoint that `weights_only` loads, under the keys that `find_parts` knows.

        Its tensors are the snapshot's own: save them before it is released. Buffers that no `state_dict` holds, and
        modules besides the model, are left out.
        """
        self.wait()
        names = {clean_name(name) for name in run.model.state_dict()}
        optimizers = [optimizer.saved() for optimizer in self.optimizers]
        content: dict[str, Any] = {
            "model": {name: tensor for name, tensor in self.tensors.items() if name in names},
            "optimizer": optimizers[0],
            "step": self.step,
            "rng": self.rng.saved(),
        }
        content |= {f"optimizer_{number}": state for number, state in enumerate(optimizers) if number}
        scaler = next((state for other, state in self.others if other is run.scaler), None)
        return content | ({"scaler": scaler} if scaler else {})

    def release(self, run: TrainingRun) -> None:
        """Give the memory to the next snapshot: nothing of this one may be read any more."""
        if run.together is not None:
            run.together.tell("release", self.number)
        if self.slot is not None:
            run.slots.take_back(self.slot)

    def restore(self, run: TrainingRun) -> None:
        """Put the run back to the moment of `take`, bit for bit."""
        if run.together is not None:
            run.together.tell("restore", self.number)
        self.wait()
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
        if self.slot is not None:
            self.slot.was_read(_gpus(run))


def state_bytes(run: TrainingRun) -> int:
    """Return the bytes of one snapshot: weights, buffers and optimizer state (two moments before there is any)."""
    model = sum(t.numel() * t.element_size() for t in _live_tensors(run).values())
    states = sum(t.numel() * t.element_size() for t in _state_tensors(run))
    return model + (states or 2 * model)


def _slot_for(run: TrainingRun, grads: dict[str, Tensor], place: Place | None, at_least: int) -> Slot | None:
    """Return a slot with room for all that is to be copied; None of a small run on the CPU, which needs none."""
    tensors = [*_live_tensors(run).values(), *map(own_part, grads.values()), *_state_tensors(run)]
    # a tensor, its two moments and its step each begin at a multiple of so many bytes
    at_least += 4 * padded(1) * len(_live_tensors(run)) if at_least else 0
    size = max(at_least, sum(padded(t.numel() * t.element_size()) for t in tensors))
    gpus = _gpus(run)
    if not gpus and size <= SMALL:
        return None
    slot = run.slots.lend(size, place=place, pinned=bool(gpus))
    slot.begin(gpus)
    return slot


def _read_gradients(run: TrainingRun) -> dict[str, Tensor]:
    """Return the gradients that a step may read: the built-in one begins by dropping those of its optimizer."""
    gradients = run.gradients()
    drops = run.train_step is None and type(run.optimizer).zero_grad is torch.optim.Optimizer.zero_grad
    if not drops or "zero_grad" in vars(run.optimizer):
        return gradients
    dropped = {
        id(own_part(p.grad)) for group in run.optimizer.param_groups for p in group["params"] if p.grad is not None
    }
    return {name: grad for name, grad in gradients.items() if id(grad) not in dropped}


def _state_tensors(run: TrainingRun) -> Iterator[Tensor]:
    return (own_part(t) for optimizer in run.optimizers for s in optimizer.state.values() for _, t in tensors_of(s))


def _gpus(run: TrainingRun) -> list[torch.device]:
    """Return the GPUs that hold the run's tensors."""
    return sorted({t.device for t in _live_tensors(run).values() if t.is_cuda}, key=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class _OptimizerCopy:
    """An optimizer's hyper-parameters and state, by parameter or by whatever else it keys its state with."""

    optimizer: torch.optim.Optimizer
    groups: list[dict[str, Any]]
    #: each group's parameters, by reference: a loop may add a group, or move parameters between them
    members: list[list[Tensor]]
    state: list[tuple[Any, Any]]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, keep: Callable[[Tensor], Tensor]) -> _OptimizerCopy:
        return cls(
            optimizer=optimizer,
            groups=[_hyper(group) for group in optimizer.param_groups],
            members=[list(group["params"]) for group in optimizer.param_groups],
            state=[(key, _copied(state, keep)) for key, state in optimizer.state.items()],
        )

    def saved(self) -> dict[str, Any]:
        """Return it as `Optimizer.state_dict` gives it: parameters by their number in the order of the groups."""
        number = {id(p): i for i, p in enumerate(p for group in self.members for p in group)}
        groups = [
            {**copy.deepcopy(group), "params": [number[id(p)] for p in members]}
            for group, members in zip(self.groups, self.members, strict=True)
        ]
        return {
            "state": {number[id(key)]: _unplaced(state) for key, state in self.state if id(key) in number},
            "param_groups": groups,
        }

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
    return own_parts({**run.parameters(), **run.buffers()})


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
                live.copy_(saved, non_blocking=True)
            else:  # a trial in another precision replaced the storage
                live.data = saved.to(live.device, copy=True)
        for name, parameter in run.parameters().items():
            grad = snapshot.grads.get(name)
            parameter.grad = (
                None if grad is None else _placed(_Placed(grad, own_part(parameter).device, Spread.of(parameter)))
            )
            if parameter.is_leaf and parameter.requires_grad != (name in snapshot.trained):
                parameter.requires_grad_(name in snapshot.trained)
    for name, training in snapshot.training.items():
        if name in modules:
            modules[name].training = training


def _hyper(group: dict[str, Any]) -> dict[str, Any]:
    return {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}


def _to_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(state: Any, keep: Callable[[Tensor], Tensor]) -> Any:
    """Copy an optimizer's state of one parameter; tensors keep their device in `_Placed` form."""
    if isinstance(state, Tensor):
        part = own_part(state)
        return _Placed(tensor=keep(part), device=part.device, spread=Spread.of(state))
    if isinstance(state, dict):
        return {k: _copied(v, keep) for k, v in state.items()}
    if isinstance(state, list):
        return [_copied(v, keep) for v in state]
    return copy.deepcopy(state)


def _placed(state: Any) -> Any:
    if isinstance(state, _Placed):
        part = state.tensor.to(state.device, non_blocking=True, copy=True)
        return part if state.spread is None else state.spread.joined(part)
    if isinstance(state, dict):
        return {k: _placed(v) for k, v in state.items()}
    if isinstance(state, list):
        return [_placed(v) for v in state]
    return copy.deepcopy(state)


def _unplaced(state: Any) -> Any:
    if isinstance(state, _Placed):
        return state.tensor
    if isinstance(state, dict):
        return {k: _unplaced(v) for k, v in state.items()}
    if isinstance(state, list):
        return [_unplaced(v) for v in state]
    return copy.deepcopy(state)


@dataclass(frozen=True, slots=True)
class _Placed:
    """A tensor on the host and the device it came from: Adam's `step` lives on the CPU, its moments need not."""

    tensor: Tensor
    device: torch.device
    spread: Spread | None = None
