"""What the original run logged of its losses: a CSV, a `trainer_state.json`, TensorBoard events, as one kind of value.

A replay is worth as much as it is the run that failed. `diagnosis.original` holds these losses against the replay's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.config_data import LossesSpec
from nanhunt.training.found_file import is_there
from nanhunt.training.loss_csv import csv_losses
from nanhunt.training.loss_events import event_losses, is_event_file
from nanhunt.training.trainer_state import hidden_nans, logged_steps, read_trainer_state

__all__ = ["LossLog", "original_losses", "read_losses", "sibling_losses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLog:
    """Logged losses in order of their steps, a step once.

    `mean` says that a loss is the mean over the steps since the entry before. `resolution` is what the last digit of
    each loss counts. `hides` marks entries that could be finite although a loss in them was not.
    """

    source: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    resolution: tuple[float, ...]
    #: how the writer counts and averages, where that is known: a Trainer; None where it is to be found out
    mean: bool | None = None
    hides: tuple[int, ...] = field(default=())

    def note(self, first: int, last: int) -> dict[str, Any]:
        """Return the entries that a replay of these steps can be held against, as the body of a note."""
        near = [i for i, step in enumerate(self.steps) if first - 1 <= step <= last + 1]
        # the entry before tells where the first mean begins
        near = [near[0] - 1, *near] if near and near[0] else near
        return {
            "source": self.source,
            "mean": self.mean,
            "steps": [self.steps[i] for i in near],
            "losses": [self.losses[i] for i in near],
            "resolution": [self.resolution[i] for i in near],
            "hides": [step for step in self.hides if first - 1 <= step <= last + 1],
            "logged": [self.steps[0], self.steps[-1]],
        }


def original_losses(spec: LossesSpec | None, root: Path, checkpoint: Path, step: int | None) -> LossLog | None:
    """Return what the original run logged: where the config says, else in a Trainer's later checkpoints."""
    return sibling_losses(checkpoint, step) if spec is None else read_losses(spec, root)


def read_losses(spec: LossesSpec, root: Path) -> LossLog:
    """Read the file that `losses:` names, from the config's folder.

    Raises ConfigError where it is not there, of no known kind, damaged, or shows no loss.
    """
    path = root / spec.file
    if not is_there(path, "losses"):
        there = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        hint = f"in {path.parent} there are {', '.join(there[-6:])}" if there else None
        raise ConfigError(f"losses: no such file or folder: {path}", hint=hint)
    state = path / "trainer_state.json" if path.is_dir() else path
    if state.suffix == ".json" and state.is_file():
        return _of_trainer(state, spec.file)
    if is_event_file(path):
        return _in_order(spec.file, event_losses(path, spec.tag))
    if path.is_file() and path.suffix in (".csv", ".tsv", ".txt"):
        return _in_order(spec.file, csv_losses(path, spec.tag))
    raise ConfigError(
        f"losses: {path}: is no log that nanhunt reads",
        hint="name a .csv with the columns step and loss, a trainer_state.json, or a TensorBoard event file or folder",
    )


def sibling_losses(checkpoint: Path, step: int | None) -> LossLog | None:
    """Return what a Trainer logged of the steps behind this checkpoint, from its later checkpoints or the run's end.

    They are the same run only where they repeat what this checkpoint logged itself. None where there are none.
    """
    own = checkpoint / "trainer_state.json"
    if step is None or not own.is_file():
        return None
    known = _entries(own)
    later = [*checkpoint.parent.glob("checkpoint-*/trainer_state.json"), checkpoint.parent / "trainer_state.json"]
    found: list[tuple[int, Path]] = []
    for path in later:
        entries = _entries(path)
        if entries and entries[-1][0] > step and repr(entries[: len(known)]) == repr(known):
            found.append((entries[-1][0], path))
    if not found:
        return None
    newest = max(found)[1]
    return _of_trainer(newest, str(newest.relative_to(checkpoint.parent)))


def _entries(path: Path) -> list[tuple[int, float]]:
    """Return steps and losses of a trainer state; [] where it cannot be read, for nobody asked for it."""
    try:
        return [(entry.step, entry.loss) for entry in logged_steps(read_trainer_state(path))]
    except (CheckpointError, OSError, OverflowError):
        return []


def _of_trainer(path: Path, source: str) -> LossLog:
    try:
        entries = logged_steps(read_trainer_state(path))
    except CheckpointError as error:
        raise ConfigError(f"losses: {error.message}", hint="name another log of the run") from error
    except (OSError, OverflowError) as error:
        raise ConfigError(f"losses: {path}: cannot be read: {error}") from error
    hidden = {entry.step for entry in hidden_nans(entries)}
    log = _in_order(source, [(e.step, repr(math.nan if e.step in hidden else e.loss)) for e in entries])
    alone = {b for a, b in zip(log.steps, log.steps[1:], strict=False) if b == a + 1}
    # the norm of a step's own gradient tells whether its loss was finite; a mean over several has no such witness
    sound = {e.step for e in entries if e.grad_norm is not None and math.isfinite(e.grad_norm)} & alone
    return LossLog(
        source=source,
        steps=log.steps,
        losses=log.losses,
        resolution=log.resolution,
        mean=True,
        hides=tuple(s for s in log.steps if s not in sound),
    )


def _in_order(source: str, rows: Sequence[tuple[int, str]]) -> LossLog:
    """Return rows of step and written loss as a log; of a step that was logged again, after a restart, the last counts."""
    by_step = {step: text for step, text in rows if _number(text) is not None}
    if not by_step:
        raise ConfigError(f"losses: {source}: shows no loss", hint="name the log of the training run itself")
    steps = sorted(by_step)
    return LossLog(
        source=source,
        steps=tuple(steps),
        losses=tuple(float(by_step[s]) for s in steps),
        resolution=tuple(_resolutions([by_step[s] for s in steps])),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except (ValueError, OverflowError):
        return None


def _resolutions(texts: Sequence[str]) -> list[float]:
    """Return what the last digit of each number counts, as its format had it: 2.3 in a column of %.4f is 2.3000.

    A column has a number of decimals, or of significant digits; whichever is coarser for a number holds.
    """
    numbers = [n for n in map(_decimal, texts) if n is not None and n]
    decimals = max((-_exponent(n) for n in numbers), default=0)
    significant = max((len(n.as_tuple().digits) for n in numbers), default=1)
    found: list[float] = []
    for text in texts:
        number = _decimal(text)
        leading = number.adjusted() if number else 0
        found.append(10.0 ** max(-decimals, leading + 1 - significant))
    return found


def _decimal(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    # a magnitude beyond that of floats is no loss, and 10 to its power no number
    return number if number.is_finite() and abs(number.adjusted()) <= 300 and abs(_exponent(number)) <= 300 else None


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return exponent if isinstance(exponent, int) else 0
