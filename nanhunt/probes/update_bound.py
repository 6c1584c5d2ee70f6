"""What Adam can at most make of weights and moments: where that is finite, nobody has to read them.

To see that every weight and both moments are finite takes a pass over three times the model, on every step: 16 GB for
1.3 billion parameters, 2 % of the step. But an update is known arithmetic. With G the largest gradient element, M and V
those of the moments, W that of the weights,

    M' = max(M, G),  V' = max(V, G²),  W' = W + lr · M' / ((1 - beta1) · eps)

bound the state behind it, whatever the step's number, and each intermediate too. G is looked at anyway. W' grows by
lr / eps or so a step, 10⁵, and fp32 ends at 3.4e38: a run is proved finite for as long as it lasts, from one look.

What is not proved is looked at, and the bounds begin anew. They hold for torch's own Adam and AdamW driven by the
built-in step, and for what nothing else writes into: a bit that flips in a moment is seen on a recorded step, or when it
reaches a loss or a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanhunt.training.run import TrainingRun

__all__ = ["UpdateBound", "rates_of"]

_KNOWN = (torch.optim.Adam, torch.optim.AdamW)
_STATE = frozenset({"step", "exp_avg", "exp_avg_sq"})
#: bounds may come this near to the largest of their format: rounding adds a part in a thousand at most, over 10,000 steps
_ROOM = 2.0**-8


@dataclass(slots=True)
class UpdateBound:
    """Upper bounds of magnitudes as they stand after a step; `weight` is None where they are not known. Mutable."""

    weight: float | None = None
    exp_avg: float = 0.0
    exp_avg_sq: float = 0.0
    #: up to which they prove anything
    limit: float = 0.0
    #: the parameters that the optimizer does not update, by name: to walk the modules for them takes a millisecond
    others: dict[str, Tensor] = field(default_factory=dict)

    def forget(self) -> None:
        """Know nothing: the tensors may have changed otherwise."""
        self.weight = None

    def learn(self, run: TrainingRun, weight: float, exp_avg: float, exp_avg_sq: float) -> None:
        """Begin with what was measured; a NaN is a look that told no magnitude."""
        known = math.isfinite(weight + exp_avg + exp_avg_sq)
        self.weight, self.exp_avg, self.exp_avg_sq = weight if known else None, exp_avg, exp_avg_sq
        trained = set(map(id, run.trainable()))
        self.others = {name: p for name, p in run.parameters().items() if id(p) not in trained}
        formats = [torch.finfo(dtype) for dtype in {p.dtype for p in run.trainable()}]
        eps = min(group["eps"] for group in run.optimizer.param_groups)
        # an eps that is none in the format bounds no quotient: 1e-8 is zero in fp16
        self.limit = _ROOM * min((f.max if eps >= f.tiny else 0.0 for f in formats), default=0.0)

    def proves(self, run: TrainingRun, gradient: float, rates: tuple[float, ...]) -> bool:
        """Advance by an update with gradients up to `gradient` by these rates, a group each; whether all stays finite."""
        if self.weight is None or not math.isfinite(gradient):
            return False
        groups = run.optimizer.param_groups
        apart = [g.get("decoupled_weight_decay", isinstance(run.optimizer, torch.optim.AdamW)) for g in groups]
        # a decay that is not apart goes through the gradient, and its bound grows tenfold a step: it is looked at often
        wide = gradient + self.weight * max(0.0 if a else g["weight_decay"] for a, g in zip(apart, groups, strict=True))
        self.exp_avg, self.exp_avg_sq = max(self.exp_avg, wide), max(self.exp_avg_sq, wide * wide)
        shrink = max(abs(1 - r * g["weight_decay"]) if a else 1.0 for a, r, g in zip(apart, rates, groups, strict=True))
        longest = max(rate / ((1 - g["betas"][0]) * g["eps"]) for rate, g in zip(rates, groups, strict=True))
        self.weight = self.weight * max(1.0, shrink) + longest * self.exp_avg
        steepest = max(1 / ((1 - g["betas"][0]) * g["eps"]) for g in groups)
        reached = max(self.weight, self.exp_avg_sq, self.exp_avg * max(1.0, steepest))
        proved: bool = reached < self.limit
        if not proved:
            self.forget()
        return proved


def rates_of(run: TrainingRun) -> tuple[float, ...] | None:
    """Return the rate of each group of an update that the bounds hold for; None of any other."""
    optimizer = run.optimizer
    if type(optimizer) not in _KNOWN or run.train_step is not None or run.emulator is not None:
        return None
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return None  # what they write is not known
    if run.clip_grad_value is not None:
        return None  # it makes an ordinary number of an infinity, before its gradient could be named
    if len(run.optimizers) > 1:
        return None
    rates = [_rate(group) for group in optimizer.param_groups]
    if any(rate is None for rate in rates) or any(not state.keys() <= _STATE for state in optimizer.state.values()):
        return None
    return tuple(rate for rate in rates if rate is not None)


def _rate(group: dict[str, Any]) -> float | None:
    """Return a group's rate where its numbers are numbers of an ordinary Adam; a tensor of a GPU would be waited for."""
    numbers = (group["lr"], group["weight_decay"], group["eps"], *group["betas"])
    ordinary = (
        all(isinstance(n, (int, float)) and n >= 0 for n in numbers) and group["eps"] > 0 and max(group["betas"]) < 1
    )
    # torch's capturable Adam divides by the rate: one of 0, and a v of 0, make NaN of a bounded state
    return float(group["lr"]) if ordinary and not group.get("capturable") else None
