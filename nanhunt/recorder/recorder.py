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
run on several ranks each rank leaves its own, whose gradients are not averaged when it is replayed.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self

import torch
from torch import Tensor, nn

from nanhunt.compiled import is_compiled
from nanhunt.recorder.alarm import Alarm, Fault
from nanhunt.recorder.bundle import write_bundle
from nanhunt.recorder.closely import CloseLook, guarded_hook, nonfinite
from nanhunt.recorder.hearing import Ear, listening
from nanhunt.recorder.history import History
from nanhunt.recorder.live import live_run, on_first_forward, parameters_of, rank_and_world
from nanhunt.recorder.outputs import Outputs, watch_outputs
from nanhunt.recorder.present import PresentStep
from nanhunt.recorder.recipe import Code, Recipe
from nanhunt.training.clip import gradient_norm

__all__ = ["Recorder", "guarded"]

#: Bundles that a run leaves at most: the first fault is the cause, later ones are what it led to.
BUNDLES = 3
#: Healthy steps after which the next fault is a new one.
HEALTHY = 20
#: Steps whose numbers may be on their way to the host.
LATE = 2

_P = ParamSpec("_P")


def guarded(method: Callable[_P, None]) -> Callable[_P, None]:
    """Run a method while the recorder is on; what it raises ends the recording, and goes no further."""

    @functools.wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        recorder = args[0]
        assert isinstance(recorder, Recorder)
        if not recorder._on:
            return
        try:
            method(*args, **kwargs)
        except Exception as error:
            recorder._give_up(error)

    return guarded


class Recorder(Ear):
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
        self._on = False
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
        self._present: PresentStep | None = None
        self._pending: deque[PresentStep] = deque()
        self._look: CloseLook | None = None
        self._closely: dict[int, CloseLook] = {}
        self._alarm = Alarm()
        #: the last faulty step
        self._faulty: int | None = None
        self._is_silent_told = False
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
        self._closely.pop(present.past.step, None)
        self._present, self._next = None, present.past.step

    # --- what is heard -------------------------------------------------------------------------------------------

    @guarded
    def backward_begins(self, roots: Any, options: Mapping[str, Any]) -> None:
        """Keep the loss, and the scale that is in it."""
        root = roots[0] if isinstance(roots, Sequence) and len(roots) == 1 else roots
        if self._present is None or not isinstance(root, Tensor) or root.numel() != 1:
            return
        scale = getattr(self._run.scaler, "_scale", None)
        self._present.add_root(root, scale)

    @guarded
    def backward_done(self) -> None:
        """Wait for gradients anew."""
        if self._present is not None:
            self._present.ready.clear()

    @guarded
    def unscaled(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients' norm."""
        self._gradients_ready(optimizer)

    @guarded
    def clip_begins(self, max_norm: float, parameters: Any) -> None:
        """Take the gradients' norm, if no loss scale is in them, and the clip's own bound."""
        self._recipe.max_norm = float(max_norm)
        if len(self._run.optimizers) == 1 and not self._is_scaled:
            self._gradients_ready(self._run.optimizer)

    @guarded
    def value_clip_begins(self, bound: float, parameters: Any) -> None:
        """Take the gradients' norm, and the clip's own bound."""
        self._recipe.max_value = float(bound)
        if len(self._run.optimizers) == 1 and not self._is_scaled:
            self._gradients_ready(self._run.optimizer)

    @guarded
    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients' norm where nothing did before, and the rates."""
        if self._present is None:
            return
        self._gradients_ready(optimizer)
        if optimizer is self._run.optimizer:
            self._present.lr = tuple(float(group["lr"]) for group in optimizer.param_groups)
        if self._look is not None:
            self._look.update_begins(parameters_of(optimizer))

    @guarded
    def update_done(self, optimizer: torch.optim.Optimizer) -> None:
        """Note that the step is over with the batch that comes."""
        if self._present is None:
            return
        self._present.updates += 1
        self._pause()
        if self._look is not None:
            self._look.update_done(parameters_of(optimizer))
            if len(self._run.optimizers) == 1:
                self._look.end()  # before the loop drops its gradients
                self._look = None

    @guarded
    def scaler_stepped(self) -> None:
        """Note that the step is over, skipped or not."""
        if self._present is not None:
            self._present.scaler_steps += 1
            self._pause()

    def _pause(self) -> None:
        """Look at no output until the next batch: an evaluation may come."""
        if self._outputs is not None and len(self._run.optimizers) == 1:
            self._outputs.pause()

    @property
    def _is_scaled(self) -> bool:
        scaler = self._run.scaler
        return scaler is not None and scaler.is_enabled()

    def _gradients_ready(self, optimizer: torch.optim.Optimizer) -> None:
        if self._present is None or id(optimizer) in self._present.ready:
            return
        self._present.ready.add(id(optimizer))
        parameters = [p for p in parameters_of(optimizer) if p.grad is not None]
        with torch.no_grad():
            norm = gradient_norm([p.grad for p in parameters if p.grad is not None], self._run.device)
        self._present.norms.append(norm)
        if self._look is not None:
            self._look.gradients_ready(parameters)

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
        return Recipe(
            code=self._code, model=self._run.model, world_size=world_size, autocast=self._autocast, known=self._known
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
        self._present = PresentStep(past=past, lr=rates)
        if self._outputs is not None:
            self._outputs.peaks = self._present.outputs
        if closely:
            self._look = self._closely[step] = CloseLook(self._run, step, self._give_up)

    def _end_step(self) -> None:
        if self._present is None:
            return
        if self._look is not None:
            self._look.end()
            self._look = None
        if self._outputs is not None:
            self._outputs.pause()
        self._present.send()
        self._pending.append(self._present)
        self._present = None

    def _judge(self, *, all_of_them: bool = False) -> None:
        """Judge the steps whose numbers have arrived; of more than LATE the oldest is waited for."""
        while self._pending and (all_of_them or len(self._pending) > LATE or self._pending[0].has_arrived()):
            present = self._pending.popleft()
            scalars = present.scalars()
            present.past.scalars = scalars
            self._history.scalars.append(scalars)
            fault = self._alarm.heard(scalars)
            look = self._closely.pop(scalars.step, None)
            if look is not None:
                rows = look.take()
                self._history.rows.append(rows)
                fault = fault or self._alarm.seen(scalars.step, nonfinite(rows, skipped=scalars.skipped))
            if fault is not None:
                self._write(fault)

    @guarded
    def _finish(self, error: BaseException | None) -> None:
        broken = self._present
        self._end_step()
        self._judge(all_of_them=True)
        fault = self._alarm.ended()
        if isinstance(error, Exception) and broken is not None:
            fault = _broken(error, broken)
        if fault is not None:
            self._write(fault)

    def _write(self, fault: Fault) -> None:
        """Write the bundle of a fault; of one that goes on since the last bundle none, and one of all that is silent.

        What is silent may be so by design: it must not keep from a bundle what is loud. Behind a loud fault it is what
        that has left.
        """
        if fault.silent:
            if self._is_silent_told or self._faulty is not None:
                return
            is_known, self._is_silent_told = False, True
        else:
            goes_on = self._faulty is not None and fault.step - self._faulty <= HEALTHY
            is_known, self._faulty = goes_on or len(self.bundles) - self._is_silent_told >= BUNDLES, fault.step
        if is_known:
            return
        folder = write_bundle(self._out, fault, self._history, self._run, self._recipe, self._rank)
        self.bundles.append(folder)
        print(f"nanhunt: step {fault.step}: {fault.detail}; nanhunt replay {folder}", file=sys.stderr)

    def _give_up(self, error: Exception) -> None:
        """Stop for good, and say so once."""
        if not self._on:
            return
        self._on = False  # the hooks stay until the end: one that runs must not be taken off
        self._forget()
        text = f"nanhunt's recorder has stopped, the training goes on: {type(error).__name__}: {error}".splitlines()[0]
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        except RuntimeWarning:  # where warnings are errors
            print(text, file=sys.stderr)

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
        if self._outputs is not None:
            self._outputs.pause()
        self._present, self._look = None, None
        self._pending.clear()
        self._closely.clear()


def _broken(error: Exception, present: PresentStep) -> Fault:
    """Return the fault of an exception that left a step, or came behind it."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    text = f"{text} (behind the step's update)" if present.is_over else text
    return Fault(kind="exception", step=present.past.step, lead_step=present.past.step, detail=text)
