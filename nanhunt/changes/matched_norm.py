"""Each step's update shrunk to the norm that it had in another trial: the control for all that shrinks an update.

The norm is Euclidean, over all weights and the whole step: a loop with several updates in a step is held to their sum.
Not covered: master weights that an optimizer keeps in its state; its next update goes on from those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import MatchedNorm
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch

__all__ = ["matched_norm"]


@contextmanager
def matched_norm(bench: Bench, change: MatchedNorm) -> Iterator[Made]:
    """Scale each update back to its norm in the other trial, where that is smaller."""
    norms = bench.update_norms.get(change.trial)
    if not norms:
        raise NotApplicableError(f"the norms of {change.trial} are not known: it has not run")
    match, readback = (
        _Match(bench.run, norms, bench.window.first),
        [f"each update at most as long as in {change.trial}"],
    )
    yield Made(readback=readback, watches=[match])
    if not match.said and match.nonfinite:
        raise NotApplicableError("the update is not finite: it has no direction to be shrunk in")
    if not match.said:
        raise NotApplicableError(f"no update is longer than in {change.trial}")
    readback.append(match.said)


class _Match(StepWatch):
    def __init__(self, run: TrainingRun, norms: Mapping[int, float], first: int) -> None:
        self._run, self._norms = run, norms
        self._step = first - 1
        self._before: dict[str, Tensor] = {}
        #: of the first update that was shrunk, read back from the weights
        self.said = ""
        self.nonfinite = False

    def batch_read(self, micro: int, batch: Any) -> None:
        if micro == 0:
            self._step += 1
            self._before = {n: w.clone() for n, w in self._run.weights().items()}

    def updated(self) -> None:
        moved = self._moved()
        own, target = _norm(moved), self._norms.get(self._step, math.inf)
        self.nonfinite |= not math.isfinite(own)
        if self.nonfinite or own <= target:
            return
        parameters = self._run.parameters()
        with torch.no_grad():
            for name, update in moved.items():
                parameters[name].copy_(self._before[name] + update * (target / own))
        self.said = self.said or f"update of step {self._step}: norm {own:.4g} → {_norm(self._moved()):.4g}"

    def _moved(self) -> dict[str, Tensor]:
        """Return what each weight moved by, in fp64: an update is a small difference of large numbers."""
        named = {n: w for n, w in self._run.weights().items() if n in self._before}
        return {
            n: p.to(_wide(p)) - self._before[n].to(_wide(p))
            for n, p in named.items()
            if not torch.equal(p, self._before[n])
        }


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _norm(updates: Mapping[str, Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(u)) for u in updates.values()))
