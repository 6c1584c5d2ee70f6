"""The bad step once more, unchanged: before anything is concluded, does it fail again, and bit for bit?

How it works. The step runs twice from the same state, batch and random numbers. The same bits, and the fault again: go
on. The fault again with other bits: kernels that add in any order, and trials are judged with that in mind. No fault:
the step runs as often again, and the ways in which the runs differ tell a machine that failed once from arithmetic that
is not the same twice (`bits.Difference`).

What differing repetitions are held against. What the step before, a healthy one, differs by when it is repeated in the
same way: an undisturbed step of a GPT on a GPU gives other gradients each time, by atomics in the backward passes of
attention and embedding. Where there is no step before, or where it is the same each time, the step is repeated under
deterministic kernels. The report says which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanhunt.bits import Difference, compare, kept_copies
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import Replayed, replay_step
from nanhunt.rewind import Digest, kept, rewind
from nanhunt.training.ring import REACH, SnapshotRing
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepWatch, train_step
from nanhunt.verdicts import Known, StepFault, shows

__all__ = ["Repetition", "deterministic_kernels", "repeat_spike", "repeat_step"]

#: Runs of a step that fails at first and then does not.
_MORE = 3
#: Host memory for the copies of two runs' gradients, in bytes.
_BUDGET = 1 << 30
#: A module whose attribute is a switch, which its stub does not show.
_FILLING: Any = torch.utils.deterministic


@dataclass(slots=True, kw_only=True)
class Repetition:
    """What the repetitions said: the body of the note, and the last run that failed again, else the last."""

    body: dict[str, Any]
    last: Replayed
    #: runs in which the fault came again, of how many
    shown: int
    runs: int


def repeat_step(
    run: TrainingRun, ring: SnapshotRing, seen: Replayed, after: Snapshot, fault: StepFault, known: Known
) -> Repetition:
    """Run the bad step again and compare; `after` is the run as the first run of the step left it.

    The run is left behind the step; the caller puts it back.
    """
    runs = [_Run.of(run, ring, seen.step) for _ in range(2)]
    shown = [shows(r.replayed, fault, known) for r in runs]
    left = _left_by(run, after) if not any(shown) else None
    if not all(shown):
        more = [_Run.of(run, ring, seen.step) for _ in range(_MORE)]
        runs += more
        shown += [shows(r.replayed, fault, known) for r in more]
    body: dict[str, Any] = {"step": seen.step, **runs[0].digest.compare(runs[1].digest)}
    body |= {"runs": len(runs), "shown": sum(shown), "reproduced": all(shown)}
    body["same_as_seen"] = _same(runs[0].replayed.finite.losses, seen.finite.losses)
    body["judged_by"] = "the bits alone"
    if not all(r.digest.compare(runs[0].digest)["same_gradients"] for r in runs):
        body |= _apart(run, ring, seen.step)
    if left is not None and not left.is_same:
        body["seen_difference"] = left.to_json()
    failed = [r.replayed for r, s in zip(runs, shown, strict=True) if s]
    return Repetition(body=body, last=(failed or [runs[-1].replayed])[-1], shown=len(failed), runs=len(runs))


@dataclass(slots=True, kw_only=True)
class _Run:
    replayed: Replayed
    digest: Digest

    @classmethod
    def of(cls, run: TrainingRun, ring: SnapshotRing, step: int) -> _Run:
        rewind(run, ring, step, hold=True)  # "from the same state" is meant to the bit
        digest, quiet = Digest(run), RowBuffer()
        replayed = replay_step(run, step, quiet, recorded=False, also=[digest])
        quiet.take()
        return cls(replayed=replayed, digest=digest)


def _left_by(run: TrainingRun, after: Snapshot) -> Difference:
    """Compare the weights, buffers and gradients that the first run left with those of the run that has just ended."""
    live = {**run.parameters(), **run.buffers(), **{f"{n}.grad": g for n, g in run.gradients().items()}}
    after.wait()
    first = {**after.tensors, **{f"{n}.grad": g for n, g in after.grads.items()}}
    second = kept_copies(live, _BUDGET)
    return compare({n: _plain(t) for n, t in first.items() if n in second}, second)


def _plain(tensor: Tensor) -> Tensor:
    return next(iter(kept_copies({"": tensor}, _BUDGET).values()), tensor)


class _Gradients(StepWatch):
    """Keeps copies of the gradients, as many as fit."""

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self.copies: dict[str, Tensor] = {}

    def gradients_ready(self, parameters: Sequence[Tensor] | None = None) -> None:
        self.copies |= kept_copies(self._run.gradients(parameters), _BUDGET // 2)


def _apart(run: TrainingRun, ring: SnapshotRing, step: int) -> dict[str, Any]:
    """Say how repetitions of the step differ, and whether a healthy step's, or deterministic kernels', do too."""
    body: dict[str, Any] = {"difference": _difference(run, ring, step).to_json()}
    if step - 1 >= max(ring.oldest_step, run.start_step):
        healthy = _difference(run, ring, step - 1)
        body |= {"healthy": healthy.to_json(), "judged_by": f"what repetitions of step {step - 1} differ by"}
        if not healthy.is_same:
            return body
    with deterministic_kernels():
        fixed = _difference(run, ring, step)
    if fixed.is_same or "healthy" not in body:
        body["judged_by"] = "repetition under deterministic kernels"
    return body | {"deterministic": fixed.to_json()}


def _difference(run: TrainingRun, ring: SnapshotRing, step: int) -> Difference:
    pair = []
    for _ in range(2):
        rewind(run, ring, step)
        watch = _Gradients(run)
        with contextlib.suppress(Exception):  # a step that raises has the gradients up to there
            train_step(run, step, watch)
        pair.append(watch.copies)
    return compare(pair[0], pair[1])


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Run the body with the kernels that add in one order, where torch has them."""
    mode, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, fill = torch.backends.cudnn.deterministic, _FILLING.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    # torch would fill what `empty` gives with NaN, which is no fault of the run's
    _FILLING.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn)
        torch.backends.cudnn.deterministic = cudnn
        _FILLING.fill_uninitialized_memory = fill


#: Steps with the same loss in each bit after which another loss is no rounding's.
_QUIET = 3
#: Share of a loss from which two runs of a step have left one another: rounding alone drifts less in twenty steps.
_DEPARTED = 1e-2
#: Share of a rise from which it has come again.
_AGAIN = 0.5


def repeat_spike(
    run: TrainingRun, ring: SnapshotRing, seen: dict[int, float], peak: int, baseline: float
) -> dict[str, Any] | None:
    """Run the steps up to a spike's peak again, twice; return the note's body, None where the peak is out of reach.

    `seen` holds the losses of the replay by step. The spike has come again where at least half of its rise has; where
    it has not, `step` is the first whose loss is another one. The run is put back.
    """
    first = max(ring.oldest_step, run.start_step, peak - REACH)
    if first > peak:
        return None
    runs = []
    with kept(run, peak + 1):
        for _ in range(2):
            rewind(run, ring, first, hold=True)
            runs.append([train_step(run, step, StepWatch()).loss for step in range(first, peak + 1)])
    rise = seen[peak] - baseline
    shown = sum(not losses[-1] - baseline < _AGAIN * rise for losses in runs)
    was = [seen[step] for step in range(first, peak + 1)]
    apart = [i for i, (a, b) in enumerate(zip(was, runs[0], strict=True)) if not abs(a - b) <= _DEPARTED * abs(a)]
    return {
        "step": first + apart[0] if apart else peak,
        "runs": 2,
        "shown": shown,
        "reproduced": shown > 0,
        "same_loss": _same(*runs),
        "same_gradients": _same(*runs),
        "same_as_seen": _same(was, runs[0]),
        "judged_by": "the losses alone",
        "departs": _departs(runs, first),
    }


def _departs(runs: list[list[float]], first: int) -> dict[str, float] | None:
    """Return where repetitions leave one another at once, by a share of the loss that no rounding makes.

    Rounding shows in the last bits first and grows; so the losses before must be the same in each bit, for three steps.
    A loss in half precision hides its last bits, and is not judged.
    """
    if all(_is_half(loss) for losses in runs for loss in losses):
        return None
    for index, losses in enumerate(zip(*runs, strict=True)):
        if len(set(losses)) == 1:
            continue
        low, high = min(losses), max(losses)
        if index < _QUIET or not high - low > _DEPARTED * abs(high):
            return None
        return {"step": first + index, "low": low, "high": high, "same": index}
    return None


def _is_half(loss: float) -> bool:
    """Whether bfloat16 or float16 holds the very number."""
    value = torch.tensor(loss)
    return any(bool(value.to(dtype).float() == value) for dtype in (torch.bfloat16, torch.float16))


def _same(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))
