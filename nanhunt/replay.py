"""Run one step of the user's training under probes."""

from __future__ import annotations

import contextlib
import gc
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nanhunt.errors import NanhuntError
from nanhunt.finiteness import Finiteness
from nanhunt.probes.elements import Layout, layout_of
from nanhunt.probes.module import watch_modules
from nanhunt.probes.op import OpProbe
from nanhunt.probes.optimizer import OptimizerProbe
from nanhunt.probes.probe import RowBuffer, split_name
from nanhunt.probes.softmax import CALLS_THROUGH, watch_softmax
from nanhunt.probes.update_bound import UpdateBound
from nanhunt.recipes.scaling import LOSSES
from nanhunt.trace.schema import Phase, Role
from nanhunt.training.batch_layout import batch_size
from nanhunt.training.batches import DataEndedError
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepResult, StepWatch, train_step
from nanhunt.training.tree import tensors_of

__all__ = ["Replayed", "WatchList", "device_is_lost", "replay_step"]


#: Folders whose code runs inside a step without being the user's.
_PROBES = (Path(__file__).parent / "probes", Path(__file__).parent / "stats")


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

    def norms_taken(self, parameters: Sequence[Tensor], norms: Sequence[Tensor]) -> None:
        """Pass on."""
        self._tell("norms_taken", parameters, norms)

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
    bound: UpdateBound | None = None,
) -> Replayed:
    """Run `step` and put its observations into `rows`; with `zoom`, every op is looked at as well.

    `bound` goes from step to step of one replay, and spares the look at weights and moments where it proves them finite.

    On a step that is neither recorded nor zoomed no hook stands on a module: a compiled graph is then the user's own,
    unbroken. An exception of the user's code inside the step is caught and returned. Scalars are recorded on every step.
    """
    rows.step, rows.micro, rows.recording = step, 0, recorded
    finite = Finiteness(run, zoom, rows if recorded and zoom is None else None, bound)
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
