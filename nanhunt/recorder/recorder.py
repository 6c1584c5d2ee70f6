"""Recorder: rides along in a training loop of the user's own, and leaves a bundle that replays when something breaks.

    with nanhunt.Recorder(model, optimizer, build=build_model, loss=compute_loss) as recorder:
        for batch in loader:
            recorder.step(batch)
            …                                   # the loop as it was

How it works. `step` is told the batch that comes. Everything else is heard (`hearing`): what backward starts from is the
loss, the gradients are whole at the unscaling, the clip or the update. Losses and norms stay on their device; they are on
their way to the host while the next step begins, and are judged (`alarm`) when they have arrived, at the latest a step
later. The state that a verdict needs is still there: the last snapshots, and all batches since (`history`).

What it promises. Nothing that the loop computes changes by a bit: no random number is drawn, no tensor written. Nothing
is raised into it: what fails inside of the recorder ends the recording, with one warning that says why.

What is not covered. State that the loop keeps elsewhere (an average of weights, a counter) is not in the bundle. Of a
run on several ranks each rank leaves its own, whose gradients are averaged again where all ranks replay together.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor, nn

from nanhunt.compiled import is_compiled
from nanhunt.probes.probe import RowBuffer
from nanhunt.probes.source import is_user_file
from nanhunt.recorder.alarm import Fault
from nanhunt.recorder.bundle import write_bundle
from nanhunt.recorder.closely import CloseLook, guarded_hook
from nanhunt.recorder.guard import guarded
from nanhunt.recorder.hearing import listening
from nanhunt.recorder.history import History
from nanhunt.recorder.judge import Judge
from nanhunt.recorder.listener import Listener
from nanhunt.recorder.live import live_run, live_wrappers, on_first_forward, rank_and_world
from nanhunt.recorder.outputs import Outputs, watch_outputs
from nanhunt.recorder.present import PresentStep
from nanhunt.recorder.recipe import Code, Recipe
from nanhunt.training.recorded_error import RecordedError
from nanhunt.training.recorded_rates import settings_of
from nanhunt.training.replicated import replication_of, unkept

__all__ = ["Recorder"]


class Recorder(Listener):
    """Records a training loop; a context manager.

    `build`, `loss`, `build_optimizer` and `train_step` are the functions of nanhunt.yaml's keys `model`, `loss`,
    `optimizer` and `train_step`, as functions of a module, partials of them, or import strings: with `build` and `loss`
    a bundle replays as it is. A loop that the built-in step does not express (two optimizers) names its `train_step`.

    `every` is the number of steps between two snapshots, each of which is also looked at closely; `keep`, at least 2, is
    how many of them are kept. A snapshot is a copy of model and optimizer on the host. `autocast`, "fp16" or "bf16", is
    for a loop that enters it inside of the model; where it is entered around the model it is heard. `known` are sentences
    of what a replay cannot repeat, for its assumptions.

    `detect="outputs"` looks at every module's output in every step, and not only at loss, gradient norm and scale.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        scaler: Any = None,
        scheduler: Any = None,
        build: Code = None,
        loss: Code = None,
        build_optimizer: Code = None,
        train_step: Code = None,
        out: str | Path = "nanhunt-bundle",
        every: int = 100,
        keep: int = 2,
        start_step: int = 0,
        autocast: str | None = None,
        detect: Literal["scalars", "outputs"] = "scalars",
        known: Sequence[str] = (),
    ) -> None:
        #: bundles that were written
        self.bundles: list[Path] = []
        self._arguments = (optimizer, scaler, scheduler, loss, every, max(2, keep))
        self._model = model
        self._code: dict[str, Code] = {
            "model": build, "loss": loss, "optimizer": build_optimizer, "train_step": train_step,
        }  # fmt: skip
        self._out = Path(out).absolute()
        self._next = start_step
        self._autocast = autocast
        self._known = tuple(known)
        if detect not in ("scalars", "outputs"):
            raise ValueError(f"detect is 'scalars' or 'outputs', not {detect!r}")
        self._outputs = Outputs() if detect == "outputs" else None
        self._judged = Judge()
        #: of close looks that are over
        self._spare: list[RowBuffer] = []
        self._hooks = contextlib.ExitStack()

    # --- the user's calls ----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._on = True
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Judge what has not been judged, write what is due, and stop listening. An exception of the loop's passes."""
        self._finish(error)
        self._stop()

    @guarded
    def step(self, batch: Any) -> None:
        """Take the batch that comes, before its forward pass: once for each micro-batch of a step.

        A step ends with the first batch after an update. The batch is copied.
        """
        if self._present is None or self._present.is_over:
            self._end_step()
            self._judge()
            self._begin_step()
        assert self._present is not None
        self._history.add(self._present.past, batch)
        if self._look is not None:
            self._look.micro(len(self._present.past.micros) - 1)

    @guarded
    def loss(self, loss: Tensor) -> None:
        """Take a micro-batch's loss where backward does not start from it: several losses, a sum, a `train_step`'s."""
        if self._present is not None:
            self._present.told.append(loss.detach().reshape(()).clone())
            self._recipe.told = True

    @guarded
    def raised(self, error: BaseException) -> None:
        """Take what leaves the step, where no `with` sees it: write its bundle, and wait for the next batch.

        Behind a step that is over it is no step's.
        """
        if self._present is None or self._present.is_over or not isinstance(error, Exception):
            return
        broken = self._present
        self._set_aside(broken)
        self._judge(all_of_them=True)
        self._write(_broken(error, broken))
        self._history.forget(broken.past.step)

    @guarded
    def left_out(self) -> None:
        """Take back the last batch: the loop makes no backward pass of it. A step of no other batch is none."""
        if self._present is None or not self._present.past.micros:
            return
        self._history.take_back(self._present.past)
        if not self._present.past.micros:
            self._history.forget(self._present.past.step)
            self._set_aside(self._present)

    def _set_aside(self, present: PresentStep) -> None:
        """Let the next batch begin this step anew."""
        if self._outputs is not None:
            self._outputs.pause()
        if self._look is not None:
            self._look.drop()
            self._look = None
        self._judged.looks.pop(present.past.step, None)
        self._present, self._next = None, present.past.step

    # --- from step to step ---------------------------------------------------------------------------------------

    @guarded
    def _begin(self) -> None:
        optimizer, scaler, scheduler, loss, every, keep = self._arguments
        self._run = live_run(self._model, optimizer, scaler=scaler, scheduler=scheduler, loss=loss)
        self._rank, world = rank_and_world()
        self._recipe = self._made_recipe(world)
        self._history = History(self._run, every, keep)
        self._hooks.enter_context(listening(self, self._run.optimizers))
        self._hooks.callback(on_first_forward(self._model, self._run.device, self._hear_autocast).remove)
        if self._outputs is not None and not is_compiled(self._run):
            self._hooks.enter_context(watch_outputs(self._run.roots(), self._outputs, guarded_hook(self._give_up)))

    def _made_recipe(self, world_size: int) -> Recipe:
        live = live_wrappers() if world_size > 1 else []
        return Recipe(
            code=self._code,
            model=self._run.model,
            world_size=world_size,
            replication=replication_of(self._model, live),
            autocast=self._autocast,
            known=(*self._known, *unkept(self._model, live)),
        )

    @guarded
    def _hear_autocast(self, autocast: str | None) -> None:
        self._recipe.autocast = autocast

    def _begin_step(self) -> None:
        step = self._next
        self._next += 1
        closely = self._history.is_due(step)
        past = self._history.begin(step)
        rates = tuple(float(group["lr"]) for group in self._run.optimizer.param_groups)
        self._present = PresentStep(past=past, lr=rates, settings=settings_of(self._run.optimizer))
        if self._outputs is not None:
            self._outputs.peaks = self._present.outputs
        if closely:
            self._look = self._judged.looks[step] = CloseLook(self._run, step, self._give_up, self._spare)

    def _end_step(self) -> None:
        if self._present is None:
            return
        if self._look is not None:
            self._look.end()
            self._look = None
        if self._outputs is not None:
            self._outputs.pause()
        self._judged.add(self._present)
        self._present = None

    def _judge(self, *, all_of_them: bool = False) -> None:
        for fault in self._judged.faults(self._history, all_of_them=all_of_them):
            self._write(fault)

    @guarded
    def _finish(self, error: BaseException | None) -> None:
        broken = self._present
        is_inside = broken is not None and bool(broken.past.micros) and not self._is_behind(broken)
        self._end_step()
        self._judge(all_of_them=True)
        fault = self._judged.ended()
        if isinstance(error, Exception) and broken is not None and is_inside:
            fault = _broken(error, broken)
        if fault is not None:
            self._write(fault)

    def _is_behind(self, present: PresentStep) -> bool:
        """Whether what is raised now is none of the step's: a log, a checkpoint, the next batch.

        Of several optimizers another may still have to update.
        """
        return present.is_over and len(self._run.optimizers) == 1

    def _write(self, fault: Fault) -> None:
        """Write the bundle of a fault that gets one."""
        if not self._judged.is_written(fault):
            return
        folder = write_bundle(self._out, fault, self._history, self._run, self._recipe, self._rank)
        self.bundles.append(folder)
        print(f"nanhunt: step {fault.step}: {fault.detail}; nanhunt replay {folder}", file=sys.stderr)

    def _stop(self) -> None:
        self._on = False
        with contextlib.suppress(Exception):
            self._hooks.close()
        self._forget()

    def _forget(self) -> None:
        """Let go what is held, and the hooks of a close look."""
        with contextlib.suppress(Exception):
            if self._look is not None:
                self._look.drop()
            self._history.snapshots.clear()
            self._history.steps.clear()
        self._spare.clear()
        if self._outputs is not None:
            self._outputs.pause()
        self._present, self._look = None, None
        self._judged.forget()


def _broken(error: Exception, present: PresentStep) -> Fault:
    """Return the fault of an exception that left a step, or came behind it."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    text = f"{text} (behind the step's update)" if present.is_over else text
    return Fault(
        kind="exception",
        step=present.past.step,
        lead_step=present.past.step,
        detail=text,
        raised=_recorded(error, present),
    )


def _recorded(error: Exception, present: PresentStep) -> RecordedError:
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    file, line = next((f for f in reversed(frames) if is_user_file(f[0])), ("", 0))
    phase = "backward" if present.roots else "forward"
    return RecordedError(type=type(error).__name__, message=str(error)[:500], file=file, line=line, phase=phase)
