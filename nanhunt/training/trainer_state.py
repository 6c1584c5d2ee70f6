"""What a Hugging Face Trainer logged of a run: loss, gradient norm and rate by step, and the NaN that its log hides.

By default (`logging_nan_inf_filter`) the Trainer leaves a step whose loss is NaN or infinite out of the mean that it
logs, so a run whose every loss is NaN reads 0.0, step after step. The gradient norm is logged as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanhunt.training.json_file import read_json

__all__ = ["LoggedStep", "hidden_nans", "logged_steps", "read_trainer_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedStep:
    """One entry of `log_history` that tells of training."""

    step: int
    #: mean of the losses since the entry before
    loss: float
    #: of the step itself, before clipping; None where the Trainer did not log it
    grad_norm: float | None = None
    learning_rate: float | None = None


def read_trainer_state(path: Path) -> dict[str, Any]:
    """Return the content of a `trainer_state.json`; {} where there is none. Raises CheckpointError where it is no JSON."""
    return read_json(path)


def logged_steps(state: Mapping[str, Any]) -> tuple[LoggedStep, ...]:
    """Return the training entries of a trainer state, in their order; evaluations and what is malformed are left out."""
    history = state.get("log_history")
    entries = [e for e in history if isinstance(e, Mapping)] if isinstance(history, list) else []
    return tuple(
        LoggedStep(
            step=int(step),
            loss=loss,
            grad_norm=_number(entry.get("grad_norm")),
            learning_rate=_number(entry.get("learning_rate")),
        )
        for entry in entries
        if (step := _number(entry.get("step"))) is not None
        and math.isfinite(step)
        and (loss := _number(entry.get("loss"))) is not None
    )


def hidden_nans(steps: Sequence[LoggedStep]) -> tuple[LoggedStep, ...]:
    """Return the entries whose loss of exactly 0.0 stands beside a gradient norm that is not finite."""
    return tuple(s for s in steps if s.loss == 0.0 and s.grad_norm is not None and not math.isfinite(s.grad_norm))


def _number(value: object) -> float | None:
    """Return a JSON number; the Trainer writes NaN as itself, other writers as a text."""
    if isinstance(value, str) and value.lower().strip("+-") in ("nan", "inf", "infinity"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has whole numbers of any length
        return None
