"""What the recorder costs: a user's bare loop against the same loop with `nanhunt.Recorder`, by default and looking closer.

`make bench-recorder` runs it. The variants take turns on the same model. A turn is a stretch of steps as a user's loop makes
them, on a GPU with nothing that waits between them; the clock runs from behind the first steps, in which snapshots and
statistics allocate what they keep. Of each recorder one turn has no snapshot behind its first, and one has two: what such
a step takes beyond an ordinary one, the snapshot and the close look, is half of their difference. A period of `every`
steps is one of these and the rest of those. What is printed is the median of the ratios to the bare turn of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gpt import build
from benchmarks.hunt import SIZES
from nanhunt.recorder.recorder import Recorder
from nanhunt.training.run import TrainingRun

#: Steps before the clock runs, snapshots behind them, and steps between two of these.
_WARM, _CLOSE, _APART = 11, 2, 5
_STEPS = _CLOSE * _APART
#: Periods that are printed: the default, and a short one.
_PERIODS = (100, 10)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run the loop; `detect` None is without a recorder."""

    name: str
    detect: Literal["scalars", "outputs"] | None


VARIANTS = (
    Variant("Recorder", "scalars"),
    Variant('Recorder, detect="outputs"', "outputs"),
)


@dataclass(slots=True)
class Ratios:
    """Seconds over those of a bare step, of each round."""

    ordinary: list[float] = field(default_factory=list)
    closely: list[float] = field(default_factory=list)


def turn(run: TrainingRun, numbers: Iterator[int], detect: Any, device: str, folder: Path, every: int) -> float:
    """Return the seconds that a step of a turn takes on average."""
    made = Recorder(run.model, run.optimizer, out=folder, every=every, detect=detect) if detect else None
    began = 0.0
    with made if made is not None else contextlib.nullcontext():
        for number, step in enumerate(itertools.islice(numbers, _WARM + _STEPS)):
            if number == _WARM:
                _wait(device)
                began = time.perf_counter()
            batch = run.batches.get(step, 0)
            if made is not None:
                made.step(batch)
            run.optimizer.zero_grad()
            with run.autocasting():
                loss = run.loss(run.model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            run.optimizer.step()
        _wait(device)
        return (time.perf_counter() - began) / _STEPS


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def report(name: str, device: str, rounds: int) -> None:
    """Measure one size and print its table."""
    size = SIZES[name]
    run, numbers = build(size, device), itertools.count()
    bare, found = [], {variant: Ratios() for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            plain = turn(run, numbers, None, device, Path(folder), 1)
            bare.append(plain)
            for variant in VARIANTS:
                rare, often = (turn(run, numbers, variant.detect, device, Path(folder), e) for e in (1000, _APART))
                found[variant].ordinary.append(rare / plain)
                found[variant].closely.append((rare + (often - rare) * _APART) / plain)
    millions = sum(p.numel() for p in run.model.parameters()) / 1e6
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    print(
        f"{millions:.1f} M parameters, {size.batch} x {size.context} tokens, {device}{threads}, torch {torch.__version__}"
    )
    print(f"bare step: {1e3 * statistics.median(bare[1:]):.1f} ms\n")
    periods = "".join(f"{f'every={every}':>12}" for every in _PERIODS)
    print(f"{'over the bare step':<30}{'ordinary':>10}{'closely':>10}{periods}")
    for variant, ratios in found.items():
        ordinary, closely = (statistics.median(r[1:]) for r in (ratios.ordinary, ratios.closely))
        whole = "".join(f"{((every - 1) * ordinary + closely) / every:>12.3f}" for every in _PERIODS)
        print(f"{variant.name:<30}{ordinary:>10.3f}{closely:>10.2f}{whole}")


def main() -> None:
    """Measure the sizes that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", default="7M", help=f"of {', '.join(SIZES)}; several with commas")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    for name in arguments.sizes.split(","):
        report(name, arguments.device, arguments.rounds)


if __name__ == "__main__":
    main()
