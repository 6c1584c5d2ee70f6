"""The op probe: on one step, every op that torch dispatches, with what went in and what came out.

How it works. A `TorchDispatchMode` notes each call down: its inputs before it, its outputs and mutated arguments after
it (in-place, `_foreach_*` and `_fused_*` included, by the op's own schema). What has been looked at once and was not
written since is not looked at again, so that an op costs a pass over what it puts out. The answers wait on the device
until the step is over; then the log is gone through once (`provenance`): which op wrote a tensor is known by its
storage, so that a non-finite value can be followed back to where it was made. Backward ops are mapped to their forward
op by autograd's sequence number, and what activation checkpointing runs again to its first run.

What was chosen. Nothing is decomposed: the very kernels run that the user ran, so the bits are the same. Factories
(`empty` and its kin) make no births: their memory is whatever it was, and is looked at whenever it is read. A non-finite
constant that the code asks for (`masked_fill(…, -inf)`) is a constant, not a birth.

What it costs. `make bench-hunt` prints it: about 1.4 of the plain step. Rows of every op, where the row buffer records,
cost several times that.

Not covered: what happens inside a fused kernel, a raw Triton launch, a higher-order op, a compiled region or a tensor
subclass; who wrote what went past the dispatcher (such a launch, numpy, a C extension); reentrant checkpointing on CUDA, where the recomputation's
sequence numbers are counted by another thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode_temporarily

from nanhunt.probes.autograd import backward_node, forward_sequence
from nanhunt.probes.closer import KEEP_BYTES, Closer, OpWatch, bytes_of, copied
from nanhunt.probes.event import Capture, Look, OpEvent, Terminal
from nanhunt.probes.memory import Memory, shows_all
from nanhunt.probes.op_facts import WAIT, OpFacts, facts_of, fresh_outputs, taken_apart
from nanhunt.probes.probe import ModuleStack, RowBuffer
from nanhunt.probes.provenance import Asked, Given, Log, resolve
from nanhunt.probes.source import SourceLine, caller_line, is_checkpointing, place
from nanhunt.stats.flags import FlagQueue
from nanhunt.stats.torch_kernel import is_measurable
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch
from nanhunt.training.tree import tensors_of

__all__ = ["OpProbe"]

#: Every number of the first is one of the second.
_HALF, _WIDE = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)
#: Where torch has its tensors of several ranks: DTensor, and the result of a collective that nobody waited for yet.
_SPREAD = "torch.distributed."
#: Phases that a module's forward ends.
_BEHIND = (Phase.BACKWARD, Phase.UNSCALE, Phase.CLIP, Phase.UPDATE)


class OpProbe(TorchDispatchMode, StepWatch):  # type: ignore[no-untyped-call]
    """Looks at every op of one step. Enter it around the step and give it to the step as its watch."""

    #: without it a higher-order op (flex_attention and its kin) would raise under the mode
    supports_higher_order_operators = True

    def __init__(
        self, run: TrainingRun, rows: RowBuffer, closer: OpWatch | None = None, *, exact: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asked_exact = exact
        #: in order of execution; their flags, writers and births are there after `resolve`
        self.events: list[OpEvent] = []
        self.terminals: list[Terminal] = []
        self.phase = Phase.FORWARD
        self._nodes_ran = False
        #: what an op raised
        self.raised: Exception | None = None
        #: and the op that did
        self.raising: str = ""
        #: with its arguments
        self.raising_call: Capture | None = None
        self.stack = ModuleStack()
        self._run = run
        self._rows = rows
        self.root = run.root
        self._memory = Memory()
        self._flags = FlagQueue()
        self._log: Log = []
        #: results of collectives that were not waited for yet, by memory: who sent, and which of its outputs
        self._sent: dict[int, tuple[OpEvent, int]] = {}
        self._by_sequence: dict[int, int] = {}
        #: module and line of the views that made a node
        self._views: dict[int, tuple[str, SourceLine | None]] = {}
        self._closer: OpWatch = closer or Closer()
        self._parameters = run.parameters()
        self._name_state()

    @property
    def _exact(self) -> bool:
        """Whether every operand is looked at as it is when it is read: in a recorded look, and where it is asked for."""
        return self._asked_exact or self._rows.recording

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from wrapping every call against a compiler that the hunt never runs: 5 µs an op."""
        return False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Run the body without this mode, where it is the innermost one."""
        if _get_current_dispatch_mode() is self:
            with _pop_mode_temporarily():
                yield
        else:
            yield

    def resolve(self) -> None:
        """Work out what the step's looks showed: waits for the device. Called once, after the step."""
        self.terminals += resolve(self._log, self.events, self._flags.fetch())
        self._log.clear()

    # --- what the step tells -------------------------------------------------------------------------------------

    def batch_read(self, micro: int, batch: Any) -> None:
        """Learn the batch's tensors by name."""
        self._rows.micro = micro
        self.phase = Phase.FORWARD
        self._name_gradients()
        for path, tensor in tensors_of(batch):
            self._memory.given(tensor, f"batch {path}".rstrip())
            self._log.append(Given(self._memory.of(tensor)))

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Note a non-finite loss."""
        self._look_at("loss", {"loss": loss.detach()})

    def backward_begins(self, micro: int) -> None:
        """Turn to backward."""
        self.phase, self._nodes_ran = Phase.BACKWARD, False
        self._closer.settle()

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Note non-finite gradients, before the clip spreads or hides them."""
        if parameters is None:  # a custom loop says itself where it is
            self.phase = Phase.CLIP
        self._look_at("gradient", self._run.gradients(parameters, self._parameters))

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Turn to the update."""
        self.phase = Phase.UPDATE

    def turned_to(self, phase: str) -> None:
        """Turn to the phase that a custom loop has come to."""
        self.phase = Phase(phase)

    def update_made(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Turn to the forward pass that may follow in the same step."""
        self.phase = Phase.FORWARD

    def updated(self) -> None:
        """Note weights, buffers and optimizer state that are non-finite after the update."""
        run = self._run
        self._look_at("weight", run.weights())
        self._look_at("state", run.state_tensors(self._parameters))  # some are made in the first step
        self._look_at("buffer", run.buffers())

    # --- the mode ------------------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the op as it is, and note what it did. What is spread over ranks runs ops on its own part, which come here."""
        if any(t.__module__.startswith(_SPREAD) for t in types):
            return NotImplemented
        kwargs = kwargs or {}
        facts = facts_of(func)
        if self._rows.is_aside:
            return func(*args, **kwargs)
        if facts.name == WAIT:
            return self._waited_for(func(*args, **kwargs))
        if facts.is_transparent:
            return self._viewed(func, args, kwargs)
        self._closer.settle()
        given, numbers = taken_apart(facts, args, kwargs)
        read = [pair for pair in given if pair[0].partition(".")[0] not in facts.unread] if facts.unread else given
        taken = self._taken(facts, read)
        before = (args, kwargs)
        if facts.written and self._closer.wants(len(self.events), facts.name):
            before = copied(args), {n: copied(v) for n, v in kwargs.items()}  # an operand may share the memory
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self._raised(error, func, *before)  # the op's own, that is the user's, and not the probe's
            raise
        outputs = fresh_outputs(facts, result)
        fresh = len(outputs)
        if facts.written:
            outputs += [(n, t) for n, t in given if n.partition(".")[0] in facts.written]
        made = self._made(facts, outputs, taken[0][2] if self._is_known(facts, given, outputs) else None)
        event = self._event(facts, taken, made, fresh)
        event.scalars = numbers
        if self._rows.recording:
            for name, tensor in outputs:
                self._record(event, name, tensor)
        if facts.is_collective:
            self._sent |= {id(look[1]): (event, index) for index, look in enumerate(event.made)}
        else:
            self._closer.took(event, func, before, outputs)
        return result

    def _waited_for(self, result: Tensor) -> Tensor:
        """Look at what a collective gave, now that it is there."""
        cell = self._memory.of(result)
        event, index = self._sent.pop(id(cell), (None, 0))
        if event is not None:
            name, _, _, origin = event.made[index]
            event.made[index] = (name, cell, self._flags.look(result, signed=self._exact), origin)
        return result

    def _viewed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a view, and keep its place for its backward: the sum of an `expand` is an op that can overflow."""
        number = forward_sequence()
        if number not in self._views and number not in self._by_sequence and self.phase is Phase.FORWARD:
            self._views[number] = self.stack.current, caller_line()
        try:
            return func(*args, **kwargs)
        except Exception as error:
            self._raised(error, func, args, kwargs)
            raise

    def _raised(self, error: Exception, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what an op raised, and of what arguments, unless they are too large to be kept."""
        self.raised, self.raising, self.raising_call = error, facts_of(func).name, None
        is_plain = all(is_measurable(t) for _, t in tensors_of([args, kwargs]))
        if is_plain and bytes_of([args, kwargs]) <= KEEP_BYTES and "CUDA" not in str(error):
            self.raising_call = Capture(func, copied(args), copied(kwargs), [])

    def _event(self, facts: OpFacts, taken: list[Look], made: list[Look], fresh: int) -> OpEvent:
        node = backward_node()
        with_grad = torch.is_grad_enabled()
        again = node is not None and with_grad and (self.stack.is_recomputing or is_checkpointing())
        origin = self.events[self._by_sequence[node[1]]] if node and node[1] in self._by_sequence else None
        source = caller_line(in_backward=node is not None)
        module = self.stack.current
        if origin is not None:
            module = (module or origin.module) if again else origin.module
            source = source if again else source or origin.source
        elif node is not None and node[1] in self._views and not again:
            module, line = self._views[node[1]]
            source = source or line
        if source is None and self.phase is Phase.FORWARD:
            source = caller_line()  # a gradient taken inside the forward pass: the line that takes it
        phase = self._phase_of(node is not None)
        event = OpEvent(
            index=len(self.events),
            op=facts.name,
            phase=phase,
            micro=self._rows.micro,
            module=module,
            source=source,
            taken=taken,
            made=made,
            seq=self._rows.next_seq(),
            fresh=fresh,
            is_factory=facts.is_factory,
            is_again=again,
            node=node[0] if node and not again else None,
            forward=origin.index if origin is not None and not again else None,
        )
        if with_grad or phase is Phase.FORWARD:
            # the first op to claim a number made the node; detach and its kin come later under the same one
            number = forward_sequence()
            if number not in self._views:
                self._by_sequence.setdefault(number, event.index)
        self.events.append(event)
        self._log.append(event)
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

    def _taken(self, facts: OpFacts, given: list[tuple[str, Tensor]]) -> list[Look]:
        """Look at operands; in a step that is only searched, but for those whose memory's last look still holds.

        There a part is taken for what the whole is, and a write that went past the dispatcher is missed: the exact look
        that follows tells.
        """
        looks: list[Look] = []
        new: list[tuple[int, Tensor]] = []
        of, exact = self._memory.of, self._exact
        for name, tensor in given:
            cell = of(tensor)
            ticket = None if exact else cell.content
            if ticket is None:
                new.append((len(looks), tensor))
            looks.append((name, cell, ticket or 0, cell.origin))
        if new:
            for (index, tensor), ticket in zip(new, self._looks(facts, [t for _, t in new]), strict=True):
                name, cell, _, origin = looks[index]
                looks[index] = (name, cell, ticket, origin)
                if ticket and shows_all(tensor, cell):  # bits read as integers say nothing of what numbers they may be
                    cell.content = ticket
        return looks

    def _is_known(self, facts: OpFacts, given: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor]]) -> bool:
        """Whether a step that is only searched need not look: a copy into as wide a format holds what it was made of."""
        if not facts.is_copy or self._exact or len(given) != 1 or len(outputs) != 1:
            return False
        old, new = given[0][1], outputs[0][1]
        return old.dtype == new.dtype or (old.dtype in _HALF and new.dtype in _WIDE)

    def _made(self, facts: OpFacts, outputs: list[tuple[str, Tensor]], known: int | None) -> list[Look]:
        """Look at what an op wrote, unless the look that tells of it is known."""
        looks: list[Look] = []
        of = self._memory.of
        if facts.is_collective and facts.name.startswith("_"):
            return [(name, cell, 0, cell.origin) for name, cell in ((n, of(t)) for n, t in outputs)]
        tickets = self._looks(facts, [t for _, t in outputs]) if known is None else [known]
        for (name, tensor), ticket in zip(outputs, tickets, strict=True):
            cell = of(tensor)
            # a kernel that torch does not dispatch may fill what a factory gave
            cell.content = ticket if ticket and not facts.is_factory and shows_all(tensor, cell) else None
            looks.append((name, cell, ticket, cell.origin))
        return looks

    def _looks(self, facts: OpFacts, tensors: list[Tensor]) -> Iterable[int]:
        if facts.has_lanes:
            return self._flags.look_at_all(tensors)
        # which infinity it is, the exact look tells
        return [self._flags.look(tensor, signed=self._exact) for tensor in tensors]

    def _look_at(self, kind: str, tensors: dict[str, Tensor]) -> None:
        """Look at what must be finite, but for memory whose last look still holds."""
        cells = [self._memory.of(tensor) for tensor in tensors.values()]
        whole = [shows_all(tensor, cell) for tensor, cell in zip(tensors.values(), cells, strict=True)]
        known = [
            c.content if all_of_it and not self._exact else None for c, all_of_it in zip(cells, whole, strict=True)
        ]
        new = [t for t, held in zip(tensors.values(), known, strict=True) if held is None]
        asked = iter(self._flags.look_at_all(new, signed=kind == "buffer"))
        for name, cell, all_of_it, held in zip(tensors, cells, whole, known, strict=True):
            ticket = next(asked) if held is None else held
            if held is None and all_of_it and ticket:
                cell.content = ticket
            if kind in ("state", "gradient"):  # made in the step
                cell.origin = f"{kind} {name}"
            self._log.append(Asked(kind, self.phase, self._rows.micro, (name, cell, ticket, cell.origin)))

    def _name_state(self) -> None:
        """Give weights, buffers and optimizer state their names."""
        run = self._run
        named = {"parameter": run.weights(), "state": run.state_tensors(self._parameters), "buffer": run.buffers()}
        for kind, tensors in named.items():
            for name, tensor in tensors.items():
                self._memory.name(tensor, f"{kind} {name}")

    def _name_gradients(self) -> None:
        for name, grad in self._run.gradients(None, self._parameters).items():
            self._memory.name(grad, f"gradient {name}")
