"""What probes share: the buffer that their rows go to, and the stack of modules that are running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nanhunt.probes.blocks import BlockLooks
from nanhunt.stats.columns import EMPTY, StatsColumns
from nanhunt.stats.summarize import StatsQueue
from nanhunt.stats.torch_kernel import is_measurable
from nanhunt.trace.schema import Phase, Role
from nanhunt.trace.step_rows import Layout, Site, StepRows
from nanhunt.training.names import clean_name

__all__ = ["ModuleStack", "RowBuffer", "dtype_name", "in_backward", "is_hookable", "modules_below", "split_name"]


#: A scalar on the host or on a device; None of what is no scalar, or lies in a table.
_Value = float | Tensor | None


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
        self._queue = StatsQueue()
        self._lock = threading.Lock()
        #: what has reached the host; tickets count on from there
        self._stats = EMPTY
        #: of rows that follow each other: step, micro, the first one's number, how many
        self._runs: list[list[int]] = []
        #: of each row: site, ticket or -1, value
        self._sites: list[Site] = []
        self._tickets: list[int] = []
        self._values: list[_Value] = []
        #: tables of scalars on a device: the first row, the places of its values and of those behind it, the table
        self._tables: list[tuple[int, npt.NDArray[np.int64], Tensor]] = []
        #: vectors on a device, their rows, and what makes a scalar of each
        self._unfinished: list[tuple[int, Tensor, Callable[[npt.NDArray[Any]], float]]] = []
        #: what `peek` gave, until there is more
        self._peeked: StepRows | None = None
        #: tensors by name that could not be measured
        self.left_out: list[tuple[Role, str, Tensor]] = []
        self._known: dict[tuple[Any, ...], Site] = {}
        #: of groups, by pass, phase and role, what was asked for last and the sites that it had
        self._groups: dict[tuple[str, Phase, Role], tuple[Any, list[Site]]] = {}
        self._layouts: list[tuple[list[Site], Layout]] = []
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
    ) -> None:
        """Observe a tensor as it is now; one that cannot be measured (nested, quantized) leaves no row."""
        if not self.recording:
            return
        self._aside += 1
        try:  # `aside` costs as much as the rest
            # gradients of a model on several devices come from a thread of each
            with self._lock, torch._C.DisableTorchFunction():
                ticket = self._queue.add(tensor, histogram=histogram and self._histograms)
                if ticket is None:
                    return
                if self.blocks.on:
                    self.blocks.add(tensor, self._queue.amax(ticket), role=role, module=module, name=name)
                site = self._site(phase, role, module, name, op, source, tensor.dtype, tensor.shape)
                self._add(site, ticket + len(self._stats), None)
        finally:
            self._aside -= 1

    def tensors(
        self,
        named: Mapping[str, Tensor],
        *,
        phase: Phase,
        role: Role,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Observe tensors that nobody writes into meanwhile, by their qualified names: many to a launch on a GPU.

        `shapes` are those of the tensors whose parts these are, where they are parts.
        """
        found = {name: t for name, t in named.items() if is_measurable(t)} if self.recording else {}
        if self.recording and len(found) < len(named):
            self.left_out += [(role, name, t) for name, t in named.items() if name not in found]
        if not found:
            return
        with self.aside():
            values, exact = list(found.values()), phase is Phase.LOAD
            tickets = self._queue.add_all(values, histogram=self._histograms, exact=exact)
            for ticket, (qualified, tensor) in zip(tickets, found.items(), strict=True) if self.blocks.on else ():
                if shapes is None or shapes[qualified] == tensor.shape:  # a part of a tensor has not its blocks
                    module, name = split_name(qualified)
                    self.blocks.add(tensor, self._queue.amax(ticket), role=role, module=module, name=name)
            names, dtypes = list(found), [t.dtype for t in values]
            said = [t.shape for t in values] if shapes is None else [shapes[name] for name in found]
            each = zip(names, dtypes, said, strict=True)
            sites = self._sites_of(
                phase,
                role,
                (names, dtypes, said),
                lambda: (self._site(phase, role, *split_name(n), None, None, dtype, shape) for n, dtype, shape in each),
            )
            self._add_all(sites, [ticket + len(self._stats) for ticket in tickets])

    def scalar(
        self, name: str, value: float | Tensor | None, *, phase: Phase, module: str = "", force: bool = False
    ) -> None:
        """Observe a scalar, on the host or still on the device; `force` records it on unrecorded steps too."""
        if value is None or not (self.recording or force):
            return
        held = value.detach().to(torch.float64) if isinstance(value, Tensor) else float(value)
        self._add(self._site(phase, Role.SCALAR, module, name), -1, held)

    def later(
        self,
        name: str,
        held: Tensor,
        finish: Callable[[npt.NDArray[Any]], float],
        *,
        phase: Phase,
        module: str = "",
    ) -> None:
        """Observe a scalar that is made on the host, when the step is over, of a vector that waits on the device."""
        if self.recording:
            self._unfinished.append((len(self._sites), held.detach(), finish))
            self._add(self._site(phase, Role.SCALAR, module, name), -1, None)

    def scalars(
        self, names: Sequence[tuple[str, str]], places: npt.NDArray[np.int64], table: Tensor, *, phase: Phase
    ) -> None:
        """Observe scalars that lie in one fp64 tensor on the device: module and name, and place in it, of each."""
        if not names or not self.recording:
            return
        sites = self._sites_of(
            phase, Role.SCALAR, names, lambda: (self._site(phase, Role.SCALAR, module, name) for module, name in names)
        )
        self._tables.append((len(self._sites), places, table.detach().reshape(-1)))
        self._add_all(sites, [-1] * len(sites))

    def take(self) -> StepRows:
        """Return the rows so far, with their statistics, and start afresh: the step's one wait for the device."""
        rows = self.peek()
        self._forget()
        return rows

    def peek(self) -> StepRows:
        """Return the rows so far, and keep them; the device is waited for once, whoever asks first."""
        if self._peeked is not None:
            return self._peeked
        stats = self._stats = StatsColumns.joined([self._stats, self._queue.collect()])
        self._fetch_values()
        tickets = np.array(self._tickets, np.int64)
        tickets = np.where((tickets >= 0) & (stats.numel[tickets] < 0), -1, tickets) if len(stats) else tickets
        runs = np.array(self._runs, np.int64).reshape(-1, 4)
        counts = runs[:, 3]
        self._peeked = StepRows(
            layout=self._layout(),
            rank=np.full(len(tickets), self._rank, np.int64),
            step=runs[:, 0].repeat(counts),
            micro=runs[:, 1].repeat(counts),
            seq=(runs[:, 2] - counts.cumsum() + counts).repeat(counts) + np.arange(len(tickets)),
            ticket=tickets,
            stats=stats,
            value=np.array([value if isinstance(value, float) else 0.0 for value in self._values]),
            has_value=np.array([value is not None for value in self._values], bool),
        )
        return self._peeked

    def drop(self) -> None:
        """Forget the rows so far, without a word to the device."""
        self._forget()
        self._queue = StatsQueue()
        self.blocks.drop()

    def _forget(self) -> None:
        self._stats, self._peeked = EMPTY, None
        columns = (self._runs, self._sites, self._tickets, self._values)
        for column in (*columns, self._tables, self._unfinished, self.left_out):
            column.clear()

    def _fetch_values(self) -> None:
        """Bring scalars to the host, with one wait for each device and each table."""
        devices: dict[torch.device, list[int]] = {}
        for row, value in enumerate(self._values):
            if isinstance(value, Tensor):
                devices.setdefault(value.device, []).append(row)
        for rows in devices.values():
            held = [value for row in rows if isinstance(value := self._values[row], Tensor)]
            for row, number in zip(rows, torch.stack(held).tolist(), strict=True):
                self._values[row] = number
        for first, places, table in self._tables:
            self._values[first : first + len(places)] = table.cpu().numpy()[places].tolist()
        self._tables.clear()
        self._finish()

    def _finish(self) -> None:
        """Make scalars of the vectors that waited, with one wait for those of a device and dtype."""
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, (_, held, _) in enumerate(self._unfinished):
            alike.setdefault((held.device, held.dtype), []).append(index)
        for indices in alike.values():
            vectors = [self._unfinished[i][1] for i in indices]
            parts = np.split(torch.cat(vectors).cpu().numpy(), np.cumsum([len(v) for v in vectors])[:-1])
            for index, part in zip(indices, parts, strict=True):
                row, _, finish = self._unfinished[index]
                self._values[row] = finish(part)
        self._unfinished.clear()

    def _layout(self) -> Layout:
        """Return the layout of the rows: the same object as a step before had, where it was the same."""
        for sites, layout in self._layouts:
            if sites == self._sites:
                return layout
        if len(self._layouts) >= _LAYOUTS:
            self._layouts.clear()
        layout = Layout(self._sites)
        self._layouts.append((list(self._sites), layout))
        return layout

    def _site(
        self,
        phase: Phase,
        role: Role,
        module: str,
        name: str,
        op: str | None = None,
        source: str | None = None,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Site:
        key = (self.pass_, phase, role, module, name, op, source, dtype, shape)
        site = self._known.get(key)
        if site is None:
            if len(self._known) >= _SITES:
                self._known.clear()
                self._groups.clear()
                self._layouts.clear()
            written = None if dtype is None else str(dtype).removeprefix("torch.")
            lengths = None if shape is None else tuple(shape)
            site = Site(self.pass_, phase.value, role.value, module, name, op, source, written, lengths)
            self._known[key] = site
        return site

    def _sites_of(self, phase: Phase, role: Role, asked: Any, made: Callable[[], Iterable[Site]]) -> list[Site]:
        """Return the sites of a group: those of its last time, where the same is asked."""
        key = (self.pass_, phase, role)
        last, sites = self._groups.get(key, (None, []))
        if last != asked:
            sites = list(made())
            self._groups[key] = asked, sites
        return sites

    def _add(self, site: Site, ticket: int, value: _Value) -> None:
        self._number(1)
        self._sites.append(site)
        self._tickets.append(ticket)
        self._values.append(value)

    def _add_all(self, sites: Sequence[Site], tickets: Sequence[int]) -> None:
        self._number(len(sites))
        self._sites += sites
        self._tickets += tickets
        self._values += [None] * len(sites)

    def _number(self, count: int) -> None:
        """Give the rows that come next their step, micro-step and numbers."""
        run, first = self._runs[-1] if self._runs else (), self._seq + 1
        self._seq += count
        self._peeked = None
        if run and run[0] == self.step and run[1] == self.micro and run[2] + run[3] == first:
            run[3] += count
        else:
            self._runs.append([self.step, self.micro, first, count])


#: Layouts and sites that are remembered: a model has a few of the one and thousands of the other.
_LAYOUTS, _SITES = 8, 1 << 16


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
    """Return `float16` for a tensor of `torch.float16`."""
    return str(tensor.dtype).removeprefix("torch.")
