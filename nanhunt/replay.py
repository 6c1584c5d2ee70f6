"""Run one step of the user's training under probes, and say whether what must be finite is."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanhunt.errors import NanhuntError
from nanhunt.probes.elements import Layout, layout_of
from nanhunt.probes.module import watch_modules
from nanhunt.probes.op import OpProbe
from nanhunt.probes.optimizer import OptimizerProbe
from nanhunt.probes.probe import RowBuffer, split_name
from nanhunt.probes.softmax import CALLS_THROUGH, watch_softmax
from nanhunt.recipes.scaling import LOSSES
from nanhunt.stats.flags import FlagQueue
from nanhunt.trace.schema import Phase, Role
from nanhunt.trace.step_rows import StepRows
from nanhunt.training.batch_layout import batch_size
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepResult, StepWatch, train_step
from nanhunt.training.tree import tensors_of

__all__ = ["Finiteness", "Replayed", "WatchList", "device_is_lost", "nonfinite_names", "replay_step"]


#: Folders whose code runs inside a step without being the user's.
_PROBES = (Path(__file__).parent / "probes", Path(__file__).parent / "stats")


#: What a terminal's kind is called in `Finiteness`; of a loss its value is asked for.
_LISTS = {"gradient": "grads", "weight": "weights", "buffer": "buffers", "state": "state"}


class WatchList(StepWatch):
    """Several watchers as one, told in their order; what they compute themselves is not looked at."""

    def __init__(self, watches: Sequence[StepWatch], rows: RowBuffer, zoom: OpProbe | None = None) -> None:
        self._watches = list(watches)
        self._rows = rows
        self._paused = contextlib.nullcontext if zoom is None else zoom.paused

    def _tell(self, method: str, *args: Any) -> None:
        with self._rows.aside(), self._paused():
            for watch in self._watches:
                getattr(watch, method)(*args)

    def batch_read(self, micro: int, batch: Any) -> None:
        """Pass on."""
        self._tell("batch_read", micro, batch)

    def loss_made(self, micro: int, loss: Tensor) -> None:
        """Pass on."""
        self._tell("loss_made", micro, loss)

    def backward_begins(self, micro: int) -> None:
        """Pass on."""
        self._tell("backward_begins", micro)

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Pass on."""
        self._tell("gradients_ready", parameters)

    def clipped(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Pass on."""
        self._tell("clipped", parameters)

    def turned_to(self, phase: str) -> None:
        """Pass on."""
        self._tell("turned_to", phase)

    def update_made(self, parameters: Sequence[Tensor] | None = None) -> None:
        """Pass on."""
        self._tell("update_made", parameters)

    def updated(self) -> None:
        """Pass on."""
        self._tell("updated")


class Finiteness(StepWatch):
    """Detection: the names of what is non-finite in a step, found on every step whether it is recorded or not.

    Flags stay on the device until `resolve`, after the step: nothing waits for it inside.
    """

    def __init__(self, run: TrainingRun, zoom: OpProbe | None = None, rows: RowBuffer | None = None) -> None:
        self._run = run
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
        self._look("grads", self._run.gradients(parameters, self._named))

    def updated(self) -> None:
        """Look at weights, buffers and optimizer state."""
        run = self._run
        if self._zoom is not None:
            return
        if self._rows is not None:
            self._look("state", run.state_tensors(self._named, without=_MOMENTS))
            return
        state = run.state_tensors(self._named)
        self._look("weights", self._named)
        self._look("buffers", run.buffers(), masks=True)
        self._look("state", state)

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
        for kind, name, ticket, masks in self._looks:
            found = flags[ticket]
            if found.nan or found.posinf or (found.neginf and not masks):
                self._found(kind, name)
        self._looks.clear()
        for terminal in self._zoom.terminals if self._zoom is not None else ():
            self._found(_LISTS.get(terminal.kind), terminal.name)
        return self

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


def nonfinite_names(tensors: dict[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a non-finite element; one wait for the device."""
    queue = FlagQueue()
    tickets = queue.look_at_all([tensor.detach() for tensor in tensors.values()])
    flags = queue.fetch()
    return [name for name, ticket in zip(tensors, tickets, strict=True) if flags[ticket].bad]


class _Narrator(StepWatch):
    """Tells the row buffer which micro-step runs, and records the batch and the losses."""

    def __init__(self, run: TrainingRun, rows: RowBuffer) -> None:
        self._run = run
        self._rows = rows
        self.layouts: list[Layout] = []

    def batch_read(self, micro: int, batch: Any) -> None:
        self._rows.micro = micro
        self.layouts.append(layout_of(batch_size(batch), [tuple(t.shape) for _, t in tensors_of(batch)]))
        for path, tensor in tensors_of(batch):
            self._rows.tensor(tensor, phase=Phase.BATCH, role=Role.BATCH, name=path)

    def loss_made(self, micro: int, loss: Tensor) -> None:
        self._rows.scalar("micro_loss", loss.detach().reshape(()), phase=Phase.FORWARD)


@dataclass(slots=True, kw_only=True)
class Replayed:
    """One step as it went: its scalars (None where it raised), what was non-finite, and the exception if it raised."""

    step: int
    result: StepResult | None
    finite: Finiteness
    error: Exception | None = None
    #: of each micro-batch
    layouts: list[Layout] = field(default_factory=list)
    #: share of exactly zero gradient elements, whether a weight moved, whether an op lost values: where a trial asks
    zero_share: float | None = None
    moved: bool | None = None
    lost: bool | None = None


def replay_step(
    run: TrainingRun,
    step: int,
    rows: RowBuffer,
    *,
    recorded: bool,
    zoom: OpProbe | None = None,
    also: Sequence[StepWatch] = (),
) -> Replayed:
    """Run `step` and put its observations into `rows`; with `zoom`, every op is looked at as well.

    On a step that is neither recorded nor zoomed no hook stands on a module: a compiled graph is then the user's own,
    unbroken. An exception of the user's code inside the step is caught and returned. Scalars are recorded on every step.
    """
    rows.step, rows.micro, rows.recording = step, 0, recorded
    finite = Finiteness(run, zoom, rows if recorded and zoom is None else None)
    narrator = _Narrator(run, rows)
    watches: list[StepWatch] = [narrator, *([zoom] if zoom else []), finite, OptimizerProbe(run, rows), *also]
    replayed = Replayed(step=step, result=None, finite=finite)
    with _looking(run, rows, zoom) as heard:
        try:
            replayed.result = train_step(run, step, WatchList([*watches, *heard], rows, zoom))
        except (NanhuntError, DataEndedError):
            raise
        except Exception as error:
            # a device that is lost says so at whatever call comes next, and that may be a probe's
            if _is_ours(error) and not device_is_lost(error) and (zoom is None or zoom.raised is not error):
                raise
            replayed.error = error
    try:
        if not device_is_lost(replayed.error):
            if zoom is not None:
                zoom.resolve()
            rows.micro = 0
            _record_losses(run, rows)
            if replayed.result is not None:
                _record_scalars(replayed.result, rows)
            finite.resolve()
    except RuntimeError as error:
        if not device_is_lost(error):
            raise
        replayed.error = error
    if device_is_lost(replayed.error):
        rows.drop()  # they are on a device that answers nothing any more
        return replayed
    replayed.layouts = narrator.layouts
    return replayed


def _is_ours(error: BaseException) -> bool:
    """Whether a probe failed rather than the user's model: that is a defect to be told, not a finding."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and f.name not in CALLS_THROUGH]
    innermost = own[-1].filename if own else ""
    return any(folder in Path(innermost).parents for folder in _PROBES)


def device_is_lost(error: BaseException | None) -> bool:
    """Whether an exception left the CUDA context unusable: after a device-side assert every later call fails too."""
    return error is not None and ("device-side assert" in str(error) or "CUDA error" in str(error))


@contextlib.contextmanager
def _looking(run: TrainingRun, rows: RowBuffer, zoom: OpProbe | None) -> Iterator[list[StepWatch]]:
    """Put the hooks on, and yield the watches that go with them."""
    heard: list[StepWatch] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.emulating())
        if run.emulator is not None:
            stack.enter_context(run.emulator.measured(rows.recording and zoom is None))
        if rows.recording:
            stack.enter_context(watch_modules(run.roots(), rows))
            if zoom is None:
                heard.append(stack.enter_context(watch_softmax(run, rows)))
        if zoom is not None:
            stack.enter_context(_collected_less())
            stack.enter_context(zoom.stack.following(run.roots()))
            stack.enter_context(zoom)
        yield heard


@contextlib.contextmanager
def _collected_less() -> Iterator[None]:
    """Let Python's cyclic collector come seldom in a step: the notes on its ops would set it off, 0.1 s at a time.

    It is not switched off: some code relies on it to free tensors.
    """
    thresholds = gc.get_threshold()
    if thresholds[0]:
        gc.set_threshold(100 * thresholds[0], *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _record_losses(run: TrainingRun, rows: RowBuffer) -> None:
    """Record what the operands of quantized products lost, as `weight.input.flushed` and its kin."""
    for lost in run.emulator.take_losses() if run.emulator is not None else ():
        module, leaf = split_name(lost.weight)
        phase = Phase.BACKWARD if lost.role == "gradient" else Phase.FORWARD
        for name, share in zip(LOSSES, lost.shares, strict=True):
            rows.scalar(f"{leaf}.{lost.role}.{name}", share, phase=phase, module=module)


def _record_scalars(result: StepResult, rows: RowBuffer) -> None:
    rows.scalar("loss", result.loss, phase=Phase.FORWARD, force=True)
    rows.scalar("grad_norm", result.grad_norm, phase=Phase.UNSCALE, force=True)
    rows.scalar("clip_coefficient", result.clip_coefficient, phase=Phase.CLIP, force=True)
    rows.scalar("loss_scale", result.loss_scale, phase=Phase.BACKWARD, force=True)
    rows.scalar("skipped", float(result.skipped) if result.loss_scale is not None else None,
                phase=Phase.UPDATE, force=True)  # fmt: skip
    for index, lr in enumerate(result.lr):
        rows.scalar("lr" if index == 0 else f"lr.{index}", lr, phase=Phase.UPDATE, force=True)
