"""The nanhunt.yaml of a script that trains several networks: each as it was made, its optimizers, its step as a tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanhunt.recorder.code import CodeRef
from nanhunt.recorder.history import Micro
from nanhunt.recorder.script.reconstruction import reconstruction
from nanhunt.recorder.script.references import UntapedError
from nanhunt.recorder.script.script_recipe import ScriptRecipe
from nanhunt.recorder.script.spelling import Speller
from nanhunt.recorder.script.step_tape import StepTape
from nanhunt.training.run import TrainingRun

__all__ = ["LoopRecipe"]

_STEP = "nanhunt.training.taped_step:taped_step"
_PARTS = "nanhunt.training.rebuilt:rebuilt_parts"
_OPTIMIZERS = "nanhunt.training.rebuilt:rebuilt_optimizers"


@dataclass(slots=True, kw_only=True)
class LoopRecipe(ScriptRecipe):
    """How a script's loop over several networks is built and goes."""

    def batches(self, micros: Sequence[Micro], accumulate: int) -> list[Any]:
        """Return the tapes, one a step."""
        self._speller, self._notes, self._missing = Speller(self.births), [], {}
        self._refs["train_step"] = None
        tapes: list[StepTape] = [micro.batch["tape"] for micro in micros]
        try:
            found = [{"inputs": tape.inputs, "tape": tape.text()} for tape in tapes]
        except UntapedError as error:
            self._missing["train_step"] = f"train_step: the script's step could not be kept: {error}"
            return [{"inputs": tape.inputs} for tape in tapes]
        self._refs["train_step"] = CodeRef(call=_STEP)
        return found

    def _model_ref(self) -> CodeRef:
        parts = {n: reconstruction(m, self.births, self._speller) for n, m in self.model.named_children()}
        loose = {n: list(p.shape) for n, p in self.model.named_parameters(recurse=False)}
        return CodeRef(call=_PARTS, kwargs={"parts": parts} | ({"loose": loose} if loose else {}))

    def _optimizer_ref(self, run: TrainingRun) -> CodeRef:
        made = [self._in_groups(optimizer) for optimizer in run.optimizers]
        scaler = run.scaler
        kwargs: dict[str, Any] = {"optimizers": made}
        if scaler is not None and scaler.is_enabled():
            kwargs["scaler"] = {
                "growth_factor": scaler.get_growth_factor(),
                "backoff_factor": scaler.get_backoff_factor(),
                "growth_interval": scaler.get_growth_interval(),
            }
        return CodeRef(call=_OPTIMIZERS, kwargs=kwargs)
