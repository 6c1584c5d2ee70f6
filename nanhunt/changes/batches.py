"""Other data for the same state: without some samples, or with the batches of healthy steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import OtherBatch, WithoutSamples
from nanhunt.samples import Cutter
from nanhunt.training.run import TrainingRun

__all__ = ["other_batch", "without_samples"]


@contextmanager
def without_samples(bench: Bench, change: WithoutSamples) -> Iterator[Made]:
    """Put the samples of the step before in their place, or leave them out where that has none of this form."""
    step, samples = bench.onset.step, change.samples
    cutter = Cutter.of(bench.run, step, bench.onset.micro)
    if cutter is None or cutter.size <= len(samples):
        raise NotApplicableError("the batch has no other samples")
    names = ", ".join(map(str, samples[:8])) + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")
    if cutter.by == "replacement":
        which = f"sample no. {names}" if len(samples) == 1 else f"samples no. {names}"
        said = f"{which} (of {cutter.size}) replaced by step {step - 1}'s"
    else:
        said = f"batch of {cutter.size} → {cutter.size - len(samples)} samples, without {names}"
    read: list[int] = []
    take = cutter.without(samples)

    def without(at: int, micro: int, batch: Any) -> Any:
        if (at, micro) == (step, bench.onset.micro):
            read.append(micro)
        return take(at, micro, batch)

    with _transformed(bench.run, without):
        yield Made(readback=[said])
    if not read:
        raise NotApplicableError("the batch was not read in the steps that were run")


@contextmanager
def other_batch(bench: Bench, change: OtherBatch) -> Iterator[Made]:
    """Give each step of the window the batch of a healthy step, in their order."""
    run, window = bench.run, bench.window
    offset = window.first - change.step
    others: dict[int, list[Any]] = {}
    for step in range(window.first, window.last + 1):
        other = min(step - offset, window.first - 1)
        try:
            others[step] = [run.batches.again(other, micro) for micro in range(run.accumulate)]
        except KeyError:
            raise NotApplicableError(f"the batch of step {other} is not kept any more") from None
    with _transformed(run, lambda step, micro, batch: others[step][micro] if step in others else batch):
        if window.first == window.last:
            said = f"step {window.first} uses the batch of step {change.step}"
        else:
            last = min(window.last - offset, window.first - 1)
            said = f"steps {window.first} to {window.last} use the batches of steps {change.step} to {last}"
        yield Made(readback=[said])


@contextmanager
def _transformed(run: TrainingRun, function: Callable[[int, int, Any], Any]) -> Iterator[None]:
    before = run.batches.transform
    run.batches.transform = function
    try:
        yield
    finally:
        run.batches.transform = before
