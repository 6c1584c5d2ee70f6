"""What is kept of one dispatched op: what went in, what came out, and whether it gave birth.

Three births are kept apart: inf from finite, NaN from finite, NaN from inf. Ops on lists (`_foreach_*`, `_fused_*`) do
the same to many tensors at once, a lane each: a NaN in one parameter's gradient is no birth for its neighbours, and
hides none of theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nanhunt.probes.memory import Cell
from nanhunt.probes.op_facts import lane_of
from nanhunt.probes.source import SourceLine
from nanhunt.stats.flags import FINITE, Flags
from nanhunt.trace.schema import Phase

__all__ = ["Capture", "OpEvent", "Place", "Seen", "Slope", "Terminal", "births_by_lane", "is_asked_for"]


@dataclass(slots=True)
class Seen:
    """One look at a tensor. What the look showed, and who wrote the tensor, is known when the step is over."""

    name: str
    cell: Cell
    #: of the look, in the probe's queue
    ticket: int
    #: "parameter h.0.weight", "buffer …", "batch x", "state h.0.weight.exp_avg_sq", or ''
    origin: str = ""
    lane: str = ""
    flags: Flags = FINITE
    #: event that wrote it, and which of its lanes; None where it was made before the step
    writer: int | None = None
    writer_lane: str = ""

    @property
    def nan(self) -> bool:
        """Whether it holds a NaN."""
        return self.flags.nan

    @property
    def posinf(self) -> bool:
        """Whether it holds +inf and no NaN."""
        return self.flags.posinf

    @property
    def neginf(self) -> bool:
        """Whether it holds -inf and no NaN."""
        return self.flags.neginf

    @property
    def bad(self) -> bool:
        """Whether it holds any non-finite element."""
        return self.flags.bad

    @property
    def inf(self) -> bool:
        """Whether it holds an infinity and no NaN."""
        return self.flags.posinf or self.flags.neginf


#: A look as it is noted down while the step runs: argument, memory, ticket, and what the memory was called by then.
Look = tuple[str, Cell, int, str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in memory a tensor's elements stood: an element is known by it through every view."""

    storage: int
    #: bytes of an element
    width: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> Place | None:
        """Return a tensor's place; None of one that has no strides, or no memory."""
        try:
            storage = tensor.untyped_storage().data_ptr()
            return cls(
                storage,
                tensor.element_size(),
                tuple(tensor.shape),
                tuple(tensor.stride()),
                int(tensor.storage_offset()),
            )
        except (RuntimeError, NotImplementedError):
            return None

    @property
    def end(self) -> int:
        """Elements from the start of the memory to behind the last."""
        return self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) + 1


@dataclass(slots=True)
class Capture:
    """The call of a birth: arguments as they were before it, outputs as they were after it.

    Of an op on lists only the lane that gave birth is kept: its lists have one entry, and names end in `.0`.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[tuple[str, Tensor]]
    lane: str = ""
    #: by name, of arguments and outputs
    places: dict[str, Place | None] = field(default_factory=dict)


@dataclass(slots=True)
class Slope:
    """The gradients that an autograd node got and gave, each None where it needs none."""

    incoming: tuple[Tensor | None, ...]
    outgoing: tuple[Tensor | None, ...]


@dataclass(slots=True)
class OpEvent:
    """One dispatched op."""

    index: int
    op: str
    phase: Phase
    micro: int
    module: str
    source: SourceLine | None
    #: looks at its operands, and at what it put out or wrote into
    taken: list[Look]
    made: list[Look]
    seq: int
    #: how many of the outputs, from the first, are new; the others are arguments that it wrote into
    fresh: int = 0
    #: its memory is whatever it was
    is_factory: bool = False
    #: activation checkpointing runs it again
    is_again: bool = False
    node: str | None = None
    #: of a backward op: the forward event that it differentiates
    forward: int | None = None
    #: of an op that activation checkpointing runs again: the event that it repeats
    repeats: int | None = None
    #: lane → "inf-from-finite", "nan-from-finite" or "nan-from-inf"; the lane of an ordinary op is ''
    births: dict[str, str] = field(default_factory=dict)
    #: the plain numbers among its arguments: an epsilon, a bound, an exponent
    scalars: tuple[float, ...] = ()
    #: the code asked for the infinity or NaN by name: `masked_fill(…, -inf)`
    constant: bool = False
    capture: Capture | None = None
    _inputs: list[Seen] | None = field(default=None, init=False)
    _outputs: list[Seen] | None = field(default=None, init=False)

    @property
    def inputs(self) -> list[Seen]:
        """Its operands: made of the looks when they are first asked for, which of a healthy step nobody does."""
        if self._inputs is None:
            self._inputs = [
                Seen(n, cell, ticket, origin, lane_of(self.op, n)) for n, cell, ticket, origin in self.taken
            ]
        return self._inputs

    @property
    def outputs(self) -> list[Seen]:
        """What it put out, then the arguments that it wrote into."""
        if self._outputs is None:
            self._outputs = [
                Seen(n, cell, ticket, origin, lane_of(self.op, n)) for n, cell, ticket, origin in self.made
            ]
        return self._outputs

    @property
    def birth(self) -> str | None:
        """The birth that is told: the first one from finite inputs, else the first."""
        lane = self.birth_lane
        return None if lane is None else self.births[lane]

    @property
    def birth_lane(self) -> str | None:
        """The lane of the birth that is told."""
        return next(
            (lane for lane, kind in self.births.items() if kind != "nan-from-inf"), next(iter(self.births), None)
        )

    @property
    def bad_outputs(self) -> list[Seen]:
        """Outputs with a non-finite element."""
        return [o for o in self.outputs if o.bad]

    def inputs_of(self, lane: str) -> list[Seen]:
        """Return the inputs that a lane reads: its own and those that all lanes share."""
        return self.inputs if not lane else [i for i in self.inputs if i.lane in ("", lane)]


@dataclass(slots=True)
class Terminal:
    """Something that must be finite and was not: the loss, a gradient, a weight, a buffer, a moment."""

    kind: str
    name: str
    phase: Phase
    micro: int
    writer: int | None
    nan: bool
    writer_lane: str = ""


def births_by_lane(inputs: list[Seen], outputs: list[Seen]) -> dict[str, str]:
    """Name the births of an op: what came out non-finite that did not go in so."""
    births = {}
    for lane in dict.fromkeys(o.lane for o in outputs if o.bad):
        given = [i for i in inputs if not lane or i.lane in ("", lane)]
        made = [o for o in outputs if o.lane == lane]
        if any(i.nan for i in given):
            continue
        if any(i.inf for i in given):
            if any(o.nan for o in made):
                births[lane] = "nan-from-inf"
        else:
            births[lane] = "nan-from-finite" if any(o.nan for o in made) else "inf-from-finite"
    return births


def is_asked_for(event: OpEvent) -> bool:
    """Whether the code asked for what came out: an inf, or a NaN, stands among the plain arguments.

    `0 * inf` is NaN and nobody asked for it: an inf asks for an inf only.
    """
    if any(math.isnan(n) for n in event.scalars):
        return True
    return any(math.isinf(n) for n in event.scalars) and set(event.births.values()) == {"inf-from-finite"}
