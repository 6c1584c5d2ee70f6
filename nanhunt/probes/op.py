"""The op probe: on one step, every op that torch dispatches, with what went in and what came out.

How it works. A `TorchDispatchMode` looks at the inputs before each call and at the outputs and mutated arguments after
it (in-place, `_foreach_*` and `_fused_*` included, by the op's own schema). Which op wrote a tensor is known by its
storage, so that a non-finite value can be followed back to where it was made. Backward ops are mapped to their forward
op by autograd's sequence number, and what activation checkpointing runs again to its first run.

What was chosen. Nothing is decomposed: the very kernels run that the user ran, so the bits are the same. Factories
(`empty` and its kin) make no births: their memory is whatever it was. A non-finite constant that the code asks for
(`masked_fill(…, -inf)`) is a constant, not a birth.

What it costs. About 1.3 of the plain step for the look, and copies of the operands of births only.

Not covered: what happens inside a fused kernel, a raw Triton launch, a higher-order op or a compiled region; reentrant
checkpointing on CUDA, where the recomputation's sequence numbers are counted by another thread.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanhunt.probes.autograd import backward_node, forward_sequence
from nanhunt.probes.closer import Closer, OpWatch, bytes_of, copied
from nanhunt.probes.event import Capture, OpEvent, Seen, Terminal, births_by_lane, lane_of, nonfinite_flags
from nanhunt.probes.memory import Memory
from nanhunt.probes.probe import ModuleStack, RowBuffer
from nanhunt.probes.source import caller_line, is_checkpointing, place
from nanhunt.stats.torch_kernel import is_measurable
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch
from nanhunt.training.tree import tensors_of

__all__ = ["OpProbe"]

#: Births whose operands are kept: those from finite inputs, and those that an inf went into.
_KEEP_FROM_FINITE, _KEEP_FROM_INF = 48, 16
#: Bytes of operands kept, all births together.
_KEEP_BYTES = 1 << 30

_FACTORIES = ("aten.empty", "aten.new_empty", "aten.resize_", "aten.set_")
#: In-place ops that do not read what they overwrite, which may be uninitialised memory.
_OVERWRITES = ("aten.copy_", "aten.fill_", "aten.zero_", "aten.normal_", "aten.uniform_", "aten.bernoulli_")


#: Phases that a module's forward ends.
_BEHIND = (Phase.BACKWARD, Phase.UNSCALE, Phase.CLIP, Phase.UPDATE)


class OpProbe(TorchDispatchMode, StepWatch):  # type: ignore[no-untyped-call]
    """Looks at every op of one step. Enter it around the step and give it to the step as its watch."""

    #: without it a higher-order op (flex_attention and its kin) would raise under the mode
    supports_higher_order_operators = True

    def __init__(self, run: TrainingRun, rows: RowBuffer, closer: OpWatch | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events: list[OpEvent] = []
        self.terminals: list[Terminal] = []
        self.phase = Phase.FORWARD
        self._nodes_ran = False
        #: what an op raised
        self.raised: Exception | None = None
        self.stack = ModuleStack()
        self._run = run
        self._rows = rows
        self.root = run.root
        self._memory = Memory()
        self._by_sequence: dict[int, int] = {}
        self._first_runs: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._kept = {"finite": 0, "inf": 0, "bytes": 0}
        self._closer: OpWatch = closer or Closer()
        self._name_state()

    # --- what the step tells -------------------------------------------------------------------------------------

    def batch_read(self, micro: int, batch: Any) -> None:
        """Learn the batch's tensors by name."""
        self._rows.micro = micro
        self.phase = Phase.FORWARD
        self._name_state()
        for path, tensor in tensors_of(batch):
            self._memory.given(tensor, f"batch {path}".rstrip())

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Note a non-finite loss."""
        self._look_at("loss", "loss", loss.detach())

    def backward_begins(self, micro: int) -> None:
        """Turn to backward."""
        self.phase, self._nodes_ran = Phase.BACKWARD, False
        self._closer.settle()

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Note non-finite gradients, before the clip spreads or hides them."""
        if parameters is None:  # a custom loop says itself where it is
            self.phase = Phase.CLIP
        for name, grad in self._run.gradients(parameters).items():
            self._look_at("gradient", name, grad)

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Turn to the update; the moments may have been made since the step began."""
        self.phase = Phase.UPDATE
        self._name_state()

    def turned_to(self, phase: str) -> None:
        """Turn to the phase that a custom loop has come to."""
        self.phase = Phase(phase)

    def update_made(self) -> None:
        """Turn to the forward pass that may follow in the same step."""
        self.phase = Phase.FORWARD

    def updated(self) -> None:
        """Note weights, buffers and optimizer state that are non-finite after the update."""
        self._name_state()
        for name, parameter in self._run.parameters().items():
            self._look_at("weight", name, parameter.detach())
            for key, value in _tensors_in(self._run.state_of(parameter)):
                self._look_at("state", f"{name}.{key}", value)
        for name, buffer in self._run.buffers().items():
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
        if self._rows.is_aside or not isinstance(func, torch._ops.OpOverload) or _is_view(func):
            return func(*args, **kwargs)
        self._closer.settle()
        name = str(func).removesuffix(".default")
        written = _written_arguments(func)
        unread = _unread_arguments(name, func)
        inputs = [self._seen(name, n, t) for n, t in _named_tensors(func, args, kwargs) if n not in unread]
        before = _copied(func, args, kwargs, written) if written else (args, kwargs)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self.raised = error  # the op's own, that is the user's, and not the probe's
            raise
        fresh = _fresh_outputs(func, result)
        mutated = [(n, t) for n, t in _named_tensors(func, args, kwargs) if n.partition(".")[0] in written]
        event = self._event(name, inputs, [*fresh, *mutated])
        event.births = {} if name.startswith(_FACTORIES) else births_by_lane(event.inputs, event.outputs)
        event.constant = _is_constant(event, args, kwargs)
        event.scalars = _numbers(args, kwargs)
        owner = event.index if event.repeats is None else event.repeats
        for position, (seen, (_, tensor)) in enumerate(zip(event.outputs, [*fresh, *mutated], strict=True)):
            cell = self._memory.of(tensor)
            cell.wrote(owner, seen.lane, bad=seen.bad, whole=position < len(fresh))
            self._record(event, seen.name, tensor)
        if event.births and not event.constant:
            self._keep(event, func, before, [*fresh, *mutated])
        self._closer.took(event, func, before, [*fresh, *mutated])
        return result

    def _event(self, name: str, inputs: list[Seen], outputs: list[tuple[str, Tensor]]) -> OpEvent:
        node = backward_node()
        again = node is not None and torch.is_grad_enabled() and (self.stack.is_recomputing or is_checkpointing())
        origin = self.events[self._by_sequence[node[1]]] if node and node[1] in self._by_sequence else None
        source = caller_line(in_backward=node is not None)
        module = self.stack.current
        if origin is not None:
            module = (module or origin.module) if again else origin.module
            source = source if again else source or origin.source
        if source is None and self.phase is Phase.FORWARD:
            source = caller_line()  # a gradient taken inside the forward pass: the line that takes it
        phase = self._phase_of(node is not None)
        event = OpEvent(
            index=len(self.events),
            op=name,
            phase=phase,
            micro=self._rows.micro,
            module=module,
            source=source,
            inputs=inputs,
            outputs=[self._seen(name, n, t) for n, t in outputs],
            seq=self._rows.next_seq(),
            node=node[0] if node and not again else None,
            forward=origin.index if origin is not None and not again else None,
        )
        if again:
            event.repeats = self._first_run(event)
        elif phase is Phase.FORWARD:
            self._first_runs[event.micro, name].append(event.index)
        if torch.is_grad_enabled() or phase is Phase.FORWARD:
            # the first op to claim a number made the node; detach and its kin come later under the same one
            self._by_sequence.setdefault(forward_sequence(), event.index if event.repeats is None else event.repeats)
        self.events.append(event)
        return event

    def _phase_of(self, in_node: bool) -> Phase:
        """Return the phase of an op: what follows the last node of a backward pass is the scaler's unscaling.

        Unless a module runs again: a custom loop goes on with the next forward pass, and says so to nobody.
        """
        if in_node:
            self._nodes_ran = True
            return Phase.BACKWARD
        if self.phase is Phase.BACKWARD and self._nodes_ran and not self.stack.is_running:
            return Phase.UNSCALE
        if self.phase in _BEHIND and self.stack.is_running:
            self.phase = Phase.FORWARD
        return self.phase

    def _first_run(self, event: OpEvent) -> int | None:
        """Return the forward event that a recomputed one repeats: as bad as this one, by preference in its place."""
        candidates = [self.events[i] for i in self._first_runs.get((event.micro, event.op), ())]
        alike = [c for c in candidates if bool(c.bad_outputs) == bool(event.bad_outputs)]
        alike = [c for c in alike if c.module == event.module] or alike
        alike = [c for c in alike if c.source == event.source] or alike
        return alike[-1].index if alike else None

    def _record(self, event: OpEvent, name: str, tensor: Tensor) -> None:
        source = place(event.source, self.root) if event.source else None
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

    def _seen(self, op: str, name: str, tensor: Tensor) -> Seen:
        nan, posinf, neginf = nonfinite_flags(tensor)
        cell = self._memory.of(tensor)
        writer, lane = cell.writer_of(bad=nan or posinf or neginf) or (None, "")
        return Seen(
            name=name,
            nan=nan,
            posinf=posinf,
            neginf=neginf,
            writer=writer,
            writer_lane=lane,
            origin=cell.origin,
            lane=lane_of(op, name),
        )

    def _look_at(self, kind: str, name: str, tensor: Tensor) -> None:
        seen = self._seen("", name, tensor)
        if seen.bad:
            terminal = Terminal(kind, name, self.phase, self._rows.micro, seen.writer, seen.nan, seen.writer_lane)
            self.terminals.append(terminal)

    def _keep(
        self,
        event: OpEvent,
        func: Any,
        before: tuple[tuple[Any, ...], dict[str, Any]],
        outputs: list[tuple[str, Tensor]],
    ) -> None:
        sort = "inf" if event.birth == "nan-from-inf" else "finite"
        room = _KEEP_FROM_INF if sort == "inf" else _KEEP_FROM_FINITE
        lane = event.birth_lane or ""
        args = tuple(_of_lane(a, lane) for a in before[0])
        kwargs = {k: _of_lane(v, lane) for k, v in before[1].items()}
        size = bytes_of([args, kwargs])
        if self._kept[sort] >= room or self._kept["bytes"] + size > _KEEP_BYTES:
            return
        if not all(is_measurable(t) for _, t in tensors_of([args, kwargs])):
            return
        self._kept[sort] += 1
        self._kept["bytes"] += size
        made = [(n, t) for n, t in outputs if lane_of(event.op, n) in ("", lane)]
        made = [(f"{n.rpartition('.')[0]}.0" if lane_of(event.op, n) else n, t.detach().clone()) for n, t in made]
        event.capture = Capture(func, copied(args), copied(kwargs), made, lane)

    def _name_state(self) -> None:
        """Give weights, gradients, buffers and optimizer state their names."""
        for name, parameter in self._run.parameters().items():
            self._memory.name(parameter, f"parameter {name}")
            if parameter.grad is not None:
                self._memory.name(parameter.grad, f"gradient {name}")
            for key, value in _tensors_in(self._run.state_of(parameter)):
                self._memory.name(value, f"state {name}.{key}")
        for name, buffer in self._run.buffers().items():
            self._memory.name(buffer, f"buffer {name}")


def _numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
    values = (*args, *kwargs.values())
    return tuple(float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool))


def _is_constant(event: OpEvent, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the code asked for what came out: an inf, or a NaN, stands among the plain arguments.

    `0 * inf` is NaN and nobody asked for it: an inf asks for an inf only.
    """
    numbers = [a for a in (*args, *kwargs.values()) if isinstance(a, float) and not math.isfinite(a)]
    if any(math.isnan(n) for n in numbers):
        return True
    return bool(numbers) and set(event.births.values()) == {"inf-from-finite"}


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


def _unread_arguments(name: str, func: Any) -> frozenset[str]:
    """Names of the arguments whose old content the op does not read: `out=`, and what `copy_` overwrites."""
    out = {a.name for a in func._schema.arguments if a.kwarg_only and a.name in _written_arguments(func)}
    return frozenset({*out, "self"} if name.startswith(_OVERWRITES) else out)


def _fresh_outputs(func: Any, result: Any) -> list[tuple[str, Tensor]]:
    """Return the outputs that are no arguments: an in-place op returns what it was given."""
    returns = func._schema.returns
    if len(returns) <= 1:
        return [] if returns and returns[0].alias_info is not None else list(tensors_of(result, "output"))
    named = [(f"output.{i}", value) for i, value in enumerate(result) if returns[i].alias_info is None]
    return [pair for name, value in named for pair in tensors_of(value, name)]


def _named_tensors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (argument name, tensor); tensors of a list are `name.0`, `name.1` …"""
    names = [a.name for a in func._schema.arguments]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        yield from tensors_of(value, name)


def _copied(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: frozenset[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy the arguments that the op will write into; the others stay as they are."""
    names = [a.name for a in func._schema.arguments]
    new = tuple(copied(v) if n in written else v for n, v in zip(names, args, strict=False))
    return new, {n: copied(v) if n in written else v for n, v in kwargs.items()}


def _of_lane(value: Any, lane: str) -> Any:
    """Return a list argument with the lane's entry only; anything else as it is."""
    if lane and isinstance(value, (list, tuple)) and len(value) > int(lane):
        return [value[int(lane)]]
    return value


def _tensors_in(state: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Return an optimizer's floating tensors of one parameter, without the step counter."""
    return [(k, v) for k, v in state.items() if isinstance(v, Tensor) and k != "step" and v.is_floating_point()]
