"""Detection: whether what must be finite in a step is, on every step, recorded or not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nanhunt.probes.op import OpProbe
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.update_bound import UpdateBound, rates_of
from nanhunt.stats.flags import FlagQueue
from nanhunt.trace.schema import Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch

__all__ = ["Finiteness", "nonfinite_names"]

#: What a terminal's kind is called in `Finiteness`; of a loss its value is asked for.
_LISTS = {"gradient": "grads", "weight": "weights", "buffer": "buffers", "state": "state"}


class Finiteness(StepWatch):
    """Detection: the names of what is non-finite in a step, found on every step whether it is recorded or not.

    Flags stay on the device until `resolve`, after the step: nothing waits for it inside.
    """

    def __init__(
        self,
        run: TrainingRun,
        zoom: OpProbe | None = None,
        rows: RowBuffer | None = None,
        bound: UpdateBound | None = None,
    ) -> None:
        self._run = run
        #: what the update can at most make of weights and moments; None where they are looked at
        self._bound = bound
        #: the rates of the update, where the bound may spare the look
        self._rates = rates_of(run) if bound is not None and zoom is None and rows is None else None
        #: parameters whose gradients are judged by their norms, and these
        self._by_norm: tuple[Sequence[Tensor], Sequence[Tensor]] = ((), ())
        #: of a recorded step; what is measured for them is not looked at a second time
        self._rows = rows
        #: it looks at the same tensors, and knows most of them from the ops that made them
        self._zoom = zoom
        self._losses: list[Tensor] = []
        self._queue = FlagQueue()
        #: (kind, name, ticket, whether -inf is allowed) of every look
        self._looks: list[tuple[str, str, int, bool]] = []
        self.losses: list[float] = []
        #: a loss in half precision repeats itself by its few digits
        self.loss_is_half = False
        #: of a recorded step, whose forward put out a NaN or +inf, in the order in which they ended
        self.modules: list[str] = []
        self.grads: list[str] = []
        self.weights: list[str] = []
        self.buffers: list[str] = []
        self.state: list[str] = []

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Keep the micro-step's loss."""
        self.loss_is_half |= loss.dtype in (torch.float16, torch.bfloat16)
        self._losses.append(loss.detach().reshape(()).double())

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Look at every gradient, unscaled and not yet clipped."""
        if self._zoom is not None or self._rows is not None:
            return
        if self._is_known:  # norms of the others come, which tell it as well
            assert self._bound is not None
            self._look("grads", {name: p.grad for name, p in self._bound.others.items() if p.grad is not None})
        else:
            self._look("grads", self._run.gradients(parameters, self._named))

    def norms_taken(self, parameters: Sequence[Tensor], norms: Sequence[Tensor]) -> None:
        """Keep the norms: a gradient with a finite one is finite, and none of its elements is larger."""
        if self._is_known:
            self._by_norm = (parameters, norms)

    def updated(self) -> None:
        """Look at weights, buffers and optimizer state."""
        run = self._run
        if self._zoom is not None:
            return
        if self._rows is not None:
            self._look("state", run.state_tensors(self._named, without=_MOMENTS))
            return
        self._look("buffers", run.buffers(), masks=True)
        if not self._is_known:
            self._look_at_state()

    @property
    def _is_known(self) -> bool:
        """Whether a bound may tell of weights and moments, and norms of gradients."""
        return self._rates is not None and self._bound is not None and self._bound.weight is not None

    @cached_property
    def _named(self) -> dict[str, Tensor]:
        """The parameters by name, as they are when they are asked for first: to walk the modules takes a millisecond."""
        return self._run.parameters()

    def resolve(self) -> Finiteness:
        """Bring what was seen to the host, and return self."""
        if self._losses:
            self.losses = [float(x) for x in torch.stack(self._losses).tolist()]
        if self._rows is not None:
            for kind, name in nonfinite_rows(self._rows.peek()):
                self._found(kind, name)
            for role, kind, masks in _LEFT_OUT:
                self._look(kind, {name: t for r, name, t in self._rows.left_out if r is role}, masks=masks)
        flags = self._queue.fetch()
        if self._bound is not None:
            self._follow(self._bound)
        for kind, name, ticket, masks in self._looks:
            found = flags[ticket]
            if found.nan or found.posinf or (found.neginf and not masks):
                self._found(kind, name)
        self._looks.clear()
        for terminal in self._zoom.terminals if self._zoom is not None else ():
            self._found(_LISTS.get(terminal.kind), terminal.name)
        return self

    def _look_at_state(self) -> None:
        self._look("weights", self._named)
        self._look("state", self._run.state_tensors(self._named))

    def _follow(self, bound: UpdateBound) -> None:
        """Advance the bound by this step; where it proves nothing, look at weights and state, and begin it anew."""
        largest = self._largest_norm()
        if rates_of(self._run) is None or (self._rows is None and self._rates is None):
            bound.forget()
        elif self._rows is not None:
            bound.learn(self._run, *_recorded_amax(self._rows.peek(), self._rows.left_out))
        elif self._rates is not None and not bound.proves(self._run, largest, self._rates):
            if not self._tickets("weights"):
                self._look_at_state()
                self._queue.fetch()
            of = [self._amax("weights"), self._amax("state", ".exp_avg"), self._amax("state", ".exp_avg_sq")]
            bound.learn(self._run, *of)

    def _largest_norm(self) -> float:
        """Return the largest norm of a gradient, NaN of none; gradients without a finite one are told, or looked at.

        A clip by an infinite norm has made NaN of what was infinite by now, and zero of the rest: an infinite norm may be
        one of large finite elements.
        """
        parameters, norms = self._by_norm
        if not norms:
            return self._amax("grads")
        values: list[float] = torch.stack([norm.to(self._run.device) for norm in norms]).tolist()
        if all(map(math.isfinite, values)):
            return max(values)
        names = {id(parameter): name for name, parameter in self._named.items()}
        for parameter, value in zip(parameters, values, strict=True):
            if math.isnan(value):
                self._found("grads", names[id(parameter)])
            elif math.isinf(value) and parameter.grad is not None:
                self._look("grads", {names[id(parameter)]: parameter.grad})
        self._queue.fetch()
        return math.nan

    def _tickets(self, kind: str, ending: str = "") -> list[int]:
        return [ticket for what, name, ticket, _ in self._looks if what == kind and name.endswith(ending)]

    def _amax(self, kind: str, ending: str = "") -> float:
        return self._queue.amax(self._tickets(kind, ending))

    def _found(self, kind: str | None, name: str) -> None:
        if kind is not None and name not in (names := getattr(self, kind)):
            names.append(name)

    def _look(self, kind: str, tensors: dict[str, Tensor], *, masks: bool = False) -> None:
        """Look at tensors; with `masks`, -inf alone is allowed: a buffer may be a mask that its first forward builds."""
        tickets = self._queue.look_at_all([tensor.detach() for tensor in tensors.values()], signed=masks)
        self._looks += [(kind, name, ticket, masks) for name, ticket in zip(tensors, tickets, strict=True)]

    @property
    def bad_micro(self) -> int | None:
        """The first micro-step with a non-finite loss, None where all are finite."""
        return next((i for i, loss in enumerate(self.losses) if not math.isfinite(loss)), None)


#: What is recorded of an optimizer's state.
_MOMENTS = (Role.EXP_AVG.value, Role.EXP_AVG_SQ.value)
#: Of what is recorded: role, phase, the list of `Finiteness`, whether -inf alone is a mask's.
_RECORDED = (
    (Role.OUTPUT, Phase.FORWARD, "modules", True),
    (Role.GRAD, Phase.UNSCALE, "grads", False),
    (Role.WEIGHT, Phase.UPDATE, "weights", False),
    (Role.BUFFER, Phase.UPDATE, "buffers", True),
    (Role.EXP_AVG, Phase.UPDATE, "state", False),
    (Role.EXP_AVG_SQ, Phase.UPDATE, "state", False),
)
_LEFT_OUT = tuple((role, kind, masks) for role, _, kind, masks in _RECORDED if role is not Role.OUTPUT)


def nonfinite_rows(rows: StepRows) -> Iterator[tuple[str, str]]:
    """Yield what a recorded step's rows show to be non-finite: the list of `Finiteness`, and the name."""
    if not len(rows.stats) or not (rows.stats.nan + rows.stats.posinf + rows.stats.neginf).any():
        return
    for role, phase, kind, masks in _RECORDED:
        sites, stats = rows.of_role(role)
        bad = stats.nan + stats.posinf + (0 if masks else stats.neginf)
        for index in np.flatnonzero(bad).tolist():
            site = sites[index]
            if site.phase != phase:
                continue
            name = f"{site.module}.{site.name}".strip(".") if role is not Role.OUTPUT else site.module
            yield kind, f"{name}.{role}" if kind == "state" else name


def _recorded_amax(rows: StepRows, left_out: Sequence[tuple[Role, str, Tensor]]) -> tuple[float, float, float]:
    """Return the largest magnitude of weights and of both moments; NaN where not all of them is known and finite."""
    if any(role in (Role.WEIGHT, Role.EXP_AVG, Role.EXP_AVG_SQ) for role, _, _ in left_out):
        return math.nan, math.nan, math.nan
    found = []
    for role in (Role.WEIGHT, Role.EXP_AVG, Role.EXP_AVG_SQ):
        _, stats = rows.of_role(role)
        bad = bool((stats.nan + stats.posinf + stats.neginf).any())
        found.append(math.nan if bad else float(np.max(stats.amax, initial=0.0)))
    return found[0], found[1], found[2]


def nonfinite_names(tensors: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a non-finite element; one wait for the device."""
    queue = FlagQueue()
    tickets = queue.look_at_all([tensor.detach() for tensor in tensors.values()])
    flags = queue.fetch()
    return [name for name, ticket in zip(tensors, tickets, strict=True) if flags[ticket].bad]
