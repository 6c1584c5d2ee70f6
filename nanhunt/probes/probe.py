"""What probes share: the buffer that their rows go to, and the stack of modules that are running."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.probes.blocks import BlockLooks
from nanhunt.stats.summarize import StatsQueue
from nanhunt.stats.torch_kernel import is_measurable
from nanhunt.trace.schema import Observation, Phase, Role
from nanhunt.training.checkpoint_layout import clean_name

__all__ = ["ModuleStack", "RowBuffer", "dtype_name", "in_backward", "is_hookable", "modules_below", "split_name"]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A row whose statistics, or whose value, are still on the device."""

    row: Observation
    ticket: int | None = None
    value: Tensor | None = None


class RowBuffer:
    """Collects observations of one step; statistics stay on the device until `take`.

    `step`, `micro` and `pass_` describe what is running and are set by whoever runs it.
    """

    def __init__(self, *, rank: int = 0, histograms: bool = True) -> None:
        self.step = 0
        self.micro = 0
        self.pass_ = "replay"
        self.recording = True
        self._aside = 0
        self._rank = rank
        self._histograms = histograms
        self._seq = 0
        self._pending: list[_Pending] = []
        self._queue = StatsQueue()
        self.blocks = BlockLooks()

    @property
    def is_aside(self) -> bool:
        """Whether what runs now is ours and not the user's: the op probe lets it pass."""
        return self._aside > 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run the body without the probes of ops and of attention looking at it."""
        self._aside += 1
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self._aside -= 1

    def next_seq(self) -> int:
        """Return the next number in the order of observation."""
        self._seq += 1
        return self._seq

    def tensor(
        self,
        tensor: Tensor,
        *,
        phase: Phase,
        role: Role,
        module: str = "",
        name: str = "",
        op: str | None = None,
        source: str | None = None,
        histogram: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Observe a tensor as it is now; one that cannot be measured (nested, quantized) leaves no row.

        `shape` is that of the tensor whose part this is, where it is one.
        """
        if not self.recording or not is_measurable(tensor):
            return
        with self.aside():
            ticket = self._queue.add(tensor, histogram=histogram and self._histograms)
            # a part of a tensor has not its blocks
            if self.blocks.on and (shape is None or shape == tuple(tensor.shape)):
                self.blocks.add(tensor, self._queue.amax(ticket), role=role, module=module, name=name)
        row = self._row(phase, role, module, name)
        row = replace(row, op=op, source=source, dtype=dtype_name(tensor), shape=shape or tuple(tensor.shape))
        self._pending.append(_Pending(row, ticket=ticket))

    def tensors(self, named: Mapping[str, Tensor], *, phase: Phase, role: Role) -> None:
        """Observe tensors that nobody writes into meanwhile, by their qualified names: many to a launch on a GPU."""
        found = {name: t for name, t in named.items() if is_measurable(t)} if self.recording else {}
        with self.aside():
            values, exact = list(found.values()), phase is Phase.LOAD
            tickets = self._queue.add_all(values, histogram=self._histograms, exact=exact) if found else []
            for ticket, (qualified, tensor) in zip(tickets, found.items(), strict=True):
                module, name = split_name(qualified)
                if self.blocks.on:
                    self.blocks.add(tensor, self._queue.amax(ticket), role=role, module=module, name=name)
                row = self._row(phase, role, module, name)
                row = replace(row, dtype=dtype_name(tensor), shape=tuple(tensor.shape))
                self._pending.append(_Pending(row, ticket=ticket))

    def scalar(
        self, name: str, value: float | Tensor | None, *, phase: Phase, module: str = "", force: bool = False
    ) -> None:
        """Observe a scalar, on the host or still on the device; `force` records it on unrecorded steps too."""
        if value is None or not (self.recording or force):
            return
        row = self._row(phase, Role.SCALAR, module, name)
        if isinstance(value, Tensor):
            self._pending.append(_Pending(row, value=value.detach().to(torch.float64)))
        else:
            self._pending.append(_Pending(replace(row, value=float(value))))

    def take(self) -> list[Observation]:
        """Return the rows so far, with their statistics, and start afresh: the step's one wait for the device."""
        stats = self._queue.collect()
        waiting = [p.value for p in self._pending if p.value is not None]
        values = iter(torch.stack([v.to(waiting[0].device) for v in waiting]).tolist() if waiting else [])
        rows = []
        for pending in self._pending:
            if pending.ticket is not None:
                rows.append(replace(pending.row, stats=stats[pending.ticket]))
            elif pending.value is not None:
                rows.append(replace(pending.row, value=next(values)))
            else:
                rows.append(pending.row)
        self._pending.clear()
        return rows

    def drop(self) -> None:
        """Forget the rows so far, without a word to the device."""
        self._pending.clear()
        self._queue = StatsQueue()
        self.blocks.drop()

    def _row(self, phase: Phase, role: Role, module: str, name: str) -> Observation:
        return Observation(
            step=self.step,
            micro=self.micro,
            rank=self._rank,
            seq=self.next_seq(),
            pass_=self.pass_,
            phase=phase.value,
            role=role.value,
            module=module,
            name=name,
        )


class ModuleStack:
    """The names of the modules whose forward is running, innermost last, as in `state_dict`.

    A forward that a hook of the user's breaks off leaves modules without an end; the next forward of the root starts
    the stack anew.
    """

    def __init__(self) -> None:
        #: name, and whether autograd was running when it was entered
        self._entered: list[tuple[str, bool]] = []
        #: how many of them autograd was not running for
        self._running = 0

    @property
    def current(self) -> str:
        """The innermost running module; '' for the root and outside of any."""
        return self._entered[-1][0] if self._entered else ""

    @property
    def is_running(self) -> bool:
        """Whether any module's forward is running, one that is run again inside of backward left out."""
        return self._running > 0

    @property
    def is_recomputing(self) -> bool:
        """Whether the innermost module runs inside of a backward pass: activation checkpointing of whatever make."""
        return bool(self._entered) and self._entered[-1][1]

    @contextmanager
    def following(self, roots: Mapping[str, nn.Module]) -> Iterator[ModuleStack]:
        """Follow the forward passes of the modules below `roots` inside the body."""
        handles = []
        for name, module in modules_below(roots):
            if not is_hookable(module):
                continue
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving(name), always_call=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._clear()

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            again = in_backward()
            if name == "" and not again:
                self._clear()
            self._entered.append((name, again))
            self._running += not again

        return hook

    def _leaving(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            while self._entered:
                left, again = self._entered.pop()
                self._running -= not again
                if left == name:
                    return

        return hook

    def _clear(self) -> None:
        self._entered.clear()
        self._running = 0


def modules_below(roots: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module below the roots by its name, a root's own name in front.

    Wrappers (torch.compile, activation checkpointing, FSDP) leave no segment in a name; of a wrapper and what it wraps
    the inner one is yielded.
    """
    for root, module in roots.items():
        by_name = {clean_name(name): inner for name, inner in module.named_modules()}
        for name, inner in by_name.items():
            yield (f"{root}.{name}".rstrip(".") if root else name), inner


def is_hookable(module: nn.Module) -> bool:
    """Whether eager hooks reach the module; a container's list is never called, a ScriptModule takes no hook."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict, torch.jit.ScriptModule))


def in_backward() -> bool:
    """Whether autograd is running on this thread: a forward seen then is a recomputation."""
    current: int = torch._C._current_graph_task_id()
    return current != -1


def split_name(qualified: str) -> tuple[str, str]:
    """Split `h.0.attn.weight` into module and parameter name."""
    module, _, name = qualified.rpartition(".")
    return module, name


def dtype_name(tensor: Tensor) -> str:
    """Return `float16` for `torch.float16`."""
    return str(tensor.dtype).removeprefix("torch.")
