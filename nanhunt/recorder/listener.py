"""What a recorder hears of the step that is running, and keeps of it: losses, scales, norms, rates.

Gradients are looked at as early as they are whole: at the unscaling, the clip or the update, whichever comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nanhunt.recorder.closely import CloseLook
from nanhunt.recorder.guard import Guarded, guarded
from nanhunt.recorder.hearing import Ear, NormClip
from nanhunt.recorder.live import parameters_of
from nanhunt.recorder.outputs import Outputs
from nanhunt.recorder.present import PresentStep
from nanhunt.recorder.recipe import Recipe
from nanhunt.training.clip import gradient_norm
from nanhunt.training.recorded_rates import settings_of
from nanhunt.training.run import TrainingRun
from nanhunt.training.shards import own_part

__all__ = ["Listener"]


class Listener(Guarded, Ear):
    """Fills in the step that is running. Who begins and ends steps is a `Recorder`."""

    _run: TrainingRun
    _recipe: Recipe
    _outputs: Outputs | None = None
    _present: PresentStep | None = None
    _look: CloseLook | None = None

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
    def clip_begins(self, clip: NormClip) -> None:
        """Take the gradients' norm, if no loss scale is in them, and how the clip is made."""
        self._recipe.heard_clip(clip)
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
            self._present.settings = settings_of(optimizer)
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
            # of shards this rank's own: a collective would wait for ranks that have no recorder, or whose has stopped
            norm = gradient_norm([own_part(p.grad) for p in parameters if p.grad is not None], self._run.device)
        self._present.norms.append(norm)
        if self._look is not None:
            self._look.gradients_ready(parameters)
