"""Comparison: what two traces have in common and where they part, as one value for every renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Alone", "Comparison", "DepthRow", "Difference", "Outcome", "Setting", "StepRow", "Verdict"]

#: "identical": every statistic that both have is equal; "agree": rounding explains all of it; "part": it does not
Outcome = Literal["identical", "agree", "part"]
#: "within" what rounding explains, "inherited" from causes that differ as much, or "born" here
Verdict = Literal["within", "inherited", "born"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One observation whose statistic lies further apart than its bound. `apart` and `bound` are relative, `ratio` is both.

    `a` and `b` are the statistic in either trace. Counts ("zeros", "non-finite", "NaN", "Inf") are apart by a share of the elements.
    """

    step: int
    micro: int
    rank: int
    phase: str
    role: str
    module: str
    name: str
    statistic: str
    a: float
    b: float
    apart: float
    bound: float
    ratio: float
    #: what rounding alone explains, relative as well; the rest of `bound` is what the causes differ by
    rounding: float
    dtype_a: str
    dtype_b: str
    #: where the module's code is, if either trace zoomed into it
    source: str | None = None
    #: steps in which the same observation is beyond its bound
    steps: int = 1
    #: steps before and behind whose outputs were observed, where those of its own step were not: it began between them
    between: tuple[int | None, int | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthRow:
    """One tensor of the step in which the traces part, or of the last one, in the order in which it ran.

    `apart` and `bound` are of rms and mean, relative to the rms; `bound` is what rounding alone explains.
    """

    phase: str
    role: str
    module: str
    name: str
    rms_a: float
    rms_b: float
    apart: float
    bound: float
    ratio: float
    verdict: Verdict
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One step: the largest relative differences of outputs, gradients and weights (None: not observed), and the losses."""

    step: int
    outputs: float | None
    gradients: float | None
    weights: float | None
    loss_a: float | None
    loss_b: float | None
    inherited: int
    born: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """What one of the traces has alone: whole steps, and observations in steps that both have."""

    steps: tuple[int, ...]
    rows: int
    #: (role, module and name) of what is observed in no step of the other trace, in order
    sites: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of the runs that differs."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The whole: paths, what differs around the runs, how many observations were held together, and where they part."""

    a: str
    b: str
    outcome: Outcome
    #: sentences on what is not the same before the first step runs: weights, state, batches
    prefaces: tuple[str, ...]
    settings: tuple[Setting, ...]
    #: coarsest format of either side, whose rounding the bounds are made of
    rounding: str
    steps: int
    observations: int
    judged: int
    inherited: int
    #: the first difference that is born in each place, in the order of the run
    born: tuple[Difference, ...]
    depth: tuple[DepthRow, ...]
    #: the step of `depth`
    depth_step: int | None
    by_step: tuple[StepRow, ...]
    alone_a: Alone
    alone_b: Alone
    #: (module in a, module in b) that stand in each other's place
    renamed: tuple[tuple[str, str], ...]
    #: the largest share of its bound that a difference takes, where none is beyond
    closest: Difference | None
    #: the first observation that is not equal to the bit, behind outputs that are; None where all are, or the first is not
    unequal: Difference | None = None

    @property
    def first(self) -> Difference | None:
        """The first observation that is beyond its bound."""
        return self.born[0] if self.born else None
