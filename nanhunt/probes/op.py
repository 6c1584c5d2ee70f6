"""The op probe: on one step, every op that torch dispatches, with what went in and what came out.

How it works. A `TorchDispatchMode` looks at the inputs before each call and at the outputs and mutated arguments after
it (in-place, `_foreach_*` and `_fused_*` included, by the op's own schema). Three births are kept apart: inf from
finite, NaN from finite, NaN from inf. Which op wrote a tensor is known by its storage, so that a non-finite value can be
followed back to where it was made. Backward ops are mapped to their forward op by autograd's sequence number.

What was chosen. Nothing is decomposed: the very kernels run that the user ran, so the bits are the same. Factories
(`empty` and its kin) make no births: their memory is whatever it was. A non-finite constant that the code asks for
(`masked_fill(…, -inf)`) is a constant, not a birth.

What it costs. About 1.3 of the plain step for the look, and copies of the operands of births only.

Not covered: what happens inside a fused kernel, a raw Triton launch, or a compiled region.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nanhunt.probes.autograd import backward_node, forward_sequence
from nanhunt.probes.probe import ModuleStack, RowBuffer
from nanhunt.probes.source import SourceLine, caller_line, place
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.step import StepWatch
from nanhunt.training.tree import tensors_of

__all__ = ["Capture", "OpEvent", "OpProbe", "Seen", "Terminal"]

#: Births whose operands are kept: those from finite inputs, and those that an inf went into.
_KEEP_FROM_FINITE, _KEEP_FROM_INF = 48, 16
#: Bytes of operands kept, all births together.
_KEEP_BYTES = 1 << 30

_FACTORIES = ("aten.empty", "aten.new_empty", "aten.resize_", "aten.set_", "aten.empty_like", "aten.empty_strided")
#: Ops that move or rename a value without computing: they carry, they never give birth.
_MOVES = (
    "aten.detach",
    "aten.alias",
    "aten.lift_fresh",
    "aten.clone",
    "aten.copy_",
    "aten._to_copy",
    "aten.contiguous",
)


@dataclass(slots=True)
class Seen:
    """What one look at a tensor showed."""

    name: str
    nan: bool = False
    posinf: bool = False
    neginf: bool = False
    #: event that wrote it last; None where it was made before the step
    writer: int | None = None
    #: "parameter h.0.weight", "buffer …", "batch x", "state h.0.weight.exp_avg_sq", or ''
    origin: str = ""
    storage: int = 0

    @property
    def bad(self) -> bool:
        """Whether it holds any non-finite element."""
        return self.nan or self.posinf or self.neginf

    @property
    def inf(self) -> bool:
        """Whether it holds an infinity."""
        return self.posinf or self.neginf


@dataclass(slots=True)
class Capture:
    """The call of a birth, kept whole: arguments as they were before it, outputs as they were after it."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[tuple[str, Tensor]]


@dataclass(slots=True)
class OpEvent:
    """One dispatched op."""

    index: int
    op: str
    phase: Phase
    micro: int
    module: str
    source: SourceLine | None
    inputs: list[Seen]
    outputs: list[Seen]
    seq: int
    sequence: int | None = None
    node: str | None = None
    #: of a backward op: the forward event that it differentiates
    forward: int | None = None
    #: "inf-from-finite", "nan-from-finite", "nan-from-inf", or None
    birth: str | None = None
    constant: bool = False
    capture: Capture | None = None

    @property
    def bad_outputs(self) -> list[Seen]:
        """Outputs with a non-finite element."""
        return [o for o in self.outputs if o.bad]


@dataclass(slots=True)
class Terminal:
    """Something that must be finite and was not: the loss, a gradient, a weight, a buffer, a moment."""

    kind: str
    name: str
    phase: Phase
    micro: int
    writer: int | None
    nan: bool


class OpProbe(TorchDispatchMode, StepWatch):
    """Looks at every op of one step. Enter it around the step and give it to the step as its watch."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, rows: RowBuffer, root: Path) -> None:
        super().__init__()
        self.events: list[OpEvent] = []
        self.terminals: list[Terminal] = []
        self.phase = Phase.FORWARD
        self.stack = ModuleStack()
        self._model = model
        self._optimizer = optimizer
        self._rows = rows
        self._root = root
        self._writers: dict[int, int] = {}
        self._origins: dict[int, str] = {}
        self._by_sequence: dict[int, int] = {}
        self._kept = {"finite": 0, "inf": 0, "bytes": 0}
        self._name_state()

    # --- what the step tells -------------------------------------------------------------------------------------

    def batch_read(self, micro: int, batch: Any) -> None:
        """Learn the batch's tensors by name."""
        self._rows.micro = micro
        self.phase = Phase.FORWARD
        for path, tensor in tensors_of(batch):
            self._forget(tensor)
            self._origins[_storage(tensor)] = f"batch {path}".rstrip()

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Note a non-finite loss."""
        self._look_at("loss", "loss", loss.detach())

    def backward_begins(self, micro: int) -> None:
        """Turn to backward."""
        self.phase = Phase.BACKWARD

    def gradients_ready(self) -> None:
        """Note non-finite gradients, before the clip spreads or hides them."""
        self.phase = Phase.CLIP
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                self._look_at("gradient", name, parameter.grad)

    def clipped(self) -> None:
        """Turn to the update; the moments may have been made since the step began."""
        self.phase = Phase.UPDATE
        self._name_state()

    def updated(self) -> None:
        """Note weights, buffers and optimizer state that are non-finite after the update."""
        self._name_state()
        for name, parameter in self._model.named_parameters():
            self._look_at("weight", name, parameter.detach())
            for key, value in _tensors_in(self._optimizer.state.get(parameter)):
                self._look_at("state", f"{name}.{key}", value)
        for name, buffer in self._model.named_buffers():
            self._look_at("buffer", name, buffer)

    # --- the mode ------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the op as it is, and note what it did."""
        kwargs = kwargs or {}
        if self._rows.is_aside or _is_view(func):
            return func(*args, **kwargs)
        name = op_name(func)
        written = _written_arguments(func)
        inputs = [self._seen(n, t) for n, t in _named_tensors(func, args, kwargs)]
        before = _copied(func, args, kwargs) if written else (args, kwargs)
        result = func(*args, **kwargs)
        outputs = [(n, t) for n, t in tensors_of(result, "output")]
        outputs += [(n, t) for n, t in _named_tensors(func, args, kwargs) if n.partition(".")[0] in written]
        event = self._event(name, func, args, kwargs, inputs, outputs)
        if event.birth and not event.constant:
            self._keep(event, func, before, outputs)
        return result

    def _event(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Seen],
        outputs: list[tuple[str, Tensor]],
    ) -> OpEvent:
        index = len(self.events)
        node = backward_node()
        forward = self._by_sequence.get(node[1]) if node and node[1] is not None else None
        source = caller_line(in_backward=node is not None)
        module = self.stack.current
        if node is not None and forward is not None:
            origin = self.events[forward]
            module, source = origin.module, source or origin.source
        phase = Phase.BACKWARD if node is not None else self.phase
        event = OpEvent(
            index=index,
            op=name,
            phase=phase,
            micro=self._rows.micro,
            module=module,
            source=source,
            inputs=inputs,
            outputs=[self._seen(n, t) for n, t in outputs],
            seq=self._rows.next_seq(),
            node=node[0] if node else None,
            forward=forward,
            constant=_asks_for_nonfinite(args, kwargs),
        )
        if node is None and phase is Phase.FORWARD:
            # the first op to claim a number made the node; detach and its kin come later under the same one
            event.sequence = forward_sequence()
            self._by_sequence.setdefault(event.sequence, index)
        event.birth = None if name.startswith(_FACTORIES) else _birth(event)
        self.events.append(event)
        for seen, (_, tensor) in zip(event.outputs, outputs, strict=True):
            self._writers[seen.storage] = index
            if seen.name.startswith("output"):
                self._origins.pop(seen.storage, None)
            self._record(event, seen.name, tensor)
        return event

    def _record(self, event: OpEvent, name: str, tensor: Tensor) -> None:
        source = place(event.source, self._root) if event.source else None
        self._rows.tensor(
            tensor,
            phase=event.phase,
            role=Role.OP,
            module=event.module,
            name=name,
            op=event.op,
            source=source,
            histogram=False,
        )

    def _seen(self, name: str, tensor: Tensor) -> Seen:
        nan, posinf, neginf = nonfinite_flags(tensor)
        storage = _storage(tensor)
        return Seen(
            name=name,
            nan=nan,
            posinf=posinf,
            neginf=neginf,
            writer=self._writers.get(storage),
            origin=self._origins.get(storage, ""),
            storage=storage,
        )

    def _look_at(self, kind: str, name: str, tensor: Tensor) -> None:
        seen = self._seen(name, tensor)
        if seen.nan or seen.inf:
            self.terminals.append(Terminal(kind, name, self.phase, self._rows.micro, seen.writer, seen.nan))

    def _keep(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        sort = "inf" if event.birth == "nan-from-inf" else "finite"
        room = _KEEP_FROM_INF if sort == "inf" else _KEEP_FROM_FINITE
        size = sum(t.numel() * t.element_size() for _, t in tensors_of([before[0], before[1]]))
        if self._kept[sort] >= room or self._kept["bytes"] + size > _KEEP_BYTES:
            return
        self._kept[sort] += 1
        self._kept["bytes"] += size
        args, kwargs = _copied_all(before[0]), _copied_all(before[1])
        event.capture = Capture(func, args, kwargs, [(n, t.detach().clone()) for n, t in outputs])

    def _name_state(self) -> None:
        """Give weights, buffers and optimizer state their names, by storage."""
        for name, parameter in self._model.named_parameters():
            self._origins[_storage(parameter)] = f"parameter {name}"
            if parameter.grad is not None:
                self._origins.setdefault(_storage(parameter.grad), f"gradient {name}")
            for key, value in _tensors_in(self._optimizer.state.get(parameter)):
                self._origins[_storage(value)] = f"state {name}.{key}"
        for name, buffer in self._model.named_buffers():
            self._origins[_storage(buffer)] = f"buffer {name}"

    def _forget(self, tensor: Tensor) -> None:
        """A fresh tensor may stand where a freed one stood."""
        self._writers.pop(_storage(tensor), None)


def op_name(func: Any) -> str:
    """Return `aten.exp`, or `aten.div.Tensor` where the overload has a name."""
    return str(func).removesuffix(".default")


def nonfinite_flags(tensor: Tensor) -> tuple[bool, bool, bool]:
    """Return whether the tensor holds NaN, +inf, -inf. One pass where it is finite (`aminmax` carries NaN along)."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0 or tensor.device.type == "meta":
        return False, False, False
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values._values() if values.layout is torch.sparse_coo else values.values()
        if values.numel() == 0:
            return False, False, False
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.element_size() == 1:  # aminmax has no 8-bit kernel
        values = values.float()
    low, high = torch.aminmax(values)
    lowest, highest = float(low), float(high)
    if math.isnan(lowest) or math.isnan(highest):
        return True, bool((values == math.inf).any()), bool((values == -math.inf).any())
    return False, highest == math.inf, lowest == -math.inf


def _birth(event: OpEvent) -> str | None:
    """Name the birth: what came out non-finite that did not go in so."""
    nan_in = any(i.nan for i in event.inputs)
    inf_in = any(i.inf for i in event.inputs)
    nan_out = any(o.nan for o in event.outputs)
    inf_out = any(o.inf for o in event.outputs)
    if nan_in or not (nan_out or inf_out):
        return None
    if inf_in:
        return "nan-from-inf" if nan_out else None
    return "nan-from-finite" if nan_out else "inf-from-finite"


def _asks_for_nonfinite(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a plain number among the arguments is itself non-finite: the code asked for it."""
    numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, float)]
    return any(not math.isfinite(n) for n in numbers)


def _storage(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a functional or fake tensor has none
        return id(tensor)


def _is_view(func: Any) -> bool:
    """Whether the op only gives another look at its input's memory."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


_WRITTEN: dict[Any, frozenset[str]] = {}


def _written_arguments(func: Any) -> frozenset[str]:
    """Names of the arguments that the op writes into, by its schema."""
    if func not in _WRITTEN:
        arguments = func._schema.arguments
        _WRITTEN[func] = frozenset(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return _WRITTEN[func]


def _named_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (argument name, tensor); tensors of a list are `name.0`, `name.1` …"""
    names = [a.name for a in func._schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        yield from tensors_of(value, name)


def _copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy the arguments that the op will write into; the others stay as they are."""
    written = _written_arguments(func)
    names = [a.name for a in func._schema.arguments]
    new = tuple(_copied_all(v) if n in written else v for n, v in zip(names, args, strict=False))
    return new, {n: _copied_all(v) if n in written else v for n, v in kwargs.items()}


def _copied_all(value: Any) -> Any:
    from nanhunt.training.tree import map_tensors

    return map_tensors(lambda t: t.detach().clone(), value)


def _tensors_in(state: Any) -> list[tuple[str, Tensor]]:
    """Return an optimizer's floating tensors of one parameter, without the step counter."""
    if not isinstance(state, dict):
        return []
    return [(k, v) for k, v in state.items() if isinstance(v, Tensor) and k != "step" and v.is_floating_point()]
