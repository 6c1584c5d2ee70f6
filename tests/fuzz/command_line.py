"""The command line itself, in this process, over inputs of the other targets: it ends with 0, 1 or 2, and says why."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from pathlib import Path
from unittest import mock

from nanhunt.cli import main
from nanhunt.errors import UsageError
from tests.fuzz import checkpoints, configs, traces

__all__ = ["init", "inspect", "look_on", "make_for_replay", "make_for_report", "replay", "report"]

_CONFIG = """\
model: tests.fuzz.odd:well_formed_model
data: tests.fuzz.odd:batches
loss: tests.fuzz.odd:loss
optimizer: {call: torch.optim:AdamW, kwargs: {lr: 1.0e-3}}
precision: {autocast: bf16, grad_scaler: true}
"""


def make_for_report(folder: Path, rng: random.Random) -> Path:
    """Write a trace that is damaged or odd, of any kind."""
    makers = (
        traces.make_parquet,
        traces.make_partial,
        traces.make_metadata,
        traces.make_rows,
        traces.make_partial_notes,
    )
    return rng.choice(makers)(folder, rng)


def make_for_replay(folder: Path, rng: random.Random) -> Path:
    """Write a checkpoint that is damaged or odd beside a sound config, or a sound one beside an odd config."""
    if rng.random() < 0.1:
        configs.make_odd(folder, rng)
    else:
        (folder / "nanhunt.yaml").write_text(_CONFIG)
    makers = (
        checkpoints.make_zip,
        checkpoints.make_pickle,
        checkpoints.make_odd,
        checkpoints.make_odd,
        checkpoints.make_folder,
    )
    return rng.choice(makers)(folder, rng)


def report(path: Path) -> None:
    """Run `nanhunt report` in one of its formats."""
    _run("report", str(path), "--format", ("terminal", "json", "markdown")[path.stat().st_size % 3], "--verbose")


def replay(path: Path) -> None:
    """Run `nanhunt replay --dry-run`: model, optimizer, scaler and random states are loaded, no step is taken."""
    _run("replay", str(path), "-c", str(path.parent / "nanhunt.yaml"), "--dry-run", "--device", "cpu")


def inspect(path: Path) -> None:
    """Run `nanhunt inspect` in one of its formats; every third time against the same checkpoint as its reference."""
    size = path.stat().st_size
    reference = ("--reference", str(path)) if size % 3 == 0 else ()
    _run("inspect", str(path), *reference, "--format", ("terminal", "json", "markdown")[size % 3], "--verbose")


def init(path: Path) -> None:
    """Run `nanhunt init`."""
    _run("init", str(path), "--out", str(path.parent / "made.yaml"))


def look_on(path: Path) -> None:
    """Run `nanhunt watch` once and `nanhunt export`, where the path is a trace's."""
    with contextlib.suppress(UsageError):
        _run("watch", str(path), "--once", "--wait", "0")
    _run("export", str(path), "--to", ("csv", "json")[path.stat().st_size % 2], "--out", str(path.parent / "exported"))


def _run(*arguments: str) -> None:
    out, told = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(told),
        mock.patch.object(sys, "argv", ["nanhunt", *arguments]),
    ):
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    said = out.getvalue() + told.getvalue()
    if code not in (0, 1, 2):
        raise AssertionError(f"exit {code}: {said[-3000:]}")
    # what is not printable and no line's end would reach the terminal
    raw = next((c for line in said.split("\n") for c in line if not c.isprintable()), None)
    if raw is not None:
        raise AssertionError(f"{raw!r} on the terminal: {said!r:.2000}")
    if code == 2:
        raise UsageError("\n".join(line for line in said.splitlines() if line.startswith("error"))[:200])
