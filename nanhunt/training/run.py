"""TrainingRun: the user's model, optimizers, scaler, scheduler, loss and batches, as they train."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recipes.emulator import Emulator
from nanhunt.training.batches import BatchSource
from nanhunt.training.cuda_autocast import CudaAutocastLists
from nanhunt.training.names import clean_name
from nanhunt.training.owned import Owned, find_owned
from nanhunt.training.shards import own_part, own_parts
from nanhunt.training.slots import SlotPool
from nanhunt.training.state_match import Match
from nanhunt.training.together import Together

__all__ = ["DTYPES", "TrainingRun", "optimizers_in"]

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """The run as it trains, without instruments. Mutable: its tensors change with every step."""

    model: nn.Module
    #: the one that the built-in step uses; a custom loop may have more
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Any], Tensor]
    batches: BatchSource
    device: torch.device
    scaler: torch.amp.GradScaler | None = None
    scheduler: Any = None
    train_step: Callable[..., Any] | None = None
    #: what a custom step gets as its third argument: the optimizer, or the several that the config's callable returned
    handed: Any = None
    #: what the user's code keeps besides
    owned: Owned = field(default_factory=Owned)
    #: "fp16", "bf16" or None
    autocast: str | None = None
    #: apply CUDA's autocast lists on the CPU, for a run that was trained on CUDA
    cuda_lists: bool = False
    #: name of the precision recipe, "" without one; and what emulates it, where it is more than autocast, casts and scaler
    recipe: str = ""
    emulator: Emulator | None = None
    accumulate: int = 1
    #: report `accumulate` times a micro-batch's share for its loss: the third of a loss, three times, is another number
    loss_from_shares: bool = False
    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None
    clip_param_norm: float | None = None
    #: of both clips by a norm: its order, and torch's own `foreach`
    clip_norm_type: float = 2.0
    clip_foreach: bool | None = None
    agc: float | None = None
    start_step: int = 0
    root: Path = field(default_factory=Path)
    assumptions: list[str] = field(default_factory=list)
    #: ids of the parameters that a custom loop's last step has updated
    stepped: frozenset[int] = frozenset()
    #: the rate of each group as the checkpoint left it, where a schedule begins anew over it
    left_rates: tuple[float, ...] = ()
    #: how the checkpoint's tensors matched the model's
    matched: Match | None = None
    #: where its snapshots are kept, and how many were taken so far
    slots: SlotPool = field(default_factory=SlotPool, repr=False)
    taken: int = 0
    #: the other ranks, where this one leads them
    together: Together | None = field(default=None, repr=False)
    #: whether another rank reads the leading one's batches as well, or this one does where it follows: ranks that share
    #: one model do (tensor parallelism)
    shares_batches: bool = False

    @contextlib.contextmanager
    def autocasting(self) -> Iterator[None]:
        """Run the body under the run's autocast."""
        with contextlib.ExitStack() as stack:
            if self.autocast:
                stack.enter_context(torch.autocast(self.device.type, dtype=DTYPES[self.autocast]))
                if self.cuda_lists:
                    stack.enter_context(CudaAutocastLists())
            yield

    @contextlib.contextmanager
    def emulating(self) -> Iterator[None]:
        """Run the body, one step, under the run's recipe; a probe of ops is entered inside, to see the user's ops."""
        if self.emulator is None:
            yield
            return
        with self.emulator.active(self.parameters(), self.optimizers, self.tied_names()):
            yield

    def look_around(self) -> None:
        """Find again what the user's code keeps: some of it is made in the first step."""
        self.owned = find_owned([self.train_step, self.loss, self.model, self.optimizer, self.handed], self.model)

    # --- what there is, by name ----------------------------------------------------------------------------------

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Every optimizer, the built-in step's first."""
        every = [self.optimizer, *optimizers_in(self.handed), *self.owned.optimizers]
        return list({id(o): o for o in every}.values())

    @property
    def scalers(self) -> list[torch.amp.GradScaler]:
        """Every gradient scaler, the built-in step's first."""
        every = [*([self.scaler] if self.scaler else []), *self.owned.scalers]
        return list({id(s): s for s in every}.values())

    @property
    def schedulers(self) -> list[Any]:
        """Every scheduler, the built-in step's first."""
        every = [*([self.scheduler] if self.scheduler is not None else []), *self.owned.schedulers]
        return list({id(s): s for s in every}.values())

    def roots(self) -> dict[str, nn.Module]:
        """Return the model under '', and what modules the user's code keeps besides, by name."""
        return {"": self.model, **self.owned.modules}

    def parameters(self) -> dict[str, Tensor]:
        """Return every parameter by name, those that only an optimizer holds too."""
        found: dict[str, Tensor] = {
            _below(root, clean_name(name)): p
            for root, module in self.roots().items()
            for name, p in module.named_parameters()
        }
        known = {id(p) for p in found.values()}
        names = {id(t): name for name, t in self.owned.leaves.items()}
        for parameter in self.trainable():
            if id(parameter) not in known:
                known.add(id(parameter))
                found[names.get(id(parameter)) or f"loose.{len(found)}"] = parameter
        return found

    def tied_names(self) -> dict[str, list[str]]:
        """Return the further names of parameters that have several, by the one that `parameters` gives them."""
        found: dict[int, list[str]] = {}
        for root, module in self.roots().items():
            for name, p in module.named_parameters(remove_duplicate=False):
                found.setdefault(id(p), []).append(_below(root, clean_name(name)))
        return {first: rest for first, *rest in found.values() if rest}

    def weights(self) -> dict[str, Tensor]:
        """Return the memory of every parameter by name; of one that is spread over ranks the part that this one holds."""
        return {name: own_part(parameter.detach()) for name, parameter in self.parameters().items()}

    def buffers(self) -> dict[str, Tensor]:
        """Return the memory of every buffer by name, as `weights` does that of parameters."""
        return own_parts(self.whole_buffers())

    def whole_buffers(self) -> dict[str, Tensor]:
        """Return every buffer by name, as its module holds it."""
        return {
            _below(root, clean_name(name)): b
            for root, module in self.roots().items()
            for name, b in module.named_buffers()
        }

    def trainable(self) -> list[Tensor]:
        """Parameters that the optimizers update, in their order."""
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    def gradients(
        self, parameters: Sequence[Tensor] | None = None, named: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the gradients that are there, by their parameter's name; of these parameters only, where some are given.

        Of what is spread over ranks it is the part that this one holds, here as in `buffers` and `state_tensors`.

        `named` is what `parameters()` returned before, for who asks often.
        """
        wanted = None if parameters is None else set(map(id, parameters))
        return {
            name: own_part(p.grad)
            for name, p in (self.parameters() if named is None else named).items()
            if p.grad is not None and (wanted is None or id(p) in wanted)
        }

    def state_of(self, parameter: Tensor) -> dict[str, Any]:
        """Return what an optimizer keeps of a parameter; {} where none does."""
        return self.states_of([parameter])[0]

    def states_of(self, parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
        """Return `state_of` each."""
        optimizers = self.optimizers
        if len(optimizers) == 1:
            of = optimizers[0].state
            return [s if isinstance(s := of.get(parameter), dict) else {} for parameter in parameters]
        return [
            next((s for o in optimizers if isinstance(s := o.state.get(parameter), dict) and s), {})
            for parameter in parameters
        ]

    def state_tensors(
        self, named: Mapping[str, Tensor] | None = None, *, without: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Return the optimizers' floating state tensors as `h.0.weight.exp_avg`, step counters and `without` left out."""
        parameters = self.parameters() if named is None else named
        found: dict[str, Tensor] = {}
        for name, state in zip(parameters, self.states_of(parameters.values()), strict=True):
            for key, value in state.items():
                if key != "step" and key not in without and isinstance(value, Tensor) and value.is_floating_point():
                    found[f"{name}.{key}"] = own_part(value)
        return found


def optimizers_in(value: Any) -> list[torch.optim.Optimizer]:
    """Return the optimizers that a config's callable returned: one, a sequence or a dict of them; [] of others."""
    if isinstance(value, torch.optim.Optimizer):
        return [value]
    items = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(items, (list, tuple)) and all(isinstance(o, torch.optim.Optimizer) for o in items):
        return list(items)
    return []


def _below(root: str, name: str) -> str:
    return f"{root}.{name}" if root else name
