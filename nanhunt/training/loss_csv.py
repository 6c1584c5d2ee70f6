"""Steps and losses of a CSV: a file of one's own, Lightning's `metrics.csv`, an export of Weights & Biases."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanhunt.errors import ConfigError

__all__ = ["LOSS_NAMES", "csv_losses", "usual_loss"]

STEP_NAMES = (
    *("step", "global_step", "iter", "iteration", "iter_num", "it", "steps", "iterations", "_step"),
    *("trainer/global_step", "train/global_step", "train/step", "train/iter"),
)
#: in the order in which they are tried, in small letters
LOSS_NAMES = (
    *("train/loss", "train_loss", "loss", "loss/train", "training_loss", "train/train_loss", "train_loss_step"),
    *("train/loss_step", "loss_step", "train/loss/step", "training/loss", "losses/train", "loss_train", "lm loss"),
    *("train loss", "training loss", "loss_metrics/global_avg_loss"),
)


def csv_losses(path: Path, column: str | None) -> list[tuple[int, str]]:
    """Return (step, loss as it is written) of each row that has both.

    Raises ConfigError where the file is no table, or no column can be told to be the step's or the loss's.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            sample = file.read(1 << 16)
            file.seek(0)
            rows = csv.reader(file, delimiter=_delimiter(sample))
            head = [cell.strip() for cell in next(rows, [])]
            if len(head) == 2 and _as_step(head[0]) is not None:  # two columns of numbers need no heading
                return _picked([head, *rows], 0, 1)
            return _picked(rows, _step_column(head, path), _loss_column(head, column, path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"losses: {path}: is not a CSV text: {error}") from error
    except OSError as error:
        raise ConfigError(f"losses: {path}: cannot be read: {error.strerror}") from error


def usual_loss(names: Sequence[str]) -> str | None:
    """Return the name that is a training loss's by its usual names; None where there is none."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(_plain(name), name)
    return next((by_name[usual] for usual in LOSS_NAMES if usual in by_name), None)


def _delimiter(sample: str) -> str:
    head = sample.partition("\n")[0]
    return max(",;\t", key=head.count)


def _picked(rows: Iterable[list[str]], step: int, loss: int) -> list[tuple[int, str]]:
    found = []
    for row in rows:
        at = _as_step(row[step]) if len(row) > max(step, loss) else None
        if at is not None and row[loss].strip():
            found.append((at, row[loss].strip()))
    return found


def _as_step(text: str) -> int | None:
    """Return a step that is written as 12 or 12.0."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value == int(value) and abs(value) < 2**53 else None


def _plain(name: str) -> str:
    """Return a column's name in small letters; Weights & Biases puts the run's name before it: "run-7 - train/loss"."""
    return name.strip().rpartition(" - ")[2].strip().lower()


def _step_column(head: list[str], path: Path) -> int:
    plain = [_plain(name) for name in head]
    for usual in STEP_NAMES:
        if usual in plain:
            return plain.index(usual)
    raise ConfigError(
        f"losses: {path}: no column is named as a step is; its columns: {_listed(head)}",
        hint="name it step, iter or global_step",
    )


def _loss_column(head: list[str], column: str | None, path: Path) -> int:
    if column is not None:
        if column in head:
            return head.index(column)
        near = difflib.get_close_matches(column, head, n=1)
        mend = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"losses.tag: {path} has no column {column!r}; its columns: {_listed(head)}{mend}")
    found = usual_loss(head)
    if found is None:
        raise ConfigError(
            f"losses: {path}: no column is named as a training loss is; its columns: {_listed(head)}",
            hint=f"name it: `losses: {{file: {path.name}, tag: COLUMN}}`",
        )
    return head.index(found)


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" … ({len(names) - most} more)" if len(names) > most else ""
    return (", ".join(name[:60] for name in names[:most]) or "none") + rest
